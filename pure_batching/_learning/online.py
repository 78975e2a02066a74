"""A window with credit by the trace: one scan over the steps, and the gradient of the traced weights at its end."""

from typing import Any, NamedTuple

import jax

from .._algorithms.base import Trace, add_gradients
from .._program import Params, Perturbation, Signal, States, Step
from .._tree import Tree
from .carry import Carry
from .lives import continued, credited
from .order import after
from .scan import scan
from .steps import StepData, Steps
from .sums import accumulating_part, summed
from .task import Task, Window, blanked, frozen, loss_of, losses_of, neutral, restarted, runnable
from .traces import step_trace, window_gradient, window_trace


class Collected(NamedTuple):
    """A window after its last step and before its end.

    Attributes:
      carry: the carry after the steps, with the trace that the last `Algorithm.step` returned.
      direct: the gradient of the direct weights.
      records: the records of the steps, `[K, B, ...]`.
      losses: `[K, B]`.
      outputs: `[K, B, ...]`, None unless asked for.
    """

    carry: Carry
    direct: Params
    records: Any
    losses: jax.Array
    outputs: Tree


def run_online(task: Task, params: Params, carry: Carry, steps: Steps, trace_before: Trace, fresh: Carry) -> Window:
    """A window with `credit="trace"`; the arguments are those of `run_window`."""
    done = collect(task, params, carry, steps, fresh)
    before = credited(trace_before, steps, fresh.trace)
    traced = window_gradient(task.learner, params, before, done.records, per_sample=task.per_sample)
    if jax.tree.leaves(trace_before) and jax.tree.leaves(traced) and not task.per_sample:
        done = done._replace(records=after(traced, done.records))
    carry_after = with_trace(task, params, done, steps, trace_before, fresh)
    return Window(carry_after, add_gradients(traced, done.direct), done.losses, done.outputs)


def with_trace(task: Task, params: Params, done: Collected, steps: Steps, trace_before: Trace, fresh: Carry) -> Carry:
    """The carry after a window, with the trace of its end; the arguments are those of `run_window`."""
    before, records = continued(trace_before, done.records, steps, fresh.trace)
    trace = window_trace(task.learner, params, before, done.carry.trace, records, done.carry.states)
    return done.carry._replace(trace=trace)


def collect(task: Task, params: Params, carry: Carry, steps: Steps, fresh: Carry) -> Collected:
    """Run the steps of a window, each with its learning signal."""

    def one(state: tuple[Carry, Params], changing: Any) -> tuple[tuple[Carry, Params], Any]:
        data = steps.at(changing)
        before = restarted(task, state[0], fresh, data)
        start = runnable(before, fresh, data.mask)
        done, direct, signal, losses = _signal(task, params, start, data)
        jacobians = neutral(done.jacobians, data)
        trace, record = step_trace(task.learner, params, start.trace, jacobians, signal, start.update_count)
        new = Carry(*done.states, trace=trace, update_count=start.update_count + 1)
        after = frozen(new, before, data.mask)
        outputs = blanked(done.output, data.mask) if task.outputs else None
        gradients = add_gradients(state[1], accumulating_part(params, direct))
        return (after, gradients), (record, losses, outputs)

    start = (carry, _zero_direct(task, params))
    (carry, direct), (records, losses, outputs) = scan(one, start, steps.changing())
    return Collected(carry, direct, records, losses, outputs)


def _signal(task: Task, params: Params, carry: Carry, data: StepData) -> tuple[Step, Params, Signal, jax.Array]:
    """A step, the gradient of the direct weights, the learning signal, and the losses."""
    learner = task.learner

    def total(direct: Params, perturbation: Perturbation) -> Any:
        done = learner.execute(params | direct, carry.states, data.inputs, perturbation)
        losses = losses_of(task, done.output, data)
        return losses.sum(), (done, losses)

    direct = {path: params[path] for path in learner.program.direct}
    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (of_direct, of_hidden), (done, losses) = gradient(direct, learner.zero_perturbation())
    if task.per_sample and direct and learner.batch_size is not None:
        of_direct = _direct_of_each_sample(task, params, carry, data)
    return done, of_direct, learner.program.signal(_counted(of_hidden, data)), losses


def _counted(of_hidden: Perturbation, data: StepData) -> Perturbation:
    """The learning signals of steps that count; what a sample was before a reset is no part of its new life."""
    counted = blanked(of_hidden, data.mask)
    return counted if data.reset is None else counted._replace(old=blanked(counted.old, ~data.reset))


def _direct_of_each_sample(task: Task, params: Params, carry: Carry, data: StepData) -> Params:
    """The gradient of the direct weights for each sample, `[B, *param.shape]`, by the program of one sample.

    The batched step adds the samples' gradients up, since they share the weights, whatever the strategy.
    """
    program = task.learner.program

    def of_sample(common: tuple[Params, Any], states: States, data: StepData) -> Params:
        params, shared = common

        def loss(direct: Params) -> jax.Array:
            whole = states._replace(shared=shared)
            done = program.execute(params | direct, whole, data.inputs, program.zero_perturbation())
            return loss_of(task, done.output, data.targets, data.mask)

        return jax.grad(loss)({path: params[path] for path in program.direct})

    states = carry.states._replace(shared={})
    return task.learner.each(of_sample)((params, carry.shared), states, data)


def _zero_direct(task: Task, params: Params) -> Params:
    learner = task.learner
    lead = learner.lead if task.per_sample else ()
    direct = {path: params[path] for path in learner.program.direct}
    return summed(direct, lead=lead)
