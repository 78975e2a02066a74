"""The tests of pure_batching; JAX is set here, before any of its backends exists."""

import jax

SETTINGS = {"jax_platforms": "cpu", "jax_num_cpu_devices": 8, "jax_enable_x64": True}

for name, value in SETTINGS.items():
    jax.config.update(name, value)

import brainstate  # noqa: E402

brainstate.environ.set(precision=64)
