"""online: an update of the params after every few steps, inside one compiled scan."""

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from .._options import is_count
from .._precision import cast_like
from .._program import Loss, Params
from .._strategies.base import SUMMED, SampleAxes
from .._tree import Tree
from ..errors import OptionError, StructureError
from .carry import Carry
from .compiled import compiled, in_shares
from .data import ABSENT
from .learner import Learner, check_learner
from .losses import Same, SplitLoss, check_loss, check_loss_function
from .sequence import Aux
from .sequence_fn import arguments_axes, begin, keys_of_samples, run_checked
from .steps import Steps
from .task import Task, Window
from .window import run_window


class Optimizer(Protocol):
    """The part of an optax optimizer that is used here, `optax.GradientTransformation.update`."""

    @property
    def update(self) -> Callable[..., Any]:
        """`(gradients, state, params) -> (updates, state)`; the updates are added to the params."""
        ...


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

    Args:
      learner: of one sample, or batched by a strategy.
      loss: as in `sequence_grad`.
      optimizer: any optimizer of optax; `update(gradients, state, params)` is called.
      every: `K`, the number of steps between two updates, at least 1; the last update may follow fewer.

    Returns:
      `(params, opt_state, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (params, opt_state, Aux)`.

    Raises:
      StructureError: no learner.
      LossError: a loss that cannot be called.
      OptionError: no optimizer, or an `every` that is not a positive integer.
    """
    check_learner(learner, "online")
    check_loss_function(loss)
    check_optimizer(optimizer)
    if not is_count(every):
        repair = "Give the number of steps between two updates."
        raise OptionError("every", got=repr(every), expected="an integer >= 1", repair=repair)
    return OnlineFn(learner, loss, optimizer, int(every))


def check_optimizer(optimizer: object) -> None:
    """Raise OptionError for what is no optimizer."""
    if not callable(getattr(optimizer, "update", None)):
        raise OptionError(
            "optimizer",
            got=type(optimizer).__name__,
            expected="one with a method update(gradients, state, params)",
            repair="Pass an optimizer of optax, such as optax.adam(1e-3).",
        )


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
        gradients = jax.tree.map(lambda x: x / (learner.batch_size or 1), done.gradients)
        params, opt_state = updated(learner, optimizer.value, params, opt_state, gradients)
        return (params, opt_state, done.carry, at + length), done.losses

    length = min(every, steps.length)
    whole, left = divmod(steps.length, length)
    begun = (params, jax.tree.map(jnp.asarray, opt_state), start, jnp.zeros((), jnp.int32))
    if (whole, left) == (1, 0):  # in a loop, the trace before the window would seem to depend on the params
        state, losses = window(begun, length)
        return state[0], state[1], Aux(state[2], losses, None)
    state, losses = jax.lax.scan(lambda state, _: window(state, length), begun, None, length=whole)
    losses = losses.reshape(-1, *losses.shape[2:])
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


def updated(
    learner: Learner, optimizer: Optimizer, params: Params, opt_state: Tree, gradients: Params
) -> tuple[Params, Tree]:
    """The params and the optimizer's state after an update, in the dtypes and units that they had before."""
    zeros = {path: jax.tree.map(jnp.zeros_like, value) for path, value in params.items()}
    whole = cast_like({**zeros, **gradients}, params)
    source = learner.source
    try:
        updates, new_state = optimizer.update(source.as_given(whole), opt_state, source.as_given(params))
        given = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), source.as_given(params), updates)
        kept = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), new_state, opt_state)
    except Exception as reason:
        raise StructureError(
            "opt_state",
            got=f"{type(reason).__name__}: {(str(reason).splitlines() or [''])[0]}",
            expected="a state of the optimizer that was passed, for these params",
            repair="Pass optimizer.init(params), or what the last call returned.",
        ) from reason
    return source.checked_params(given), kept
