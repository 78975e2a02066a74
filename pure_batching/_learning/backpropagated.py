"""A window with credit by backpropagation inside it, and by the trace for the steps before it."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax

from .._algorithms.base import Trace
from .._program import Jacobians, Params, States
from .carry import Carry
from .lives import continued, counted, credited
from .moving import parted, put_together
from .steps import Steps, select
from .sums import summed
from .task import Task, Window, blanked, frozen, losses_of, neutral, restarted, runnable
from .traces import step_trace, trace_gradient, window_trace

if TYPE_CHECKING:
    from .learner import Learner


def run_backpropagated(
    task: Task, params: Params, carry: Carry, steps: Steps, trace_before: Trace, fresh: Carry
) -> Window:
    """A window with `credit="window"`; the arguments are those of `run_window`."""
    if task.per_sample and task.learner.batch_size is not None:
        return _run_each_sample(task, params, carry, steps, trace_before, fresh)
    learner = task.learner
    around_step = jax.checkpoint if learner.algorithm.recomputes else _as_it_is

    moving, still = parted(carry.states)

    def total(params: Params, moving: Any) -> Any:
        def one(states: States, changing: Any) -> tuple[States, Any]:
            data = steps.at(changing)
            before = restarted(task, states, fresh.states, data)
            start = runnable(before, fresh.states, data.mask)
            done = learner.execute(params, start, data.inputs, learner.zero_perturbation())
            outputs = blanked(done.output, data.mask) if task.outputs else None
            emitted = (losses_of(task, done.output, data), neutral(done.jacobians, data), outputs)
            return frozen(done.states, before, data.mask), emitted

        states, emitted = jax.lax.scan(around_step(one), put_together(moving, still), steps.changing())
        return emitted[0].sum(), (states, emitted)

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (within, of_states), (states, (losses, jacobians, outputs)) = gradient(params, moving)
    trace = credited(trace_before, steps, fresh.trace)
    behind = {} if trace is None else trace_gradient(learner, params, trace, of_states, carry.update_count)
    after = _updated(learner, params, carry, states, jacobians, steps, fresh)
    return Window(after, summed(params, within, behind), losses, outputs)


def _run_each_sample(
    task: Task, params: Params, carry: Carry, steps: Steps, trace_before: Trace, fresh: Carry
) -> Window:
    """The gradient of each sample, by windows of one sample."""
    one_sample = task.learner.one_of_its_samples()

    def of_sample(common: tuple[Params, Any, Any], carry: Carry, trace: Trace, steps: Steps, fresh: Carry) -> Window:
        params, shared, positions = common
        whole, window = carry._replace(shared=shared), dataclasses.replace(steps, positions=positions)
        return run_backpropagated(task._replace(learner=one_sample), params, whole, window, trace, fresh)

    axes: Any = Window(0, 0, 1, 1)  # type: ignore[arg-type]
    each = task.learner.each(of_sample, (0, 0, Steps.sample_axes(), 0), axes)
    common, of_samples = (params, carry.shared, steps.positions), dataclasses.replace(steps, positions=None)
    window = each(common, carry._replace(shared={}), trace_before, of_samples, fresh._replace(shared={}))
    shared = jax.tree.map(lambda leaf: leaf[0], window.carry.shared)  # the same for every sample
    return window._replace(carry=window.carry._replace(shared=shared))


def _updated(
    learner: "Learner",
    params: Params,
    carry: Carry,
    states: States,
    jacobians: Jacobians,
    steps: Steps,
    fresh: Carry,
) -> Carry:
    """The carry after the window: the trace has made every step of it, and the update count grows by one."""
    signal = learner.program.signal(learner.zero_perturbation())

    def one(trace: Trace, step: tuple[Jacobians, Any, Any]) -> tuple[Trace, Any]:
        before = trace if step[2] is None else select(step[2], fresh.trace, trace)
        start = runnable(before, fresh.trace, step[1])
        new, record = step_trace(learner, params, start, step[0], signal, carry.update_count)
        return frozen(new, before, step[1]), record

    carried, records = jax.lax.scan(one, carry.trace, (jacobians, steps.mask, steps.reset), steps.length)
    old, records = continued(carry.trace, records, steps, fresh.trace)
    trace = window_trace(learner, params, old, carried, records, states)
    return Carry(*states, trace=trace, update_count=counted(carry.update_count, steps))


def _as_it_is(step: Any) -> Any:
    return step
