"""BPTT: backpropagation through time, with the interface of the online rules."""

import equinox as eqx
import jax

from .._options import check_choice
from .._program import Jacobians, Params, Program, Signal
from .._relation import Relation
from ..errors import AlgorithmError
from .base import Algorithm, Credit, Parts


class BPTT(Algorithm):
    """Backpropagation through time.

    It keeps no trace: with `window=K` in `sequence_grad`, credit ends at the window's start (truncated BPTT); over the
    whole sequence the gradient is exact. `learner.step` is a window of one step.

    Attributes:
      checkpoint: recompute each step on the way back instead of keeping its intermediate values (`jax.checkpoint`).

    Raises:
      AlgorithmError: a `checkpoint` that is no flag.
    """

    checkpoint: bool = eqx.field(static=True, default=False)

    def __check_init__(self) -> None:
        """Raise AlgorithmError for a flag that is none."""
        check_choice("checkpoint", self.checkpoint, (False, True), AlgorithmError)

    @property
    def credit(self) -> Credit:
        """Always by backpropagation."""
        return "window"

    @property
    def is_complete(self) -> bool:
        """Yes, within a window."""
        return True

    @property
    def recomputes(self) -> bool:
        """See `checkpoint`."""
        return self.checkpoint

    def init(self, program: Program) -> tuple[()]:
        """The empty trace: backpropagation gives the whole gradient, and the trace adds nothing to it."""
        del program
        return ()

    def step(
        self, program: Program, params: Params, trace: tuple[()], jacobians: Jacobians, signal: Signal, count: jax.Array
    ) -> tuple[tuple[()], tuple[()]]:
        """The empty trace again."""
        del program, params, jacobians, signal, count
        return trace, ()

    def gradient_of_trace(
        self, program: Program, params: Params, trace: tuple[()], signal: Signal, count: jax.Array
    ) -> Parts:
        """No part of the gradient: credit ends at the start of the window."""
        del program, params, trace, signal, count
        return Parts((), {})

    def traces_of(self, relation: Relation, trace: tuple[()]) -> dict[str, jax.Array]:
        """None: a use learns by the gradient of its window."""
        del relation, trace
        return {}
