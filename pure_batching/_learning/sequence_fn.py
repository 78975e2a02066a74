"""What every function of a sequence's data has in common: its arguments, and that they are checked first."""

import abc
import dataclasses
from typing import Any, Generic, TypeVar

from .._program import Loss, Params
from .._tree import Tree
from .data import ABSENT, check_call
from .execution import Carry
from .learner import Learner
from .timed import Steps

Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class SequenceFn(abc.ABC, Generic[Found]):
    """`(params, carry, inputs, targets, *, mask=None, reset=None) -> Found`, for a learner and a loss."""

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
    ) -> Found:
        """What the class says, of one sequence.

        Args:
          params: trainable values by path.
          carry: where the sequence begins; None for a fresh start inside the function.
          inputs: `[T, B, ...]` each, `[T, ...]` for one sample; a tuple for modules with several arguments. A leaf in
            `brainscale.SingleStepData` has no time axis and is the same at every step.
          targets: what the loss gets, with the same leading axes.
          mask: `[T, B]`, whether a step counts; a masked step leaves hidden states, traces, count and random key of its
            sample as they were and adds no gradient; its loss is 0.
          reset: `[T, B]`, whether a sample starts anew before the step; its random key goes on.

        Raises:
          ShapeError, BatchSizeError, DtypeError, UnitError, StructureError, CarryError, LossError: what does not fit,
            before anything runs.
          OptionError: a mask where samples reach each other along an axis.
        """
        return self.run(*check_call(self.learner, params, carry, inputs, targets, mask, reset))

    @abc.abstractmethod
    def run(self, params: Params, carry: Carry | None, steps: Steps) -> Found:
        """The same of data that was checked."""
