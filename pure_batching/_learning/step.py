"""The differentiable step: forward the module runs, backward the algorithm gives the gradient."""

from typing import TYPE_CHECKING, Any

import jax

from .._precision import cast_like
from .._program import Params, Perturbation
from .._tree import Tree
from .carry import Carry
from .moving import parted, put_together
from .sums import summed
from .traces import step_trace, trace_gradient, window_gradient, window_trace

if TYPE_CHECKING:
    from .learner import Learner

Inputs = tuple[Tree, ...]


def differentiable_step(learner: "Learner", params: Params, carry: Carry, inputs: Inputs) -> tuple[Carry, Tree]:
    """The next carry and the output. The pullback gives the online gradient of the step; the carry gets zeros."""
    pair = _through_window if learner.algorithm.credit == "window" else _through_trace
    # JAX keeps these functions beside what it compiles from them: if they led back to that, neither would ever be
    # freed. Nor may they lead to a traced number, which JAX wants as an argument.
    numbers, others = learner.detached().parted()

    @jax.custom_vjp
    def step(numbers: Any, *args: Any) -> Any:
        return forward(numbers, *args)[0]

    def forward(numbers: Any, *args: Any) -> Any:
        result, residuals = pair(others.with_numbers(numbers))[0](*args)
        return result, (numbers, residuals)

    def backward(residuals: Any, cotangent: tuple[Carry, Tree]) -> Any:
        numbers, own = residuals
        return None, *pair(others.with_numbers(numbers))[1](own, cotangent)

    step.defvjp(forward, backward)
    return step(numbers, params, carry, inputs)


def _through_trace(learner: "Learner") -> tuple[Any, Any]:
    """Credit by the trace: a window of one step, whose learning signal is multiplied with the trace after the step."""
    program = learner.program

    def forward(params: Params, carry: Carry, inputs: Inputs) -> Any:
        def run(direct: Params, inputs: Inputs, perturbation: Perturbation) -> Any:
            done = learner.execute(params | direct, carry.states, inputs, perturbation)
            return done.output, (done.states, done.jacobians)

        direct = {path: params[path] for path in program.direct}
        zero = learner.zero_perturbation()
        output, pullback, (states, jacobians) = jax.vjp(run, direct, inputs, zero, has_aux=True)
        carried, records = one_step(params, carry, jacobians, zero)
        trace = window_trace(learner, params, carry.trace, carried, records, states)
        new = Carry(*states, trace=trace, update_count=carry.update_count + 1)
        return (new, output), (pullback, params, carry, jacobians)

    def one_step(params: Params, carry: Carry, jacobians: Any, of_hidden: Perturbation) -> Any:
        signal = program.signal(of_hidden)
        carried, record = step_trace(learner, params, carry.trace, jacobians, signal, carry.update_count)
        return carried, _alone(record)

    def backward(residuals: Any, cotangent: tuple[Carry, Tree]) -> Any:
        pullback, params, carry, jacobians = residuals
        direct, inputs, of_hidden = pullback(cotangent[1])
        _, records = one_step(params, carry, jacobians, of_hidden)
        traced = window_gradient(learner, params, carry.trace, records, per_sample=False)
        return _complete(params, traced, direct), None, inputs

    return forward, backward


def _through_window(learner: "Learner") -> tuple[Any, Any]:
    """Credit by backpropagation through the step, and by the trace for all steps before it."""
    program = learner.program

    def forward(params: Params, carry: Carry, inputs: Inputs) -> Any:
        moving, still = parted(carry.states)

        def run(params: Params, inputs: Inputs, moving: Any) -> Any:
            done = learner.execute(params, put_together(moving, still), inputs, learner.zero_perturbation())
            return done.output, (done.states, done.jacobians)

        output, pullback, (states, jacobians) = jax.vjp(run, params, inputs, moving, has_aux=True)
        signal = program.signal(learner.zero_perturbation())
        carried, record = step_trace(learner, params, carry.trace, jacobians, signal, carry.update_count)
        trace = window_trace(learner, params, carry.trace, carried, _alone(record), states)
        new = Carry(*states, trace=trace, update_count=carry.update_count + 1)
        return (new, output), (pullback, params, carry.trace, carry.update_count)

    def backward(residuals: Any, cotangent: tuple[Carry, Tree]) -> Any:
        pullback, params, trace, count = residuals
        within, inputs, of_states = pullback(cotangent[1])
        behind = trace_gradient(learner, params, trace, of_states, count)
        return _complete(params, within, behind), None, inputs

    return forward, backward


def _alone(record: Any) -> Any:
    """The records of a window of one step, `[1, B, ...]`."""
    return jax.tree.map(lambda x: x[None], record)


def _complete(params: Params, *parts: Params) -> Params:
    """Gradients of all weights; a weight that no part names gets zeros."""
    return cast_like(summed(params, *parts), params)
