"""The only numbers by which two results may differ: relative to the largest entry of a leaf, by what is compared."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

_TABLE: Mapping[str, Mapping[str, float]] = {
    # two schedules of the same arithmetic: a strategy, a window, an order of sums
    "schedule": {"float64": 1e-12, "float32": 2e-6, "complex128": 1e-12},
    # a formula worked out by hand in numpy
    "formula": {"float64": 1e-12},
    # brainscale's own run
    "native": {"float64": 1e-10},
    # the exact gradient, by another way through the model
    "exact": {"float64": 1e-9},
    # a central difference of half a step in each direction
    "difference": {"float64": 1e-6},
}

# Half the step of a central difference, in the same table's spirit: the cube root of the precision.
DIFFERENCE_STEP = 1e-5


def tolerance(kind: str, dtype: Any) -> float:
    """By how much, relative to the largest entry, two arrays may differ; exact types may not differ at all."""
    return _TABLE[kind][str(dtype)] if jnp.issubdtype(dtype, jnp.inexact) else 0.0
