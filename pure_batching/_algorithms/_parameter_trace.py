"""Traces of the shape of a weight, and their algebra with matrices that act element by element on hidden states.

The trace of an aligned leaf is `[*w.shape, ns]`: a weight element reaches one element of the hidden states. Any other
leaf needs a number for each element of both, `[*y.shape, *w.shape, ns]`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._program import Group, Program, Relation, WeightLeaf
from .base import arrays_of, map_operation

# By the name of the link, then by the name of the weight's leaf.
Leaves = dict[str, dict[str, jax.Array]]


class ParameterTrace(NamedTuple):
    """The trace of D_RTRL.

    Attributes:
      weights: `dh/dw` along the diagonal, by link and leaf.
      scales: the divisor of each trace, `[...]`, whose division is still to be done; empty for a rule without
        normalisation.
    """

    weights: Leaves
    scales: Leaves


def zeros(program: Program) -> Leaves:
    """Traces of zeros, by link and leaf."""
    return {
        link.name: {
            leaf.name: jnp.zeros(_shape(relation, leaf, link.group), link.group.dtype) for leaf in relation.leaves
        }
        for relation in program.relations
        for link in relation.links
    }


def _shape(relation: Relation, leaf: WeightLeaf, group: Group) -> tuple[int, ...]:
    spread = relation.y.shape if leaf.axes is None else ()
    return (*spread, *leaf.spec.shape, group.num_states)


def placed(leaf: WeightLeaf, values: jax.Array, rank: int) -> jax.Array:
    """Broadcast `values`, `[*y.shape, ...]`, from the axes of `y` onto the axes of the leaf.

    Args:
      leaf: an array of the weight.
      values: of the hidden elements.
      rank: the number of axes of `y`.
    """
    lead, rest, axes = values.shape[:rank], values.shape[rank:], leaf.axes
    if axes is None:
        return values.reshape(*lead, *(1 for _ in leaf.spec.shape), *rest)
    places = [-1 if axis is None else axis for axis in axes]  # an axis of size one may go anywhere
    ordered = values.transpose(*sorted(range(rank), key=places.__getitem__), *range(rank, values.ndim))
    sizes = dict(zip(axes, lead, strict=True))
    return ordered.reshape(*(sizes.get(axis, 1) for axis in range(len(leaf.spec.shape))), *rest)


def is_outer_product(leaf: WeightLeaf, x: jax.Array) -> bool:
    """Whether the trace of one step is `x (x) df`, entry by entry a product of two numbers."""
    return leaf.is_factor and leaf.axes in ((0,), (1,)) and len(leaf.spec.shape) == 2 and x.ndim == 1  # noqa: PLR2004


def beside(leaf: WeightLeaf, x: jax.Array) -> jax.Array:
    """The input `[in]` of such a leaf, on the axis of the leaf that it belongs to: `[in, 1, 1]` or `[1, in, 1]`."""
    return x[None, :, None] if leaf.axes == (0,) else x[:, None, None]


def outer(relation: Relation, weight: Any, x: jax.Array | None, values: jax.Array) -> dict[str, jax.Array]:
    """The sum over `K` of `values dy/dw`, by leaf: a trace.

    Args:
      relation: the use of the weight.
      weight: its value.
      x: `[K, *x.shape]`, None for an element-wise weight.
      values: `[K, *y.shape, ns]`.
    """
    arrays = arrays_of(relation, weight)

    def one_state(column: jax.Array) -> list[jax.Array]:
        def summed(*leaves: jax.Array) -> jax.Array:
            return (map_operation(relation, x, leaves, column.shape[0]) * column).sum(0)

        y, pullback = jax.vjp(summed, *arrays)
        pulled = pullback(jnp.ones_like(y))
        spread = [i for i, leaf in enumerate(relation.leaves) if leaf.axes is None]
        full = dict(zip(spread, jax.jacrev(summed, spread)(*arrays), strict=True)) if spread else {}
        return [full.get(i, array) for i, array in enumerate(pulled)]

    columns = jax.vmap(one_state, in_axes=-1, out_axes=-1)(values)
    return {leaf.name: array for leaf, array in zip(relation.leaves, columns, strict=True)}


def propagated(relation: Relation, leaf: WeightLeaf, matrix: jax.Array, trace: jax.Array) -> jax.Array:
    """`D eps`: matrices `[*y.shape, ns, ns]` on a leaf's trace."""
    return (placed(leaf, matrix, len(relation.y.shape)) * trace[..., None, :]).sum(-1)


def gradient(relation: Relation, weight: Any, signal: dict[str, jax.Array], trace: dict[str, jax.Array]) -> Any:
    """`sum_s L eps` of each leaf, in the weight's structure, from a signal `[*y.shape, ns]` for each."""
    rank = len(relation.y.shape)
    arrays = []
    for leaf in relation.leaves:
        product = (placed(leaf, signal[leaf.name], rank) * trace[leaf.name]).sum(-1)
        arrays.append(product.sum(tuple(range(rank))) if leaf.axes is None else product)
    return jax.tree.unflatten(jax.tree.structure(weight), arrays)


def divided(trace: ParameterTrace) -> Leaves:
    """The trace divided by its scales, `[B, ...]` or of one sample."""

    def quotient(eps: jax.Array, scale: jax.Array) -> jax.Array:
        return eps / scale.reshape(*scale.shape, *(1 for _ in eps.shape[scale.ndim :]))

    return jax.tree.map(quotient, trace.weights, trace.scales) if trace.scales else trace.weights
