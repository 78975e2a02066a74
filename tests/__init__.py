"""The tests of pure_batching; JAX is set here, before any of its backends exists."""

import os
from importlib.metadata import version

# What XLA's slow passes change is speed. A test compiles hundreds of programs and runs each for a moment.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
flags = ["--xla_cpu_parallel_codegen_split_count=1"]
if version("jaxlib").startswith(("0.9.", "0.10.")):  # later ones have no other emitters
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))

import jax  # noqa: E402

SETTINGS = {"jax_platforms": "cpu", "jax_num_cpu_devices": 8, "jax_enable_x64": True}

for name, value in SETTINGS.items():
    jax.config.update(name, value)

import brainstate  # noqa: E402

brainstate.environ.set(precision=64)
