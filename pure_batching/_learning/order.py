"""The order of two computations that XLA is free to choose."""

import jax
import jax.numpy as jnp

from .._tree import Tree


def after(first: Tree, value: Tree) -> Tree:
    """`value`, which is known only when all arrays of `first` are.

    XLA overwrites an array in place only where nothing reads it later. Where a gradient reads the old trace and the new
    trace is made of it too, nothing orders the two, and XLA copies the trace. `jax.lax.optimization_barrier` does not
    order them either, since XLA removes it before it decides on copies.

    Args:
      first: arrays.
      value: arrays; they come back as they are.
    """
    numbers = [jnp.real(leaf).reshape(-1)[0] for leaf in jax.tree.leaves(first) if leaf.size]
    number = sum(numbers, start=jnp.zeros(()))
    is_known = (number <= jnp.inf) | jnp.isnan(number)  # always true, which XLA does not see
    return jax.tree.map(lambda x: jnp.where(is_known, x, jnp.zeros_like(x)), value)
