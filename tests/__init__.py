"""The tests of pure_batching; JAX is set here, before any of its backends exists."""

import os

# What XLA's slow passes change is speed. A test compiles hundreds of programs and runs each for a moment.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

import jax

SETTINGS = {"jax_platforms": "cpu", "jax_num_cpu_devices": 8, "jax_enable_x64": True}

for name, value in SETTINGS.items():
    jax.config.update(name, value)

import brainstate  # noqa: E402

brainstate.environ.set(precision=64)
