"""The algebra of a window of D_RTRL: the reverse scan of the gradient, and the trace that goes out."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._program import Params, Program, Signal
from .._relation import Group, Link, Relation
from ._parameter_trace import Leaves, ParameterTrace, outer, propagated, zeros
from .base import Factors, apply_matrix, apply_transposed

# A pass over the trace for each step costs less than one contraction, and holds no second trace, up to so many steps.
IN_TURN = 16


class DiagonalRecord(NamedTuple):
    """The record that a step leaves for the end of its window.

    Attributes:
      xs, dfs, diagonals: of the step's Jacobians.
      signal: of the step, with the states of each group apart.
      feeds, gains: the scale factors `f` and `g` of D_RTRL's docstring, by link and leaf, `[]` each; empty for the
        published rule.
    """

    xs: dict[str, jax.Array]
    dfs: dict[str, jax.Array]
    diagonals: dict[str, jax.Array]
    signal: Signal
    feeds: Leaves
    gains: Leaves


def uses(program: Program) -> list[tuple[Relation, Link]]:
    """Each use of a weight with each hidden group that it reaches."""
    return [(relation, link) for relation in program.relations for link in relation.links]


class Adjoint(NamedTuple):
    """What a leaf of a weight gets from the steps of a window.

    Attributes:
      own: `g f c` of each step, `[K, *varshape, ns]`.
      before: `g[1] D[1]^T c[1] + l[1]`, which the trace before the window is multiplied with, `[*varshape, ns]`.
    """

    own: jax.Array
    before: jax.Array


def factors_and_adjoint(program: Program, records: DiagonalRecord) -> tuple[Factors, dict[str, dict[str, jax.Array]]]:
    """The factors `sum_s g f df c + K` of each relation, and `g[1] D[1]^T c[1] + l[1]` by link and leaf."""
    adjoints = {link: by for group in program.groups for link, by in _of_group(program, group, records).items()}
    dys: dict[str, tuple[jax.Array, ...]] = {}
    for relation in program.relations:
        # Without scale factors, all leaves of a weight have one `dy`.
        leaves = relation.leaves if records.gains else relation.leaves[:1]
        past = records.signal.products.get(relation.end)
        more = [] if past is None else [past]
        columns = (
            [(records.dfs[k.df] * k.seen(adjoints[k.name][leaf.name].own)).sum(-1) for k in relation.links]
            for leaf in leaves
        )
        dys[relation.name] = tuple(functools.reduce(jnp.add, (*column, *more)) for column in columns)
    back = {k.name: {leaf: k.seen(one.before) for leaf, one in adjoints[k.name].items()} for k in program.links()}
    return Factors(records.xs, dys), back


def _of_group(program: Program, group: Group, records: DiagonalRecord) -> dict[str, dict[str, Adjoint]]:
    """The adjoints of every leaf that reaches a group, by link and leaf."""
    ends = [(k.name, leaf.name) for r, k in uses(program) if k.group.name == group.name for leaf in r.leaves]
    diagonals, signal = records.diagonals[group.name], records.signal.new[group.name]
    old = records.signal.old.get(group.name)
    if records.gains:
        gains = [records.gains[link][leaf] for link, leaf in ends]
        feeds = [records.feeds[link][leaf] for link, leaf in ends]
        plain = _adjoints(diagonals, signal, old, gains)
        found = [
            one._replace(own=one.own * _lifted(gain * feed, one.own))
            for one, gain, feed in zip(plain, gains, feeds, strict=True)
        ]
    else:
        found = _adjoints(diagonals, signal, old, [None]) * len(ends)
    by_link: dict[str, dict[str, Adjoint]] = {}
    for (link, leaf), adjoint in zip(ends, found, strict=True):
        by_link.setdefault(link, {})[leaf] = adjoint
    return by_link


def _lifted(numbers: jax.Array, array: jax.Array) -> jax.Array:
    """Numbers `[K]` with axes of size one, so that they multiply an array `[K, ...]`."""
    return numbers.reshape(-1, *(1 for _ in array.shape[1:]))


def _adjoints(
    diagonals: jax.Array, signal: jax.Array, old: jax.Array | None, gains: Sequence[jax.Array | None]
) -> list[Adjoint]:
    """`c[t] = L[t] + l[t+1] + g[t+1] D[t+1]^T c[t+1]` for all `t`, and `g[1] D[1]^T c[1] + l[1]`, for each `g`.

    Without `old`, `l` is zero; None among the gains stands for ones. One scan serves all gains, since all read `D`.
    """

    def back(after: list[jax.Array], step: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        diagonal, own, read, gain = step
        adjoints = [own + one for one in after]
        before = [apply_transposed(diagonal, one) for one in adjoints]
        scaled = [one if g is None else g * one for one, g in zip(before, gain, strict=True)]
        return [one if read is None else one + read for one in scaled], adjoints

    start = [jnp.zeros_like(signal[0]) for _ in gains]
    first, adjoints = jax.lax.scan(back, start, (diagonals, signal, old, list(gains)), reverse=True)
    return [Adjoint(own, before) for own, before in zip(adjoints, first, strict=True)]


def linear_trace(
    program: Program, params: Params, trace_before: ParameterTrace | None, records: DiagonalRecord
) -> ParameterTrace:
    """The trace after a window: of a few steps one after the other, of many in one contraction."""
    steps = {diagonals.shape[0] for diagonals in records.diagonals.values()}
    if steps and max(steps) <= IN_TURN:
        return _in_turn(program, params, trace_before, records)
    return _at_once(program, params, trace_before, records)


def _in_turn(
    program: Program, params: Params, trace_before: ParameterTrace | None, records: DiagonalRecord
) -> ParameterTrace:
    """`eps[t] = D[t] eps[t-1] + x[t] (x) df[t]` for each `t`: each step is one pass over the trace, in place."""

    def one(weights: Leaves, record: DiagonalRecord) -> tuple[Leaves, None]:
        after: Leaves = {}
        for relation, link in uses(program):
            matrix = link.seen(record.diagonals[link.group.name], tail=2)
            x = None if relation.x is None else record.xs[relation.x.name][None]
            new, old = outer(relation, params, x, record.dfs[link.df][None]), weights[link.name]
            after[link.name] = {
                leaf.name: propagated(relation, leaf, matrix, old[leaf.name]) + new[leaf.name]
                for leaf in relation.leaves
            }
        return after, None

    start = zeros(program) if trace_before is None else trace_before.weights
    return ParameterTrace(jax.lax.scan(one, start, records)[0], {})


def _at_once(
    program: Program, params: Params, trace_before: ParameterTrace | None, records: DiagonalRecord
) -> ParameterTrace:
    """`eps[K] = P[0] eps[0] + sum_t x[t] (x) P[t] df[t]` with `P[t] = D[K] ... D[t+1]`."""
    products = {name: _products(diagonals) for name, diagonals in records.diagonals.items()}
    weights: Leaves = {}
    for relation, link in uses(program):
        whole, later = (link.seen(product, tail=2) for product in products[link.group.name])
        x = None if relation.x is None else records.xs[relation.x.name]
        new = outer(relation, params, x, apply_matrix(later, records.dfs[link.df]))
        if trace_before is not None:
            old = trace_before.weights[link.name]
            new = {k.name: new[k.name] + propagated(relation, k, whole, old[k.name]) for k in relation.leaves}
        weights[link.name] = new
    return ParameterTrace(weights, {})


def _products(diagonals: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`P[0]`, `[..., ns, ns]`, and `P[t]` for each step, `[K, ..., ns, ns]`."""

    def back(later: jax.Array, diagonal: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (later[..., :, :, None] * diagonal[..., None, :, :]).sum(-2), later

    ns = diagonals.shape[-1]
    identity = jnp.broadcast_to(jnp.eye(ns, dtype=diagonals.dtype), diagonals.shape[1:])
    return jax.lax.scan(back, identity, diagonals, reverse=True)
