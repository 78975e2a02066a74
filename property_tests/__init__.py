"""The laws under Hypothesis; JAX is set here, before any of its backends exists."""

import os

# What XLA's slow passes change is speed. A law compiles dozens of programs and runs each for a moment.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)  # noqa: FBT003 - JAX's own signature

import brainstate  # noqa: E402

brainstate.environ.set(precision=64)
