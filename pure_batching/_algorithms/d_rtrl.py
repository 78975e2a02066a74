"""D_RTRL: a trace of the shape of each weight, which follows the diagonal of the hidden Jacobian."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._options import check_choice
from .._program import Jacobians, Params, Program, Signal
from .._relation import Relation
from ..errors import AlgorithmError
from ._diagonal_window import DiagonalRecord, factors_and_adjoint, linear_trace, uses
from ._hyperparameters import dtype_field
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
from ._signals import own_signals, past_hidden
from .base import (
    RULES,
    VJPS,
    Algorithm,
    Credit,
    Parts,
    add_gradients,
    credit_of,
)

# How many maxima of a trace are found side by side.
_MAXIMA = 4


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

    The published rule is complete: it adds what the loss of a step depends on past the new hidden states, the products
    `y` of weights and old states, with `K = dloss/dy` and `l = dloss/dh[t-1]` at fixed `h[t]`:

        grad[t] = sum_s L[t, s] eps[t, s] + sum_s l[t, s] eps[t-1, s] + x[t] (x) K[t]

    In a window, `c[t] = L[t] + l[t+1] + D[t+1]^T c[t+1]` then.

    The rule of brainscale 0.1.0 leaves both out. It divides by the largest magnitude, where it exceeds 1: first the new
    term, then the whole trace. It does so for each sample, and for each array of a weight and each hidden group alone:

        f[t]    = 1 / max(1, max |x[t] (x) df[t]|)
        g[t]    = 1 / max(1, max |D[t] eps[t-1] + f[t] x[t] (x) df[t]|)
        eps[t]  = g[t] (D[t] eps[t-1] + f[t] x[t] (x) df[t])
        grad[t] = sum_s L[t, s] eps[t, s]

    The factors need the trace of every step. Given the factors, the gradient is linear again:

        c[t] = L[t] + g[t+1] D[t+1]^T c[t+1],   c[K] = L[K]
        grad = sum_t x[t] (x) sum_s g[t] f[t] df[t, s] c[t, s] + sum_s eps[0, s] (g[1] D[1]^T c[1])[s]

    A trace is `[*w.shape, ns]` where an element of the weight reaches one hidden element, as in a product with a
    matrix, dense or sparse. Where it reaches several there is a number for each: `[*places, *kernel, ns]` for a
    convolution, `[out, *B.shape, ns]` for the first factor of LoRA. `pb.explain` says the shapes and their bytes.

    Source: Wang et al., "BrainScale: Enabling Scalable Online Learning in Spiking Neural Networks" (2024),
    doi:10.1101/2024.09.24.614728, and brainscale 0.1.0, `ParamDimVjpAlgorithm`.

    Attributes:
      rule: `"brainscale"`, the numbers of brainscale 0.1.0, in every strategy those of each sample alone.
        `"published"`, where also a path from one hidden state of a group to another within a step counts once.
      vjp: `"single-step"`, as above; `"multi-step"`, the exact gradient inside each window of `sequence_grad`, and the
        trace for the steps before the window.
      trace_dtype: the float type in which a carry keeps the traces; None for that in which they are computed.

    Raises:
      AlgorithmError: an unknown rule or vjp; a `trace_dtype` that is no float type.
    """

    rule: str = eqx.field(static=True, default="brainscale")
    vjp: str = eqx.field(static=True, default="single-step")
    trace_dtype: Any = dtype_field()

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
    def is_complete(self) -> bool:
        """With the published rule."""
        return self.rule == "published"

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
        """The trace of the default rule, whose factors need it now; `window_trace` makes the published one."""
        del count
        record = DiagonalRecord(jacobians.xs, jacobians.dfs, jacobians.diagonals, signal, {}, {})
        if self.normalises:
            trace, feeds = _normalised_step(program, params, trace, jacobians)
            return trace, record._replace(feeds=feeds, gains=jax.tree.map(lambda scale: 1 / scale, trace.scales))
        own = own_signals(program, jacobians, signal)
        past = past_hidden(program, jacobians, own, signal)
        return trace, record._replace(signal=Signal(own, signal.old, past))

    def window_trace(
        self,
        program: Program,
        params: Params,
        trace_before: ParameterTrace | None,
        trace_after: ParameterTrace,
        records: DiagonalRecord,
    ) -> ParameterTrace:
        """The trace of the last step with the default rule, else that of all steps in one contraction."""
        return trace_after if self.normalises else linear_trace(program, params, trace_before, records)

    def window_gradient(
        self, program: Program, params: Params, trace_before: ParameterTrace | None, records: DiagonalRecord
    ) -> Parts:
        """The reverse scan of the class's docstring: one for each group or, with scale factors, one for each leaf."""
        del params
        factors, back = factors_and_adjoint(program, records)
        return Parts((factors,), {}, () if trace_before is None else back)

    def trace_product(
        self, program: Program, params: Params, trace: ParameterTrace, of_trace: dict[str, dict[str, jax.Array]]
    ) -> Params:
        """`sum_s L eps`, by weight, with a signal for each leaf of each link."""
        parts = []
        for relation, link in uses(program):
            scales = trace.scales.get(link.name, {})
            signal = {name: own / scales[name] if scales else own for name, own in of_trace[link.name].items()}
            weight = params[relation.weight]
            parts.append({relation.weight: gradient(relation, weight, signal, trace.weights[link.name])})
        return add_gradients(*parts)

    def gradient_of_trace(
        self, program: Program, params: Params, trace: ParameterTrace, signal: Signal, count: jax.Array
    ) -> Parts:
        """The contraction of the trace with the signal."""
        del params, trace, count
        each = {k.name: {leaf.name: k.seen(signal.new[k.group.name]) for leaf in r.leaves} for r, k in uses(program)}
        return Parts((), {}, each)

    def traces_of(self, relation: Relation, trace: ParameterTrace) -> dict[str, jax.Array]:
        """A trace for each array of the weight and each hidden group."""
        return {
            f"{name} of {link.group.name}": array
            for link in relation.links
            for name, array in trace.weights[link.name].items()
        }


def _normalised_step(
    program: Program, params: Params, trace: ParameterTrace, jacobians: Jacobians
) -> tuple[ParameterTrace, Leaves]:
    """The trace before its division by `1/g[t]`, with that divisor beside it in `scales`, and the factors `f[t]`.

    The division waits for the next step, where it is done to the small `D` instead: a trace is then read and written
    once a step.
    """
    weights: Leaves = {}
    feeds: Leaves = {}
    for relation, link in uses(program):
        x = None if relation.x is None else jacobians.xs[relation.x.name]
        added, largest = _instantaneous(relation, params, x, jacobians.dfs[link.df])
        feeds[link.name] = {name: 1 / number for name, number in largest.items()}
        weights[link.name] = {}
        for leaf in relation.leaves:
            matrix = link.seen(jacobians.diagonals[link.group.name], tail=2) / trace.scales[link.name][leaf.name]
            carried = propagated(relation, leaf, matrix, trace.weights[link.name][leaf.name])
            weights[link.name][leaf.name] = carried + feeds[link.name][leaf.name] * added[leaf.name]
    return ParameterTrace(weights, jax.tree.map(_largest, weights)), feeds


def _instantaneous(
    relation: Relation, params: Params, x: jax.Array | None, df: jax.Array
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """`x (x) df` of one step, and the divisor `1/f`, by leaf.

    The largest entry of an outer product is the product of two largest entries, so that a matrix is not read for it.
    """
    added = outer(relation, params, None if x is None else x[None], df[None])
    largest = {name: _largest(term) for name, term in added.items()}
    for leaf in relation.leaves:
        if x is not None and is_outer_product(leaf):
            added[leaf.name] = beside(leaf, x) * placed(relation, leaf, df)
            largest[leaf.name] = jnp.maximum(jnp.abs(x).max(initial=0) * jnp.abs(df).max(initial=0), 1)
    return added, largest


def _largest(array: jax.Array) -> jax.Array:
    """The divisor that leaves no entry above 1: the largest magnitude, and at least 1.

    A maximum waits for the one before it. So there are several, each of a part of the array, which XLA finds side by
    side in one pass.
    """
    flat = jax.lax.stop_gradient(array).reshape(-1)
    size = len(flat) // _MAXIMA
    parts, left = [flat[i * size : (i + 1) * size] for i in range(_MAXIMA)], flat[_MAXIMA * size :]
    found = jax.lax.reduce(parts, [jnp.zeros((), array.dtype)] * _MAXIMA, _larger, (0,))
    return jnp.abs(jnp.concatenate([jnp.stack(found), left])).max(initial=1)


def _larger(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> list[jax.Array]:
    """The larger magnitude of each pair."""
    return [jnp.maximum(jnp.abs(a), jnp.abs(b)) for a, b in zip(one, other, strict=True)]
