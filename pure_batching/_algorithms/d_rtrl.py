"""D_RTRL: a trace of the shape of each weight, which follows the diagonal of the hidden Jacobian."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._options import check_choice
from .._program import Jacobians, Link, Params, Program, Relation
from ..errors import AlgorithmError
from ._parameter_trace import (
    Leaves,
    ParameterTrace,
    beside,
    gradient,
    is_outer_product,
    outer,
    placed,
    propagated,
    zeros,
)
from .base import (
    RULES,
    VJPS,
    Algorithm,
    Credit,
    Factors,
    Signal,
    WindowEnd,
    add_gradients,
    apply_matrix,
    apply_transposed,
    credit_of,
    own_signal,
)


class DiagonalRecord(NamedTuple):
    """The record that a step leaves for the end of its window.

    Attributes:
      xs, dfs, diagonals: of the step's Jacobians.
      signal: `dloss/dh` of each group.
      feeds, gains: the scale factors `f` and `g` of D_RTRL's docstring, by link and leaf, `[]` each; empty for the
        published rule.
    """

    xs: dict[str, jax.Array]
    dfs: dict[str, jax.Array]
    diagonals: dict[str, jax.Array]
    signal: Signal
    feeds: Leaves
    gains: Leaves


class D_RTRL(Algorithm):
    """Diagonally approximated real-time recurrent learning.

    With `D = dh[t]/dh[t-1]` (diagonal), `df = dh/dy`, `L = dloss/dh` and `s` the states of a hidden group, the
    published rule is

        eps[t]  = D[t] eps[t-1] + x[t] (x) df[t]
        grad[t] = sum_s L[t, s] eps[t, s]

    A window of steps `1..K` starts with the trace `eps[0]`. Since `eps[t]` is linear in `eps[0]` and in every
    `x[t] (x) df[t]`, the sum of `grad[t]` over the window comes from one reverse scan, without the traces in between:

        c[t] = L[t] + D[t+1]^T c[t+1],   c[K] = L[K]
        grad = sum_t x[t] (x) sum_s df[t, s] c[t, s] + sum_s eps[0, s] (D[1]^T c[1])[s]

    The rule of brainscale 0.1.0 divides by the largest magnitude, where it exceeds 1: first the new term, then the
    whole trace. It does so for each sample, and for each array of a weight and each hidden group alone:

        f[t]    = 1 / max(1, max |x[t] (x) df[t]|)
        g[t]    = 1 / max(1, max |D[t] eps[t-1] + f[t] x[t] (x) df[t]|)
        eps[t]  = g[t] (D[t] eps[t-1] + f[t] x[t] (x) df[t])
        grad[t] = sum_s L[t, s] eps[t, s]

    The factors need the trace of every step. Given the factors, the gradient is linear again:

        c[t] = L[t] + g[t+1] D[t+1]^T c[t+1],   c[K] = L[K]
        grad = sum_t x[t] (x) sum_s g[t] f[t] df[t, s] c[t, s] + sum_s eps[0, s] (g[1] D[1]^T c[1])[s]

    Source: Wang et al., "BrainScale: Enabling Scalable Online Learning in Spiking Neural Networks" (2024),
    doi:10.1101/2024.09.24.614728, and brainscale 0.1.0, `ParamDimVjpAlgorithm`.

    Attributes:
      rule: `"brainscale"`, the numbers of brainscale 0.1.0, in every strategy those of each sample alone.
        `"published"`, where also a path from one hidden state of a group to another within a step counts once.
      vjp: `"single-step"`, as above; `"multi-step"`, the exact gradient inside each window of `sequence_grad`, and the
        trace for the steps before the window.

    Raises:
      AlgorithmError: an unknown rule or vjp.
    """

    rule: str = eqx.field(static=True, default="brainscale")
    vjp: str = eqx.field(static=True, default="single-step")

    def __check_init__(self) -> None:
        check_choice("rule", self.rule, RULES, AlgorithmError)
        check_choice("vjp", self.vjp, VJPS, AlgorithmError)

    @property
    def normalises(self) -> bool:
        """Whether the trace is divided by its largest entry."""
        return self.rule == "brainscale"

    @property
    def credit(self) -> Credit:
        """By backpropagation inside the window with `vjp="multi-step"`, else by the trace."""
        return credit_of(self.vjp)

    @property
    def recomputes(self) -> bool:
        """No: the steps of a window are kept."""
        return False

    def init(self, program: Program) -> ParameterTrace:
        """Zeros, to be divided by 1."""
        weights = zeros(program)
        scales = jax.tree.map(lambda eps: jnp.ones((), eps.dtype), weights) if self.normalises else {}
        return ParameterTrace(weights, scales)

    def step(
        self,
        program: Program,
        params: Params,
        trace: ParameterTrace,
        jacobians: Jacobians,
        signal: Signal,
        count: jax.Array,
    ) -> tuple[ParameterTrace, DiagonalRecord]:
        """The trace of the default rule, whose factors need it now; `finish_window` makes the published trace."""
        del count
        record = DiagonalRecord(jacobians.xs, jacobians.dfs, jacobians.diagonals, signal, {}, {})
        if self.normalises:
            trace, feeds = _normalised_step(program, params, trace, jacobians)
            return trace, record._replace(feeds=feeds, gains=jax.tree.map(lambda scale: 1 / scale, trace.scales))
        own = {group.name: own_signal(group, jacobians, signal[group.name]) for group in program.groups}
        return trace, record._replace(signal=own)

    def finish_window(
        self,
        program: Program,
        params: Params,
        trace_before: ParameterTrace | None,
        trace_after: ParameterTrace,
        records: DiagonalRecord,
    ) -> WindowEnd:
        """The reverse scan of the class's docstring: one for each group or, with scale factors, one for each leaf."""
        factors, back = _factors_and_adjoint(program, records)
        dense = {} if trace_before is None else _dense(program, params, trace_before, back)
        trace = trace_after if self.normalises else _linear_trace(program, params, trace_before, records)
        return WindowEnd(trace, (factors,), dense)

    def gradient_of_trace(
        self, program: Program, params: Params, trace: ParameterTrace, signal: Signal, count: jax.Array
    ) -> tuple[tuple[Factors, ...], Params]:
        """The contraction of the trace with the signal."""
        del count
        each = {k.name: {leaf.name: signal[k.group.name] for leaf in r.leaves} for r, k in _uses(program)}
        return (), _dense(program, params, trace, each)

    def traces_of(self, relation: Relation, trace: ParameterTrace) -> dict[str, jax.Array]:
        """A trace for each array of the weight and each hidden group."""
        return {
            f"{name} of {link.group.name}": array
            for link in relation.links
            for name, array in trace.weights[link.name].items()
        }


def _uses(program: Program) -> list[tuple[Relation, Link]]:
    return [(relation, link) for relation in program.relations for link in relation.links]


def _normalised_step(
    program: Program, params: Params, trace: ParameterTrace, jacobians: Jacobians
) -> tuple[ParameterTrace, Leaves]:
    """The trace before its division by `1/g[t]`, with that divisor beside it in `scales`, and the factors `f[t]`.

    The division waits for the next step, where it is done to the small `D` instead: a trace is then read and written
    once a step.
    """
    weights: Leaves = {}
    feeds: Leaves = {}
    for relation, link in _uses(program):
        x = None if relation.x is None else jacobians.xs[relation.x.name]
        added, largest = _instantaneous(relation, params[relation.weight], x, jacobians.dfs[link.name])
        feeds[link.name] = {name: 1 / number for name, number in largest.items()}
        weights[link.name] = {}
        for leaf in relation.leaves:
            matrix = jacobians.diagonals[link.group.name] / trace.scales[link.name][leaf.name]
            carried = propagated(relation, leaf, matrix, trace.weights[link.name][leaf.name])
            weights[link.name][leaf.name] = carried + feeds[link.name][leaf.name] * added[leaf.name]
    return ParameterTrace(weights, jax.tree.map(_largest, weights)), feeds


def _instantaneous(
    relation: Relation, weight: Any, x: jax.Array | None, df: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """`x (x) df` of one step, and the divisor `1/f`, by leaf.

    The largest entry of an outer product is the product of two largest entries, so that a matrix is not read for it.
    """
    added = outer(relation, weight, None if x is None else x[None], df[None])
    largest = {name: _largest(term) for name, term in added.items()}
    for leaf in relation.leaves:
        if x is not None and is_outer_product(leaf, x):
            added[leaf.name] = beside(leaf, x) * placed(leaf, df, 1)
            largest[leaf.name] = jnp.maximum(jnp.abs(x).max() * jnp.abs(df).max(), 1)
    return added, largest


def _largest(array: jax.Array) -> jax.Array:
    """The divisor that leaves no entry above 1: the largest magnitude, and at least 1.

    XLA reads the array once, at the speed of memory, if the first axis is reduced alone and without `abs`.
    """
    return jnp.maximum(jnp.maximum(array.max(0), -array.min(0)).max(), 1)


def _factors_and_adjoint(program: Program, records: DiagonalRecord) -> tuple[Factors, dict[str, dict[str, jax.Array]]]:
    """The factors `sum_s g f df c` of each relation, and `g[1] D[1]^T c[1]` by link and leaf."""
    dys: dict[str, tuple[jax.Array, ...]] = {}
    back: dict[str, dict[str, jax.Array]] = {}
    for relation in program.relations:
        terms = []
        for link in relation.links:
            adjoints = _adjoints(relation, link, records)
            terms.append([(records.dfs[link.name] * adjoint).sum(-1) for adjoint, _ in adjoints])
            last = [first for _, first in adjoints]
            spread = last * len(relation.leaves) if len(last) == 1 else last
            back[link.name] = {leaf.name: first for leaf, first in zip(relation.leaves, spread, strict=True)}
        dys[relation.name] = tuple(functools.reduce(jnp.add, column) for column in zip(*terms, strict=True))
    return Factors(records.xs, dys), back


def _adjoints(relation: Relation, link: Link, records: DiagonalRecord) -> list[tuple[jax.Array, jax.Array]]:
    """`g f c` and `g[1] D[1]^T c[1]`: one pair for all leaves without scale factors, else one for each leaf."""
    diagonals, signal = records.diagonals[link.group.name], records.signal[link.group.name]
    if not records.gains:
        return [_adjoint(diagonals, signal)]
    found = []
    for leaf in relation.leaves:
        gain, feed = records.gains[link.name][leaf.name], records.feeds[link.name][leaf.name]
        adjoint, first = _adjoint(diagonals * _lifted(gain, diagonals), signal)
        found.append((adjoint * _lifted(gain * feed, adjoint), first))
    return found


def _lifted(numbers: jax.Array, array: jax.Array) -> jax.Array:
    """Numbers `[K]` with axes of size one, so that they multiply an array `[K, ...]`."""
    return numbers.reshape(-1, *(1 for _ in array.shape[1:]))


def _adjoint(diagonals: jax.Array, signal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`c[t] = L[t] + D[t+1]^T c[t+1]` for all `t`, and `D[1]^T c[1]`."""

    def back(after: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        diagonal, own = step
        adjoint = own + after
        return apply_transposed(diagonal, adjoint), adjoint

    first, adjoints = jax.lax.scan(back, jnp.zeros_like(signal[0]), (diagonals, signal), reverse=True)
    return adjoints, first


def _dense(program: Program, params: Params, trace: ParameterTrace, back: dict[str, dict[str, jax.Array]]) -> Params:
    """The gradient by the trace itself, `sum_s L eps`, by weight."""
    parts = []
    for relation, link in _uses(program):
        scales = trace.scales.get(link.name, {})
        signal = {name: own / scales[name] if scales else own for name, own in back[link.name].items()}
        weight = params[relation.weight]
        parts.append({relation.weight: gradient(relation, weight, signal, trace.weights[link.name])})
    return add_gradients(*parts)


def _linear_trace(
    program: Program, params: Params, trace_before: ParameterTrace | None, records: DiagonalRecord
) -> ParameterTrace:
    """`eps[K] = P[0] eps[0] + sum_t x[t] (x) P[t] df[t]` with `P[t] = D[K] ... D[t+1]`, in one contraction."""
    products = {name: _products(diagonals) for name, diagonals in records.diagonals.items()}
    weights: Leaves = {}
    for relation, link in _uses(program):
        whole, later = products[link.group.name]
        x = None if relation.x is None else records.xs[relation.x.name]
        new = outer(relation, params[relation.weight], x, apply_matrix(later, records.dfs[link.name]))
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
