"""What can be captured: each file knows one kind of source."""

import jax

# BrainState gives JAX its own precision, 32 bits, when it is imported; whoever imports this package keeps theirs.
_is_x64 = jax.config.values["jax_enable_x64"]

import brainstate  # noqa: E402, F401

jax.config.update("jax_enable_x64", _is_x64)
