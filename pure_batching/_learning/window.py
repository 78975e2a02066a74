"""A window of steps: one scan over the module's steps, and the gradient of the traced weights at its end."""

from functools import partial
from typing import Any, NamedTuple

import brainunit as u
import chex
import jax
import jax.numpy as jnp

from .._algorithms.base import Closed, Factors, Signal, Trace, add_gradients, contract
from .._program import Jacobians, Loss, Params, Perturbation, States, Step
from .._tree import Tree
from .execution import Carry, Execution
from .timed import Moment, Steps, select


class Task(NamedTuple):
    """What is asked of a window.

    Attributes:
      execution: how steps are run.
      loss: `(output, target) -> []` of one sample at one step.
      per_sample: whether the gradient keeps the samples apart, `[B, *param.shape]`.
      outputs: whether the module's outputs are kept.
    """

    execution: Execution
    loss: Loss
    per_sample: bool
    outputs: bool


class Window(NamedTuple):
    """A window that was run: the carry after it, its gradient, its losses `[K, B]` and outputs `[K, B, ...]`."""

    carry: Carry
    gradients: Params
    losses: jax.Array
    outputs: Tree


def run_window(task: Task, params: Params, carry: Carry, steps: Steps, opened: Trace, fresh: Carry) -> Window:
    """Run a window and add up its gradient.

    Args:
      task: what is asked.
      params: trainable values by path.
      carry: before the window.
      steps: the window's data, `[K, B, ...]`.
      opened: the carry's trace, None where it is fresh.
      fresh: where a sample starts anew.
    """
    chex.assert_tree_shape_prefix((carry.hidden, carry.other, carry.trace, carry.update_count), task.execution.lead)
    if task.execution.algorithm.backpropagation is None:
        window = _step_by_step(task, params, carry, steps, opened, fresh)
    else:
        window = _propagated_back(task, params, carry, steps, fresh)
    chex.assert_shape(window.losses, (steps.length, *task.execution.lead))
    return window


def end_window(
    execution: Execution, params: Params, opened: Trace, carried: Trace, records: Any, *, per_sample: bool
) -> Any:
    """The trace after a window, and the gradient of the traced weights, from records `[K, B, ...]`."""

    def close(params: Params, *own: Any) -> Closed:
        return execution.algorithm.close(execution.program, params, *own)

    closed_axes: Any = Closed(0, 1, 0)  # type: ignore[arg-type]
    closed = execution.each(close, (0, 0, 1), closed_axes)(params, opened, carried, records)
    chex.assert_tree_shape_prefix((closed.trace, closed.dense), execution.lead)
    return closed.trace, traced_gradient(execution, params, closed.factors, closed.dense, per_sample=per_sample)


def traced_gradient(
    execution: Execution, params: Params, factors: tuple[Factors, ...], dense: Params, *, per_sample: bool
) -> Params:
    """The gradient of the traced weights from factors `[K, B, ...]` and a dense part `[B, ...]`."""
    fun = partial(contract, execution.program, params)
    if execution.batch_size is None:
        return add_gradients(fun(factors), dense)
    if per_sample:
        return add_gradients(jax.vmap(fun, in_axes=1, axis_size=execution.batch_size)(factors), dense)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), factors)
    return add_gradients(fun(flat), jax.tree.map(lambda x: x.sum(0), dense))


def step_trace(
    execution: Execution, params: Params, trace: Trace, jacobians: Jacobians, signal: Signal, count: jax.Array
) -> tuple[Trace, Any]:
    """The algorithm's step for every sample."""

    def step(params: Params, *own: Any) -> tuple[Trace, Any]:
        return execution.algorithm.step(execution.program, params, *own)

    return execution.each(step)(params, trace, jacobians, signal, count)


def trace_gradient(execution: Execution, params: Params, trace: Any, of_hidden: Any, count: jax.Array) -> Params:
    """The gradient through hidden states by the trace that they came with.

    Args:
      execution: how samples are run.
      params: trainable values by path.
      trace: of the hidden states.
      of_hidden: the loss's gradient with respect to them, by path.
      count: how many updates made the trace.
    """
    signal = execution.program.signal({path: jax.tree.leaves(value)[0] for path, value in of_hidden.items()})

    def apply(params: Params, *own: Any) -> Any:
        return execution.algorithm.apply(execution.program, params, *own)

    factors, dense = execution.each(apply)(params, trace, signal, count)
    return traced_gradient(execution, params, jax.tree.map(lambda x: x[None], factors), dense, per_sample=False)


class Collected(NamedTuple):
    """A window whose steps were made, and that is yet to be closed.

    Attributes:
      carry: after the steps, its trace as `Algorithm.step` carried it on.
      direct: the gradient of the direct weights.
      records: what the steps left, `[K, B, ...]`.
      losses: `[K, B]`.
      outputs: `[K, B, ...]`, None unless asked for.
    """

    carry: Carry
    direct: Params
    records: Any
    losses: jax.Array
    outputs: Tree


def _step_by_step(task: Task, params: Params, carry: Carry, steps: Steps, opened: Trace, fresh: Carry) -> Window:
    """Credit through time by the traces alone."""
    done = collect(task, params, carry, steps, fresh)
    ended = end_window(task.execution, params, opened, done.carry.trace, done.records, per_sample=task.per_sample)
    after = done.carry._replace(trace=ended[0])
    return Window(after, add_gradients(ended[1], done.direct), done.losses, done.outputs)


def collect(task: Task, params: Params, carry: Carry, steps: Steps, fresh: Carry) -> Collected:
    """Make the steps of a window, each with its learning signal."""

    def one(state: tuple[Carry, Params], changing: Any) -> tuple[tuple[Carry, Params], Any]:
        moment = steps.at(changing)
        before = _restarted(state[0], fresh, moment.reset)
        done, direct, signal, losses = _signal(task, params, before, moment)
        jacobians = _neutral(done.jacobians, moment)
        trace, record = step_trace(task.execution, params, before.trace, jacobians, signal, before.update_count)
        new = Carry(*done.states, trace=trace, update_count=before.update_count + 1)
        after = _frozen(new, before, moment.mask)
        outputs = done.output if task.outputs else None
        return (after, add_gradients(state[1], direct)), (record, losses, outputs)

    start = (carry, _zero_direct(task, params))
    (carry, direct), (records, losses, outputs) = jax.lax.scan(one, start, steps.changing())
    return Collected(carry, direct, records, losses, outputs)


def _signal(task: Task, params: Params, carry: Carry, moment: Moment) -> tuple[Step, Params, Signal, jax.Array]:
    """A step, the gradient of the direct weights, the learning signal, and the losses."""
    execution = task.execution

    def total(direct: Params, perturbation: Perturbation) -> Any:
        done = execution.execute(params | direct, carry.states, moment.inputs, perturbation)
        losses = _losses(task, done.output, moment)
        return losses.sum(), (done, losses)

    direct = {path: params[path] for path in execution.program.direct}
    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (of_direct, of_hidden), (done, losses) = gradient(direct, execution.zero_perturbation())
    if task.per_sample and direct and execution.batch_size is not None:
        of_direct = _direct_of_each_sample(task, params, carry, moment)
    return done, of_direct, execution.program.signal(of_hidden), losses


def _direct_of_each_sample(task: Task, params: Params, carry: Carry, moment: Moment) -> Params:
    """The direct weights' gradient of each sample, by the program of one sample in every strategy.

    A batch shares its weights within one arithmetic, which cannot tell the samples' gradients apart.
    """
    program = task.execution.program

    def own(common: tuple[Params, Any], states: States, moment: Moment) -> Params:
        params, shared = common

        def loss(direct: Params) -> jax.Array:
            whole = states._replace(shared=shared)
            done = program.execute(params | direct, whole, moment.inputs, program.zero_perturbation())
            return _masked(_number(task.loss(done.output, moment.targets)), moment.mask)

        return jax.grad(loss)({path: params[path] for path in program.direct})

    states = carry.states._replace(shared={})
    return task.execution.each(own)((params, carry.shared), states, moment)


def _propagated_back(task: Task, params: Params, carry: Carry, steps: Steps, fresh: Carry) -> Window:
    """Credit inside the window by backpropagation, and for what lies behind it by the trace."""
    if task.per_sample and task.execution.batch_size is not None:
        return _propagated_back_for_each(task, params, carry, steps, fresh)
    execution = task.execution
    wrap: Any = execution.algorithm.backpropagation

    def total(params: Params, hidden: Any) -> Any:
        def one(states: States, changing: Any) -> tuple[States, Any]:
            moment = steps.at(changing)
            before = _restarted(states, fresh.states, moment.reset)
            done = execution.execute(params, before, moment.inputs, execution.zero_perturbation())
            emitted = (_losses(task, done.output, moment), _neutral(done.jacobians, moment), done.output)
            return _frozen(done.states, before, moment.mask), emitted

        states, emitted = jax.lax.scan(wrap(one), carry.states._replace(hidden=hidden), steps.changing())
        return emitted[0].sum(), (states, emitted)

    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (within, of_hidden), (states, (losses, jacobians, outputs)) = gradient(params, carry.hidden)
    behind = trace_gradient(execution, params, carry.trace, of_hidden, carry.update_count)
    after = _updated(execution, params, carry, states, jacobians, steps, fresh)
    return Window(after, add_gradients(within, behind), losses, outputs if task.outputs else None)


def _propagated_back_for_each(task: Task, params: Params, carry: Carry, steps: Steps, fresh: Carry) -> Window:
    one_sample = Execution.of_one_sample(task.execution.program, task.execution.algorithm)

    def own(common: tuple[Params, Any], carry: Carry, steps: Steps, fresh: Carry) -> Window:
        params, shared = common
        whole = carry._replace(shared=shared)
        return _propagated_back(task._replace(execution=one_sample), params, whole, steps, fresh)

    axes: Any = Window(0, 0, 1, 1)  # type: ignore[arg-type]
    each = task.execution.each(own, (0, Steps.sample_axes(), 0), axes)
    window = each((params, carry.shared), carry._replace(shared={}), steps, fresh._replace(shared={}))
    shared = jax.tree.map(lambda leaf: leaf[0], window.carry.shared)  # the same for every sample
    return window._replace(carry=window.carry._replace(shared=shared))


def _updated(
    execution: Execution,
    params: Params,
    carry: Carry,
    states: States,
    jacobians: Jacobians,
    steps: Steps,
    fresh: Carry,
) -> Carry:
    """The carry after a window that was propagated back: its trace has made all steps, its count one."""
    signal = execution.program.signal(execution.zero_perturbation())

    def one(trace: Trace, step: tuple[Jacobians, Any, Any]) -> tuple[Trace, Any]:
        before = trace if step[2] is None else select(step[2], fresh.trace, trace)
        new, record = step_trace(execution, params, before, step[0], signal, carry.update_count)
        return _frozen(new, before, step[1]), record

    carried, records = jax.lax.scan(one, carry.trace, (jacobians, steps.mask, steps.reset))
    trace, _ = end_window(execution, params, carry.trace, carried, records, per_sample=False)
    return Carry(*states, trace=trace, update_count=_counted(carry.update_count, steps))


def _counted(count: jax.Array, steps: Steps) -> jax.Array:
    """One update more where some step counts; from zero where a sample started anew, without the steps before."""
    none = jnp.zeros((steps.length, *count.shape), bool)
    reset = none if steps.reset is None else steps.reset
    mask = ~none if steps.mask is None else steps.mask
    resets_from_here = jnp.cumsum(reset[::-1], 0)[::-1]
    is_last_life = resets_from_here - reset == 0
    return jnp.where(reset.any(0), 0, count) + (mask & is_last_life).any(0)


def _losses(task: Task, output: Tree, moment: Moment) -> jax.Array:
    def loss(_: None, output: Tree, target: Tree) -> jax.Array:
        return _number(task.loss(output, target))

    return _masked(task.execution.each(loss)(None, output, moment.targets), moment.mask)


def _number(loss: Any) -> Any:
    """A dimensionless quantity as its number."""
    return loss.to_decimal() if u.math.is_quantity(loss) else loss


def _masked(losses: jax.Array, mask: jax.Array | None) -> jax.Array:
    return losses if mask is None else jnp.where(mask, losses, 0)


def _restarted(now: Any, fresh: Any, reset: jax.Array | None) -> Any:
    """Fresh states for the samples that start anew; random keys go on."""
    if reset is None:
        return now
    return select(reset, fresh._replace(keys=now.keys), now)


def _frozen(new: Any, old: Any, mask: jax.Array | None) -> Any:
    """A masked step is no step."""
    return new if mask is None else select(mask, new, old)


def _neutral(jacobians: Jacobians, moment: Moment) -> Jacobians:
    """Derivatives that leave a trace as it is where a step does not count, and forget it where a sample starts anew."""
    if moment.mask is not None:
        zeros = jax.tree.map(jnp.zeros_like, jacobians)
        kept = {k: jnp.broadcast_to(jnp.eye(d.shape[-1], dtype=d.dtype), d.shape) for k, d in zeros.diagonals.items()}
        jacobians = select(moment.mask, jacobians, zeros._replace(diagonals=kept))
    if moment.reset is not None:
        gone = jax.tree.map(jnp.zeros_like, jacobians.diagonals)
        jacobians = jacobians._replace(diagonals=select(moment.reset, gone, jacobians.diagonals))
    return jacobians


def _zero_direct(task: Task, params: Params) -> Params:
    execution = task.execution
    lead = execution.lead if task.per_sample else ()
    direct = {path: params[path] for path in execution.program.direct}
    return jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), direct)
