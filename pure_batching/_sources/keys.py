"""The random key of each generator of a captured step."""

import zlib

import jax


def folded_key(key: jax.Array, path: str) -> jax.Array:
    """The key of the random generator at a path, the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))


def keys_like(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The key itself where a state is one key, or as many keys made of it as an array holds."""
    return jax.random.split(key, shape) if shape else key
