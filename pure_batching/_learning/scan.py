"""A scan that does in its loop only what has to be done there."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from .._reader.early import cut_step
from .._tree import Tree

State = TypeVar("State")


def scan(step: Callable[[State, Any], tuple[State, Tree]], start: State, xs: Tree) -> tuple[State, Tree]:
    """`jax.lax.scan`, with two things done outside of the loop.

    Results that depend on neither the state nor `xs` are made once. They come back as a broadcast `[K, ...]`, which XLA
    makes where it is read. The derivatives of a step are often constant: those of a leak, or of a state by an input
    that is added to it.

    A product of a weight with what comes from `xs` alone is made for all steps at once, before the loop.
    """
    first = jax.tree.map(lambda x: x[0], xs)
    made, (state, results) = jax.make_jaxpr(step, return_shape=True)(start, first)
    structure, count = jax.tree.structure(state), len(jax.tree.leaves(state))
    cut, given = cut_step(made, count), jax.tree.leaves(xs)

    def rest(state: State, row: Any) -> tuple[State, list[jax.Array]]:
        products, own = row
        found = cut.rest(*products, *jax.tree.leaves(state), *own)
        return jax.tree.unflatten(structure, found[:count]), found[count:]

    after, ys = jax.lax.scan(rest, start, (jax.vmap(cut.early)(*given), given))
    leaves = dict(zip(cut.changing, ys, strict=True))
    leaves.update((i, jnp.broadcast_to(one, (len(given[0]), *one.shape))) for i, one in cut.constant.items())
    return after, jax.tree.unflatten(jax.tree.structure(results), [leaves[i] for i in range(len(leaves))])
