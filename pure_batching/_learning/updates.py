"""online: an update of the params after every few steps, inside one compiled scan."""

import dataclasses
from collections.abc import Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._options import is_count
from .._program import Loss, Params
from .._strategies.base import SUMMED, SampleAxes
from .._tree import Tree
from ..errors import OptionError
from .carry import Carry
from .compiled import compiled, in_shares
from .data import ABSENT
from .learner import Learner, check_learner
from .losses import Same, SplitLoss, check_loss, check_loss_function
from .optimizer import Optimizer, check_optimizer, updated
from .sequence import Aux
from .sequence_fn import arguments_axes, begin, keys_of_samples, run_checked
from .steps import Steps
from .task import Task, Window
from .window import run_window


@dataclasses.dataclass(frozen=True, eq=False)
class OnlineFn:
    """The function that `online` makes.

    `(params, opt_state, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (params, opt_state, Aux)`
    """

    learner: Learner
    loss: Loss
    optimizer: Optimizer
    every: int

    def __call__(
        self,
        params: Tree,
        opt_state: Tree,
        carry: Carry | None,
        inputs: Tree,
        targets: Tree = ABSENT,
        *,
        mask: Any = None,
        reset: Any = None,
        key: jax.Array | None = None,
    ) -> tuple[Tree, Tree, Aux]:
        """Train on one sequence.

        Args:
          params: trainable values, as `pb.capture` or `pb.capture_function` returned them.
          opt_state: `optimizer.init(params)`, or what the last call returned.
          carry: the carry before the first step; None for a fresh start.
          inputs: `[T, B, ...]` each; as for the functions of `sequence_grad`, like all that follow.
          targets: the second argument of the loss, with the same leading axes.
          mask: `[T, B]`, whether a step counts. There is an update after every `K` steps whatever the mask.
          reset: `[T, B]`, whether a sample starts anew before the step.
          key: a random key, where a fresh start draws random numbers.

        Returns:
          the params and the state of the optimizer after the last update, and `Aux` with the carry and the losses
          `[T, B]`, each of the params in force at its step.

        Raises:
          ShapeError, BatchSizeError, DtypeError, UnitError, StructureError, CarryError, LossError, OptionError: an
            argument does not fit. Nothing has run then.
          DeviceError: arguments on different devices, but under `pb.sharded`, which copies them to its own.
          StrategyError: inside `jax.jit`, an argument whose type names another mesh than that of `pb.sharded`.
          AlgorithmError: a derivative of the result that an online rule does not have.
        """
        loss, arrays = SplitLoss.of(self.loss)
        axes = SampleAxes((None, *arguments_axes()), (None, None, Aux.sample_axes()))
        run = compiled(self.learner, _train, loss, Same(self.optimizer), self.every, axes=axes)
        train = partial(run, opt_state, arrays)
        given = (params, carry, inputs, targets)
        trained, opt_state, aux = run_checked(self.learner, train, *given, mask=mask, reset=reset, key=key)
        return self.learner.source.as_given(trained), opt_state, aux


def online(learner: Learner, loss: Loss, optimizer: Optimizer, *, every: int = 1) -> OnlineFn:
    """Make a function that trains on a sequence while it runs: one update after every `K` steps.

    It is the meaning of this program, in one compiled scan whose memory does not grow with `T`, but for the losses:

        for k in range(0, T, every):
            now = slice(k, k + every)
            gradients, aux = sequence_grad(learner, loss)(params, carry, inputs[now], targets[now])
            updates, opt_state = optimizer.update(gradients, opt_state, params)
            params, carry = optax.apply_updates(params, updates), aux.carry

    The traces go on over the updates, as if the params had been the same before.

    An optimizer that takes extra arguments, such as `optax.contrib.reduce_on_plateau` and `optax.polyak_sgd`, gets
    `value=`, the loss whose gradient this is (`aux.losses.sum() / B`), and `grad=`, the gradient.

    Args:
      learner: of one sample, or batched by a strategy.
      loss: as in `sequence_grad`.
      optimizer: an optimizer of optax; `update(gradients, state, params)` is called. One that searches along a line
        (`optax.lbfgs`) is refused where it calls `value_fn=`, since the loss would be run again.
      every: `K`, the number of steps between two updates, at least 1; the last update may follow fewer.

    Returns:
      `(params, opt_state, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (params, opt_state, Aux)`.

    Raises:
      StructureError: no learner.
      LossError: a loss that cannot be called.
      OptionError: no optimizer, or one that needs other arguments; an `every` that is not a positive integer.
    """
    check_learner(learner, "online")
    check_loss_function(loss)
    check_optimizer(optimizer)
    if not is_count(every):
        repair = "Give the number of steps between two updates."
        raise OptionError("every", got=repr(every), expected="an integer >= 1", repair=repair)
    return OnlineFn(learner, loss, optimizer, int(every))


def _train(
    learner: Learner,
    loss: Hashable,
    optimizer: Same,
    every: int,
    opt_state: Tree,
    arrays_of_loss: Any,
    params: Params,
    carry: Carry | None,
    steps: Steps,
    key: jax.Array | None,
) -> tuple[Params, Tree, Aux]:
    check_loss(learner, SplitLoss(loss, arrays_of_loss).whole(), steps.targets)
    start, fresh, steps = begin(learner, carry, steps, keys_of_samples(learner, key))
    of_window: Any = Window(Carry.sample_axes(), SUMMED, 1, 1)  # type: ignore[arg-type]
    axes = SampleAxes((None, None, Carry.sample_axes(), Steps.sample_axes(), Carry.sample_axes()), of_window)
    run = in_shares(learner, _window_of_share, loss, axes=axes)

    def window(state: Any, length: int) -> tuple[Any, jax.Array]:
        params, opt_state, carry, at = state
        done = run(arrays_of_loss, params, carry, steps.cut(at, length), fresh)
        gradients, value = jax.tree.map(lambda x: x / (learner.batch_size or 1), (done.gradients, done.losses.sum()))
        params, opt_state = updated(learner, optimizer.value, params, opt_state, gradients, value)
        return (params, opt_state, done.carry, at + length), done.losses

    length = min(every, steps.length)
    whole, left = divmod(steps.length, length)
    begun = (params, jax.tree.map(jnp.asarray, opt_state), start, jnp.zeros((), jnp.int32))
    if (whole, left) == (1, 0):  # in a loop, the trace before the window would seem to depend on the params
        state, losses = window(begun, length)
        return state[0], state[1], Aux(state[2], losses, None)
    state, losses = jax.lax.scan(lambda state, _: window(state, length), begun, None, length=whole)
    losses = jax.lax.collapse(losses, 0, 2)
    if left:
        state, last = window(state, left)
        losses = jnp.concatenate([losses, last])
    return state[0], state[1], Aux(state[2], losses, None)


def _window_of_share(
    learner: Learner, loss: Hashable, arrays_of_loss: Any, params: Params, carry: Carry, steps: Steps, fresh: Carry
) -> Window:
    """A window of the samples that run at once."""
    task = Task(learner, SplitLoss(loss, arrays_of_loss).whole(), per_sample=False, outputs=False)
    return run_window(task, params, carry, steps, carry.trace, fresh)
