"""SequenceFn: the arguments that every function of a sequence's data takes, and their check."""

import abc
import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any, Generic, TypeVar

import jax

from .._program import Loss, Params
from .._tree import Tree
from .carry import Carry, apart
from .checked import checked
from .data import ABSENT, check_call
from .learner import Learner
from .steps import Steps

Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceFn(abc.ABC, Generic[Found]):
    """`(params, carry, inputs, targets, *, mask=None, reset=None, key=None) -> Found`, for a learner and a loss."""

    learner: Learner
    loss: Loss

    def __call__(
        self,
        params: Params,
        carry: Carry | None,
        inputs: Tree,
        targets: Tree = ABSENT,
        *,
        mask: Any = None,
        reset: Any = None,
        key: jax.Array | None = None,
    ) -> Found:
        """Compute the gradient (or the norms) of one sequence.

        Args:
          params: trainable values by path.
          carry: the carry before the first step; None for a fresh start, which is `learner.init(key)`.
          inputs: `[T, B, ...]` each, `[T, ...]` for one sample; a tuple for modules with several arguments. A leaf in
            `brainscale.SingleStepData` has no time axis and is the same at every step.
          targets: the second argument of the loss, with the same leading axes.
          mask: `[T, B]`, whether a step counts; a masked step leaves hidden states, traces, count and random key of its
            sample as they were and adds no gradient; its loss and its output are 0.
          reset: `[T, B]`, whether a sample starts anew before the step; its random key goes on. A random initial state
            is drawn from `fold_in` of the sample's key and the step, so that no two lives of a sample start alike.
          key: a random key, typed or raw; sample `i` of a batch gets `fold_in(key, i)`. It is needed where the module
            draws random numbers in a fresh start: with `carry=None`, and with `reset` if the initial state is random.
            Pass another key at each call, or the same noise comes again. A carry holds the keys of its samples, so
            that the noise after it comes from these: with a carry, `key` serves random resets alone.

        Returns:
          the gradients, or the norms `[B]`, and what comes besides, with the losses `[T, B]` (`[T]` for one sample).

        Raises:
          ShapeError, BatchSizeError, DtypeError, UnitError, StructureError, CarryError, LossError: an argument does
            not fit. Nothing has run then.
          OptionError: a mask where samples reach each other along an axis; no key where it is needed.
          DeviceError: arguments on different devices, but under `pb.sharded`, which copies them to its own.
          StrategyError: inside `jax.jit`, an argument whose type names another mesh than that of `pb.sharded`.
          AlgorithmError: a derivative of the result that an online rule does not have.
        """
        given = (params, carry, inputs, targets)
        return run_checked(self.learner, self.run, *given, mask=mask, reset=reset, key=key)

    @abc.abstractmethod
    def run(self, params: Params, carry: Carry | None, steps: Steps, key: jax.Array | None) -> Found:
        """The same for arguments that were checked; the key is None only where nothing is drawn from it."""


def run_checked(learner: Learner, run: Callable[..., Found], *given: Any, **flags: Any) -> Found:
    """`run` on arguments that were checked, under the settings of the capture; see `SequenceFn.__call__`."""
    arguments = checked(learner, check_call, *given, **flags)
    numerics = learner.source.numerics
    with numerics.in_force():
        return run(*numerics.adopted(arguments))


@cache
def arguments_axes() -> tuple[Any, ...]:
    """The axis of the samples in each of `(loss, params, carry, steps, key)`; None for what they share."""
    return None, None, Carry.sample_axes(), Steps.sample_axes(), None


def share_axes() -> tuple[Any, ...]:
    """The same for `(loss, params, carry, steps, keys)`, where each sample has a key."""
    return (*arguments_axes()[:-1], 0)


def keys_of_samples(learner: Learner, key: jax.Array | None) -> jax.Array:
    """The random key of each sample, `[B]`; without a key, nothing is drawn from it."""
    return learner.sample_keys(jax.random.key(0) if key is None else key)


def begin(learner: Learner, carry: Carry | None, steps: Steps, keys: jax.Array) -> tuple[Carry, Carry, Steps]:
    """The carry before the first step, the carry of a sample that starts anew, and the steps with what they need.

    Where a mask or a reset is given, each sample has its own of the states that samples share, since the samples need
    not make the same steps.
    """
    fresh = learner.fresh(keys)
    start = fresh if carry is None else carry
    if steps.reset is not None and learner.source.draws_at_start:
        steps = steps.with_restart_keys(keys)
    steps = steps.with_stand_in()
    return (apart(start), apart(fresh), steps) if steps.have_flags else (start, fresh, steps)
