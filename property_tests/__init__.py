"""The laws under Hypothesis; JAX is set here, before any of its backends exists."""

import os

# What XLA's slow passes change is speed. A law compiles dozens of programs and runs each for a moment.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)  # noqa: FBT003 - JAX's own signature

import brainstate  # noqa: E402

brainstate.environ.set(precision=64)
