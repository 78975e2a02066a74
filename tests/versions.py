"""What a test needs of the libraries below, where a newer version of them has changed."""

import jax
import pytest

# BrainScale 0.1.0 is frozen, and JAX 0.11 broke its compiler; the libraries of that time go with it.
IS_OF_ITS_TIME = jax.__version_info__ < (0, 11)

needs_its_compiler = pytest.mark.skipif(
    not IS_OF_ITS_TIME, reason="brainscale 0.1.0's compiler, which this compares with, does not run on JAX >= 0.11"
)
needs_its_faults = pytest.mark.skipif(
    not IS_OF_ITS_TIME, reason="saiunit 0.6, which JAX >= 0.11 comes with, has mended this fault"
)
needs_its_texts = pytest.mark.skipif(not IS_OF_ITS_TIME, reason="newer libraries say this in other words")
needs_its_neurons = pytest.mark.skipif(
    not IS_OF_ITS_TIME, reason="newer neurons compare numbers that are equal from the start"
)
