"""Traces of the shape of a weight, and their algebra with matrices that act element by element on hidden states.

The trace of a leaf is `[*w.shape, ns]` where a weight element reaches one element of the hidden states. Along the axes
of `y` on which it reaches several, the trace has a number for each: `[*spread, *w.shape, ns]`, at most `[*y.shape,
*w.shape, ns]`. For a convolution that is `[*places, *kernel, ns]`, since an output channel has a kernel of its own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._program import Params, Program
from .._reader.operations import call_of_places
from .._relation import Relation, Scattered, WeightLeaf
from .base import apply_matrix, arrays_of, held_arrays, map_operation, over_states

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
            leaf.name: jnp.zeros((*shape_of(relation, leaf), link.group.num_states), link.group.dtype)
            for leaf in relation.leaves
        }
        for relation in program.relations
        for link in relation.links
    }


def shape_of(relation: Relation, leaf: WeightLeaf) -> tuple[int, ...]:
    """`(*spread, *w.shape)`: of the trace of a leaf for one hidden state."""
    return (*(relation.y.shape[place] for place in relation.spread(leaf)), *leaf.spec.shape)


def placed(relation: Relation, leaf: WeightLeaf, values: jax.Array) -> jax.Array:
    """Lay values of the hidden elements out on the axes of a leaf's trace.

    Args:
      relation: the use of the weight.
      leaf: an array of it.
      values: `[*y.shape, ...]`.

    Returns:
      `[*spread, *w.shape, ...]`, with size one along each axis of `w` that no axis of `y` is aligned with.
    """
    rank, spread = len(leaf.axes), relation.spread(leaf)
    aligned: dict[int, int] = {}
    for place, axis in enumerate(leaf.axes):
        if isinstance(axis, Scattered):
            values = values.take(axis.places, axis=place, mode="clip")
        if axis is not None:
            aligned[axis.axis if isinstance(axis, Scattered) else axis] = place
    single = [place for place in range(rank) if place not in spread and place not in aligned.values()]
    order = [*spread, *single, *(aligned[axis] for axis in sorted(aligned))]
    ordered = values.transpose(*order, *range(rank, values.ndim))
    own = (size if axis in aligned else 1 for axis, size in enumerate(leaf.spec.shape))
    return ordered.reshape(*(values.shape[place] for place in spread), *own, *values.shape[rank:])


def is_outer_product(leaf: WeightLeaf) -> bool:
    """Whether the trace of one step is `x (x) df`, entry by entry a product of two numbers."""
    return leaf.is_factor and leaf.axes in ((0,), (1,))


def beside(leaf: WeightLeaf, x: jax.Array) -> jax.Array:
    """The input `[in]` of such a leaf, on the axis of the leaf that it belongs to: `[in, 1, 1]` or `[1, in, 1]`."""
    return x[None, :, None] if leaf.axes == (0,) else x[:, None, None]


def outer(relation: Relation, params: Params, x: jax.Array | None, values: jax.Array) -> dict[str, jax.Array]:
    """The sum over `K` of `values dy/dw`, by leaf: a trace.

    Args:
      relation: the use of the weight.
      params: trainable values by path.
      x: `[K, *x.shape]`, None for an element-wise weight.
      values: `[K, *y.shape, ns]`.
    """
    arrays, held = arrays_of(relation, params), held_arrays(relation, params)
    at_once = {i: arrays[i] for i, leaf in enumerate(relation.leaves) if not relation.spread(leaf)}

    def one_state(column: jax.Array) -> list[jax.Array]:
        def run(own: dict[int, jax.Array]) -> jax.Array:
            leaves = [own.get(i, array) for i, array in enumerate(arrays)]
            return map_operation(relation, x, (*leaves, *held), column.shape[0])

        (pulled,) = jax.vjp(run, at_once)[1](column)
        return [
            pulled[i] if i in pulled else _place_by_place(relation, leaf, (*arrays, *held), x, column)
            for i, leaf in enumerate(relation.leaves)
        ]

    columns = jax.vmap(one_state, in_axes=-1, out_axes=-1)(values)
    return {leaf.name: array for leaf, array in zip(relation.leaves, columns, strict=True)}


def _place_by_place(
    relation: Relation, leaf: WeightLeaf, arrays: tuple[jax.Array, ...], x: jax.Array | None, column: jax.Array
) -> jax.Array:
    """The sum over `K` of `column dy/dw`, of one state, for each place along the spread axes of `y`.

    Step by step, since the derivatives of a window side by side would be `K` times as large as the trace.
    """
    spread, index = relation.spread(leaf), relation.leaves.index(leaf)
    others = tuple(place for place in range(len(leaf.axes)) if place not in spread)

    def add(total: jax.Array, step: tuple[jax.Array | None, jax.Array]) -> tuple[jax.Array, None]:
        given, values = step

        def along(array: jax.Array) -> jax.Array:
            y = call_of_places(relation.op, given, *arrays[:index], array, *arrays[index + 1 :])
            return (y * values).sum(others)

        return total + jax.jacrev(along)(arrays[index]), None

    total, _ = jax.lax.scan(add, jnp.zeros(shape_of(relation, leaf), column.dtype), (x, column))
    return total


def propagated(relation: Relation, leaf: WeightLeaf, matrix: jax.Array, trace: jax.Array) -> jax.Array:
    """`D eps`: matrices `[*y.shape, ns, ns]` on a leaf's trace."""
    return apply_matrix(placed(relation, leaf, matrix), trace)


def gradient(relation: Relation, weight: Any, signal: dict[str, jax.Array], trace: dict[str, jax.Array]) -> Any:
    """`sum_s L eps` of each leaf, in the weight's structure, from a signal `[*y.shape, ns]` for each."""
    arrays = []
    for leaf in relation.leaves:
        product = over_states(placed(relation, leaf, signal[leaf.name]), trace[leaf.name])
        arrays.append(product.sum(tuple(range(len(relation.spread(leaf))))))
    return jax.tree.unflatten(jax.tree.structure(weight), arrays)


def divided(trace: ParameterTrace) -> Leaves:
    """The trace divided by its scales, `[B, ...]` or of one sample."""

    def quotient(eps: jax.Array, scale: jax.Array) -> jax.Array:
        return eps / scale.reshape(*scale.shape, *(1 for _ in eps.shape[scale.ndim :]))

    return jax.tree.map(quotient, trace.weights, trace.scales) if trace.scales else trace.weights
