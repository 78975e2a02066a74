"""The algorithm's functions of one sample, run for every sample, and the gradient of the traced weights."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import chex
import equinox as eqx
import jax

from .._algorithms.base import Parts, Trace, add_gradients, computed, contract, kept
from .._program import Jacobians, Params, Perturbation, Signal, States
from .once import constant_trace, depending, first_derivative
from .sums import accumulating_part
from .tiles import sum_of_samples

if TYPE_CHECKING:
    from .learner import Learner


def step_trace(
    learner: "Learner", params: Params, trace: Trace, jacobians: Jacobians, signal: Signal, count: jax.Array
) -> tuple[Trace, Any]:
    """`Algorithm.step` for every sample: the trace after the step, and the record for the end of the window."""
    algorithm, program = learner.algorithm, learner.program

    def step(params: Params, trace: Trace, *own: Any) -> tuple[Trace, Any]:
        new, record = algorithm.step(program, params, computed(algorithm, program, trace), *own)
        return kept(algorithm, new), record

    return learner.each(step)(params, trace, jacobians, signal, count)


def window_trace(
    learner: "Learner", params: Params, trace_before: Trace, trace_after: Trace, records: Any, states: States
) -> Trace:
    """`Algorithm.window_trace` for every sample, from records `[K, B, ...]` and the states after the window.

    What a derivative of a step depends on, its new states depend on.
    """
    algorithm, program = learner.algorithm, learner.program

    def trace(params: Params, before: Trace, after: Trace, records: Any, states: Sequence[jax.Array]) -> Trace:
        before, after = (computed(algorithm, program, end) for end in (before, after))
        made = kept(algorithm, algorithm.window_trace(program, params, before, after, records))
        return depending(made, states)

    moving = jax.tree.leaves(eqx.filter((states.hidden, states.other), eqx.is_inexact_array))
    after = learner.each(trace, (0, 0, 1, 0))(params, trace_before, trace_after, records, moving)
    chex.assert_tree_shape_prefix(after, learner.lead)
    return after


def window_parts(learner: "Learner", params: Params, trace_before: Trace, records: Any) -> Parts:
    """`Algorithm.window_gradient` for every sample, from records `[K, B, ...]`.

    The factors are `[K, B, ...]`, the other parts are `[B, ...]`.
    """
    algorithm, program = learner.algorithm, learner.program

    def parts(params: Params, before: Trace, records: Any) -> Parts:
        return algorithm.window_gradient(program, params, computed(algorithm, program, before), records)

    axes: Any = Parts(1, 0, 0)  # type: ignore[arg-type]
    return first_derivative(learner.each(parts, (0, 1), axes)(params, trace_before, records))


def window_gradient(
    learner: "Learner", params: Params, trace_before: Trace, records: Any, *, per_sample: bool
) -> Params:
    """The gradient of the traced weights from records `[K, B, ...]`."""
    before = constant_trace(trace_before)
    parts = window_parts(learner, params, before, records)
    return traced_gradient(learner, params, before, parts, per_sample=per_sample)


def traced_gradient(learner: "Learner", params: Params, trace: Trace, parts: Parts, *, per_sample: bool) -> Params:
    """The gradient of the traced weights from factors `[K, B, ...]`, and other parts and a trace `[B, ...]`.

    It has the dtype in which gradients of the params are added up.
    """
    contracted = _contracted(learner, params, parts.factors, per_sample=per_sample)
    dense = parts.dense if per_sample or learner.batch_size is None else jax.tree.map(lambda x: x.sum(0), parts.dense)
    product = _product(learner, params, trace, parts.of_trace, per_sample=per_sample)
    return accumulating_part(params, add_gradients(contracted, dense, product))


def _contracted(learner: "Learner", params: Params, factors: Any, *, per_sample: bool) -> Params:
    fun = partial(contract, learner.program, params)
    if learner.batch_size is None:
        return fun(factors)
    if per_sample:
        return jax.vmap(fun, in_axes=1, axis_size=learner.batch_size)(factors)
    return fun(jax.tree.map(_merged, factors))


def _product(learner: "Learner", params: Params, trace: Trace, of_trace: Any, *, per_sample: bool) -> Params:
    """`Algorithm.trace_product` of every sample, or the sum over samples."""
    algorithm, program = learner.algorithm, learner.program
    if not jax.tree.leaves(of_trace):
        return {}

    def product(trace: Trace, of_trace: Any) -> Params:
        return algorithm.trace_product(program, params, computed(algorithm, program, trace), of_trace)

    if learner.batch_size is None:
        return product(trace, of_trace)
    mapped = jax.vmap(product) if per_sample else sum_of_samples(product, learner.batch_size)
    return mapped(trace, of_trace)


def _merged(array: jax.Array) -> jax.Array:
    """Steps and samples as one axis, along which the gradient of a matrix is one product of two matrices.

    The samples may lie on several devices, if there are several. Their axis then has to lead, or XLA gathers them all
    before it merges; with one device the copy that this takes is saved.
    """
    ordered = array.swapaxes(0, 1) if jax.device_count() > 1 else array
    return jax.lax.collapse(ordered, 0, 2)


def trace_gradient(learner: "Learner", params: Params, trace: Any, of_states: States, count: jax.Array) -> Params:
    """The gradient of the steps before a window, by the trace that came into it.

    Args:
      learner: how samples are run.
      params: trainable values by path.
      trace: the trace of the hidden states before the window.
      of_states: the loss's gradient by the numbers with a fraction of the states before the window.
      count: the number of updates that made the trace.
    """
    hidden = {path: jax.tree.leaves(value)[0] for path, value in of_states.hidden.items()}
    signal = learner.program.signal(Perturbation(hidden, {}, {}))._replace(other=of_states.other)

    algorithm, program = learner.algorithm, learner.program

    def gradient(params: Params, trace: Trace, *own: Any) -> Any:
        return algorithm.gradient_of_trace(program, params, computed(algorithm, program, trace), *own)

    before = constant_trace(trace)
    parts = learner.each(gradient)(params, before, signal, count)
    of_one_step = parts._replace(factors=jax.tree.map(lambda x: x[None], parts.factors))
    return traced_gradient(learner, params, before, of_one_step, per_sample=False)
