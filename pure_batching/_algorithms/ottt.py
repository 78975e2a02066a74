"""OTTT: a trace of a weight's input, which decays, and the instantaneous derivative of its output."""

from typing import Any

import jax

from .._program import Jacobians, Params, Program, Signal
from .._relation import Relation
from ._hyperparameters import Number, check_fraction, dtype_field, number_field
from ._input_output_trace import InputOutputTrace, by_relation, complete_step, decayed, present, traces_of, zeros
from .base import Algorithm, Factors, Parts


class OTTT(Algorithm):
    """Online training through time, for spiking neural networks.

        eps_x[t] = decay eps_x[t-1] + x[t]
        grad[t]  = eps_x[t] (x) sum_s df[t, s] L[t, s]

    with `df = dh/dy` and `L = dloss/dh`. It is the online gradient of a neuron whose potential decays by `decay` in
    each step, `D = dh[t]/dh[t-1] = decay`, if its reset is held constant. A weight that multiplies no input, such as a
    bias or a time constant, has 1 in place of `eps_x` and `x`, so that this is the gradient of the step. The rule is
    complete: with `K = dloss/dy` and `l = dloss/dh[t-1]` at fixed `h[t]` it adds

        eps_x[t-1] (x) sum_s df[t-1, s] l[t, s] + x[t] (x) K[t]

    Source: Xiao et al., "Online Training Through Time for Spiking Neural Networks" (NeurIPS 2022), arXiv:2210.04195.

    Attributes:
      decay: in [0, 1): the leak of the neurons. An array `[]` may be traced: `jax.vmap` over it then compiles once for
        all decays. Nothing has a derivative by it.
      trace_dtype: the float type in which a carry keeps the traces; None for that in which they are computed.

    Raises:
      AlgorithmError: a decay out of range; a `trace_dtype` that is no float type; at a derivative by the decay.
    """

    decay: Number = number_field()
    trace_dtype: Any = dtype_field()

    def __check_init__(self) -> None:
        check_fraction("decay", self.decay)

    @property
    def is_complete(self) -> bool:
        """Yes."""
        return True

    def init(self, program: Program) -> InputOutputTrace:
        """Zeros."""
        return zeros(program)

    def step(
        self,
        program: Program,
        params: Params,
        trace: InputOutputTrace,
        jacobians: Jacobians,
        signal: Signal,
        count: jax.Array,
    ) -> tuple[InputOutputTrace, tuple[Factors, ...]]:
        """The recursion and the gradient of the class's docstring."""
        del params, count
        new = InputOutputTrace(decayed(self.decay, trace.xs, jacobians.xs), jacobians.dfs)
        return new, present(*complete_step(program, jacobians, trace, new, signal))

    def window_gradient(
        self, program: Program, params: Params, trace_before: InputOutputTrace | None, records: tuple[Factors, ...]
    ) -> Parts:
        """The records of the steps, which are the factors already."""
        del params, trace_before
        return Parts(by_relation(program, records), {})

    def traces_of(self, relation: Relation, trace: InputOutputTrace) -> dict[str, jax.Array]:
        """The trace of the input, and `dh/dy` of the last step for each hidden group."""
        return traces_of(relation, trace)
