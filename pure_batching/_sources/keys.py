"""The random key of each generator of a captured step."""

import zlib

import jax


def folded_key(key: jax.Array, path: str) -> jax.Array:
    """The key of the random generator at a path, the same in every process."""
    return jax.random.fold_in(key, zlib.crc32(path.encode()))
