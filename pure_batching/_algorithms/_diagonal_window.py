"""The algebra of a window of D_RTRL: the reverse scan of the gradient, and the trace that goes out."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._program import Params, Program, Signal
from .._relation import Link, Relation
from ._parameter_trace import Leaves, ParameterTrace, outer, propagated
from .base import Factors, apply_matrix, apply_transposed


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


def factors_and_adjoint(program: Program, records: DiagonalRecord) -> tuple[Factors, dict[str, dict[str, jax.Array]]]:
    """The factors `sum_s g f df c + K` of each relation, and `g[1] D[1]^T c[1] + l[1]` by link and leaf."""
    dys: dict[str, tuple[jax.Array, ...]] = {}
    back: dict[str, dict[str, jax.Array]] = {}
    common = {} if records.gains else _of_groups(records)
    for relation in program.relations:
        terms = []
        for link in relation.links:
            adjoints = _adjoints(relation, link, records) if records.gains else [common[link.group.name]]
            terms.append([(records.dfs[link.df] * link.seen(adjoint)).sum(-1) for adjoint, _ in adjoints])
            last = [link.seen(first) for _, first in adjoints]
            spread = last * len(relation.leaves) if len(last) == 1 else last
            back[link.name] = {leaf.name: first for leaf, first in zip(relation.leaves, spread, strict=True)}
        past = records.signal.products.get(relation.end)
        more = () if past is None else (past,)
        dys[relation.name] = tuple(functools.reduce(jnp.add, (*column, *more)) for column in zip(*terms, strict=True))
    return Factors(records.xs, dys), back


def _of_groups(records: DiagonalRecord) -> dict[str, tuple[jax.Array, jax.Array]]:
    """`c` and `D[1]^T c[1] + l[1]` of each group, which all uses share without scale factors."""
    new, old = records.signal.new, records.signal.old
    return {name: _adjoint(diagonals, new[name], old.get(name)) for name, diagonals in records.diagonals.items()}


def _adjoints(relation: Relation, link: Link, records: DiagonalRecord) -> list[tuple[jax.Array, jax.Array]]:
    """`g f c` and `g[1] D[1]^T c[1] + l[1]` for each leaf."""
    diagonals, signal = records.diagonals[link.group.name], records.signal.new[link.group.name]
    old = records.signal.old.get(link.group.name)
    found = []
    for leaf in relation.leaves:
        gain, feed = records.gains[link.name][leaf.name], records.feeds[link.name][leaf.name]
        adjoint, first = _adjoint(diagonals * _lifted(gain, diagonals), signal, old)
        found.append((adjoint * _lifted(gain * feed, adjoint), first))
    return found


def _lifted(numbers: jax.Array, array: jax.Array) -> jax.Array:
    """Numbers `[K]` with axes of size one, so that they multiply an array `[K, ...]`."""
    return numbers.reshape(-1, *(1 for _ in array.shape[1:]))


def _adjoint(diagonals: jax.Array, signal: jax.Array, old: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """`c[t] = L[t] + l[t+1] + D[t+1]^T c[t+1]` for all `t`, and `D[1]^T c[1] + l[1]`; without `old`, `l` is zero."""

    def back(after: jax.Array, step: tuple[jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        diagonal, own, read = step
        adjoint = own + after
        before = apply_transposed(diagonal, adjoint)
        return before if read is None else before + read, adjoint

    first, adjoints = jax.lax.scan(back, jnp.zeros_like(signal[0]), (diagonals, signal, old), reverse=True)
    return adjoints, first


def linear_trace(
    program: Program, params: Params, trace_before: ParameterTrace | None, records: DiagonalRecord
) -> ParameterTrace:
    """`eps[K] = P[0] eps[0] + sum_t x[t] (x) P[t] df[t]` with `P[t] = D[K] ... D[t+1]`, in one contraction."""
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
