"""A scan that stacks nothing that is the same in every step."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from .._reader.jaxprs import ClosedJaxpr, Var, evaluate, inner
from .._reader.pieces import cut_piece, order_of, tainted_by
from .._tree import Tree

State = TypeVar("State")


def scan(step: Callable[[State, Any], tuple[State, Tree]], start: State, xs: Tree) -> tuple[State, Tree]:
    """`jax.lax.scan`, whose results that depend on neither the state nor `xs` are made once.

    They come back as a broadcast `[K, ...]`, which XLA makes where it is read. The derivatives of a step are often
    constant: those of a leak, or of a state by an input that is added to it.
    """
    first = jax.tree.map(lambda x: x[0], xs)
    made, (state, results) = jax.make_jaxpr(step, return_shape=True)(start, first)
    jaxpr, consts = inner(made)
    count = len(jax.tree.leaves(state))
    stacked, constant = _parted(jaxpr, jaxpr.outvars[count:])

    def lean(state: State, x: Any) -> tuple[State, list[jax.Array]]:
        found = evaluate(made, *jax.tree.leaves((state, x)))
        return jax.tree.unflatten(jax.tree.structure(state), found[:count]), [found[count + i] for i in stacked]

    after, ys = jax.lax.scan(lean, start, xs)
    outputs: list[Any] = [jaxpr.outvars[count + i] for i in constant]
    piece = cut_piece(jaxpr.eqns, (), outputs, order_of(jaxpr))
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    once = evaluate(ClosedJaxpr(piece.jaxpr, ()), *(values[var] for var in piece.free))
    length = jax.tree.leaves(xs)[0].shape[0]
    whole = [jnp.broadcast_to(value, (length, *value.shape)) for value in once]
    leaves = dict(zip([*stacked, *constant], [*ys, *whole], strict=True))
    return after, jax.tree.unflatten(jax.tree.structure(results), [leaves[i] for i in range(len(leaves))])


def _parted(jaxpr: Any, results: list[Any]) -> tuple[list[int], list[int]]:
    """The places of results that may change from step to step, and of those that do not."""
    with_effects = [var for eqn in jaxpr.eqns if eqn.effects for var in eqn.outvars]
    changing = tainted_by(jaxpr.eqns, [*jaxpr.invars, *with_effects])
    constant = [i for i, var in enumerate(results) if isinstance(var, Var) and var not in changing]
    return [i for i in range(len(results)) if i not in constant], constant
