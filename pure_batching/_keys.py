"""The one implementation of random keys in which every sample has noise of its own.

Mapped over a batch of keys, `threefry2x32` draws for each of them what it draws alone. JAX's `rbg` and `unsafe_rbg` do
not: under `jax.vmap` all samples draw from the key of the first.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

MAPPABLE = "threefry2x32"


def is_mappable(dtype: Any) -> bool:
    """Whether a dtype is that of keys of which a batch draws what each draws alone."""
    return dtype == _mappable_dtype()


@functools.cache
def _mappable_dtype() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0, impl=MAPPABLE)).dtype


def mappable(key: jax.Array) -> jax.Array:
    """A typed key as it is, or one that is made of the words of a key of another implementation."""
    if is_mappable(key.dtype):
        return key
    if key.ndim:
        return jax.vmap(mappable)(key)
    words = jax.random.key_data(key).astype(jnp.uint32).ravel()
    return functools.reduce(jax.random.fold_in, words, jax.random.key(0, impl=MAPPABLE))
