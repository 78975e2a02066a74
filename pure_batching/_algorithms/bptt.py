"""BPTT: the exact gradient, behind the interface of the online rules."""

import equinox as eqx
import jax

from .._options import check_choice
from .._program import Jacobians, Params, Program
from ..errors import AlgorithmError
from .base import Algorithm, Closed, Factors, Signal, StepTransform, identity


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
    def backpropagation(self) -> StepTransform:
        """Always, with `jax.checkpoint` around each step where asked for."""
        return jax.checkpoint if self.checkpoint else identity

    def init(self, program: Program) -> tuple[()]:
        """Nothing."""
        del program
        return ()

    def step(
        self, program: Program, params: Params, trace: tuple[()], jacobians: Jacobians, signal: Signal, count: jax.Array
    ) -> tuple[tuple[()], tuple[()]]:
        """Nothing."""
        del program, params, jacobians, signal, count
        return trace, ()

    def close(
        self, program: Program, params: Params, opened: tuple[()] | None, carried: tuple[()], records: tuple[()]
    ) -> Closed:
        """Nothing."""
        del program, params, opened, records
        return Closed(carried, (), {})

    def apply(
        self, program: Program, params: Params, trace: tuple[()], signal: Signal, count: jax.Array
    ) -> tuple[tuple[Factors, ...], Params]:
        """Nothing lies before the window."""
        del program, params, trace, signal, count
        return (), {}
