"""sequence_grad: the online gradient of a sequence, scheduled in windows.

A window of `K` steps is one scan that emits each step's factors, and one contraction over `K * B` at its end. What is
stacked is what a window costs; the sequence's length never enters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import brainunit as u
import jax
import jax.numpy as jnp

from ._algorithms.base import Factors, contract
from ._errors import LossError, OptionError
from ._learner import Carry, Learner, add_gradients, advance, signal_factors, zero_perturbation
from ._program import Params, Perturbation
from ._timed import Timed, check_sequence
from ._tree import Tree, nbytes, with_lead

Loss = Callable[[Tree, Tree], jax.Array]

REDUCTIONS = ("mean", "sum", "none")

# With `window=None`, what is stacked stays below this many bytes.
STACK_BUDGET = 256 * 2**20


class Aux(NamedTuple):
    """What a gradient comes with.

    Attributes:
      carry: the carry after the last step.
      losses: `[T, B]`, or `[T]` for one sample.
      outputs: the module's outputs, `[T, B, ...]`; None unless asked for.
    """

    carry: Carry
    losses: jax.Array
    outputs: Tree


class GradFn(NamedTuple):
    """`(params, carry, inputs, targets) -> (gradients, Aux)`; made by `sequence_grad`."""

    learner: Learner
    loss: Loss
    reduction: str
    window: int | None
    outputs: bool

    def __call__(self, params: Params, carry: Carry | None, inputs: Tree, targets: Tree) -> tuple[Params, Aux]:
        """The gradient of a sequence.

        Args:
          params: trainable values by path.
          carry: where the sequence begins; None for a fresh start inside the function.
          inputs: `[T, B, ...]` each, `[T, ...]` for one sample; a tuple for modules with several arguments. A leaf in
            `brainscale.SingleStepData` has no time axis and is the same at every step.
          targets: what the loss gets, with the same leading axes.

        Returns:
          gradients, summed over time and reduced over samples, in the params' units; with `"none"` `[B, *param.shape]`.

        Raises:
          ShapeError, BatchSizeError, DtypeError, UnitError, StructureError, CarryError, LossError: what does not fit,
            before anything runs.
        """
        params = self.learner.check_params(params)
        carry = None if carry is None else self.learner.check_carry(carry)
        inputs, targets = check_sequence(self.learner, inputs, targets)
        return _sequence_grad(self, params, carry, inputs, targets)


def sequence_grad(
    learner: Learner, loss: Loss, *, reduction: str = "mean", window: int | None = None, outputs: bool = False
) -> GradFn:
    """A function that gives the online gradient of a whole sequence.

    It equals `jax.grad` of the losses summed over a `jax.lax.scan` of `learner.step`, at every window.

    Args:
      learner: of one sample, or batched by a strategy.
      loss: `(output, target) -> []`, a real number for one sample at one step.
      reduction: over samples: `"mean"`, `"sum"`, or `"none"` for per-sample gradients.
      window: how many steps are stacked and contracted at once; 1 is online and needs no memory that grows with `T`.
        None takes the whole sequence while what is stacked stays below 256 MiB, else the largest window that does.
      outputs: whether `Aux.outputs` holds the module's outputs.

    Raises:
      OptionError: an unknown reduction, or a window that is not a positive integer.
    """
    if reduction not in REDUCTIONS:
        expected = " or ".join(map(repr, REDUCTIONS))
        raise OptionError("reduction", got=repr(reduction), expected=expected, repair="Choose one of them.")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise OptionError(
            "window", got=repr(window), expected="None or an integer >= 1", repair="Give a number of steps."
        )
    return GradFn(learner, loss, reduction, window, outputs)


def window_length(learner: Learner, time: int, window: int | None) -> int:
    """How many steps a window holds: what was asked for, or by the rule of `sequence_grad`."""
    if window is not None:
        return min(window, time)
    xs = [x.spec for x in learner.program.weight_inputs().values()]
    ys = [relation.y for relation in learner.program.relations]
    stacked = nbytes(with_lead([xs, ys], learner.execution.lead))
    return max(1, min(time, STACK_BUDGET // max(stacked, 1)))


@partial(jax.jit, static_argnums=0)
def _sequence_grad(
    grad_fn: GradFn, params: Params, carry: Carry | None, inputs: Timed, targets: Timed
) -> tuple[Params, Aux]:
    learner, time = grad_fn.learner, inputs.length or targets.length or 0
    _check_loss(grad_fn, targets)
    length = window_length(learner, time, grad_fn.window)
    state = _Running(learner.init() if carry is None else carry, _zero_gradients(grad_fn, params))
    run = partial(_run_window, grad_fn, params, inputs, targets)

    def whole(state: _Running, start: jax.Array) -> tuple[_Running, Any]:
        return run(state, start, length)

    state, emitted = jax.lax.scan(whole, state, jnp.arange(time // length) * length)
    emitted = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), emitted)
    if time % length:
        state, rest = run(state, jnp.asarray(time - time % length), time % length)
        emitted = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), emitted, rest)
    losses, outs = emitted
    return _reduced(grad_fn, state.gradients), Aux(state.carry, losses, outs)


class _Running(NamedTuple):
    carry: Carry
    gradients: Params


def _run_window(
    grad_fn: GradFn, params: Params, inputs: Timed, targets: Timed, state: _Running, start: jax.Array, length: int
) -> tuple[_Running, Any]:
    """`length` steps from `start`, and one contraction of what they emitted."""

    def one(state: _Running, data: Any) -> tuple[_Running, Any]:
        args, target = inputs.at(data[0]), targets.at(data[1])
        carry, direct, emitted = _one_step(grad_fn, params, state.carry, args, target)
        return _Running(carry, add_gradients(state.gradients, direct)), emitted

    data = (inputs.window(start, length), targets.window(start, length))
    state, (factors, losses, outs) = jax.lax.scan(one, state, data)
    gradients = add_gradients(state.gradients, _contracted(grad_fn, params, factors))
    return _Running(state.carry, gradients), (losses, outs)


def _one_step(grad_fn: GradFn, params: Params, carry: Carry, args: tuple[Tree, ...], target: Tree) -> Any:
    """The carry after a step, the gradient of the direct weights, and (factors, losses, outputs)."""
    learner = grad_fn.learner

    def total(direct: Params, perturbation: Perturbation) -> Any:
        done = learner.execution.execute(params | direct, carry.states, args, perturbation)
        losses = learner.execution.each(lambda _, out, want: _value(grad_fn.loss(out, want)))(None, done.output, target)
        return losses.sum(), (done, losses)

    direct = {path: params[path] for path in learner.program.direct}
    gradient = jax.grad(total, argnums=(0, 1), has_aux=True)
    (of_direct, of_hidden), (done, losses) = gradient(direct, zero_perturbation(learner))
    if grad_fn.reduction == "none":
        of_direct = _direct_of_each_sample(grad_fn, params, carry, args, target)
    new = advance(learner, carry, done.states, done.jacobians)
    signal = learner.program.signal(of_hidden)
    factors = signal_factors(learner, new.trace, done.jacobians, signal, carry.step_count)
    return new, of_direct, (factors, losses, done.output if grad_fn.outputs else None)


def _direct_of_each_sample(
    grad_fn: GradFn, params: Params, carry: Carry, args: tuple[Tree, ...], target: Tree
) -> Params:
    """The direct weights' gradient of each sample, by the program of one sample in every strategy.

    A batch shares its weights within one arithmetic, which cannot tell the samples' gradients apart.
    """
    program = grad_fn.learner.program

    def own(shared: Any, states: Any, args: Any, target: Tree) -> Params:
        def loss(direct: Params) -> jax.Array:
            whole = states._replace(shared=shared[1])
            done = program.execute(shared[0] | direct, whole, args, program.zero_perturbation())
            return _value(grad_fn.loss(done.output, target))

        return jax.grad(loss)({path: shared[0][path] for path in program.direct})

    states = carry.states._replace(shared={})
    return grad_fn.learner.execution.each(own)((params, carry.shared), states, args, target)


def _contracted(grad_fn: GradFn, params: Params, factors: Factors) -> Params:
    """The traced weights' gradient from factors `[K, ...]` or `[K, B, ...]`."""
    fun = partial(contract, grad_fn.learner.program, params)
    if grad_fn.learner.batch_size is None:
        return fun(factors)
    if grad_fn.reduction == "none":
        return jax.vmap(fun, in_axes=1)(factors)
    return fun(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), factors))


def _zero_gradients(grad_fn: GradFn, params: Params) -> Params:
    lead = grad_fn.learner.execution.lead if grad_fn.reduction == "none" else ()
    return jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), params)


def _reduced(grad_fn: GradFn, gradients: Params) -> Params:
    size = grad_fn.learner.batch_size
    return jax.tree.map(lambda x: x / size, gradients) if grad_fn.reduction == "mean" and size else gradients


def _value(loss: Any) -> Any:
    """A dimensionless quantity as its number."""
    return loss.to_decimal() if u.math.is_quantity(loss) else loss


def _check_loss(grad_fn: GradFn, targets: Timed) -> None:
    target = targets.spec(len(grad_fn.learner.execution.lead))
    result = jax.eval_shape(grad_fn.loss, grad_fn.learner.program.output, target)
    leaves = jax.tree.leaves(result)
    is_number = len(leaves) == 1 and leaves[0].shape == () and jnp.issubdtype(leaves[0].dtype, jnp.floating)
    if not is_number or not u.get_unit(result).is_unitless:
        raise LossError(
            "loss",
            got=result,
            expected="one real number without a unit for the output and target of one sample at one step",
            repair="Reduce over features inside the loss; samples and time are added up outside.",
        )
