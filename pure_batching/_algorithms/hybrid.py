"""Hybrid: each use of a weight has the smaller of two traces, or the trace that the module asks for."""

import dataclasses
import math
from typing import Any, NamedTuple

import equinox as eqx
import jax

from .._program import HasProgram, Jacobians, Params, Program, Signal
from .._relation import Relation
from ._diagonal_window import DiagonalRecord
from ._hyperparameters import Number, dtype_field, number_field
from ._input_output_trace import InputOutputTrace
from ._parameter_trace import ParameterTrace, shape_of
from .base import Algorithm, Credit, Factors, Parts, credit_of
from .d_rtrl import D_RTRL
from .es_d_rtrl import ES_D_RTRL


class HybridTrace(NamedTuple):
    """The trace of Hybrid.

    Attributes:
      by_input_output: of the uses that ES_D_RTRL follows.
      by_parameter: of the uses that D_RTRL follows.
    """

    by_input_output: InputOutputTrace
    by_parameter: ParameterTrace


class Hybrid(Algorithm):
    """ES_D_RTRL for some uses of weights, D_RTRL for the others.

    A use follows D_RTRL if its weight is element-wise or asks for `grad="full"`, ES_D_RTRL if it asks for
    `grad="approx"`; with `"adaptive"`, BrainScale's default, it follows D_RTRL where that trace is smaller than its
    input and output together, counted for one sample: for a weight of which each element reaches one output that is the
    rule of brainscale 0.1.0, `HybridDimVjpAlgorithm`, as documented; a shared kernel has a larger trace than itself.

    Attributes:
      decay_or_rank: as in ES_D_RTRL.
      rule: as in both algorithms.
      vjp: as in both algorithms.
      trace_dtype: as in both algorithms.

    Raises:
      AlgorithmError: a decay or rank out of range; an unknown rule or vjp; a `trace_dtype` that is no float type; at a
        derivative by the decay.
    """

    decay_or_rank: Number | int = number_field()
    rule: str = eqx.field(static=True, default="brainscale")
    vjp: str = eqx.field(static=True, default="single-step")
    trace_dtype: Any = dtype_field()

    def __check_init__(self) -> None:
        ES_D_RTRL(self.decay_or_rank, self.rule, self.vjp)

    @property
    def credit(self) -> Credit:
        """By backpropagation inside the window with `vjp="multi-step"`, else by the trace."""
        return credit_of(self.vjp)

    @property
    def is_complete(self) -> bool:
        """With the published rule."""
        return self.rule == "published"

    def choice(self, learner: HasProgram | Program) -> dict[str, str]:
        """Which algorithm follows each use of a weight: `{relation: "D_RTRL" or "ES_D_RTRL"}`.

        Args:
          learner: a learner, or its program.
        """
        program = learner if isinstance(learner, Program) else learner.program
        return {r.name: "D_RTRL" if _needs_parameter_trace(r) else "ES_D_RTRL" for r in program.relations}

    def init(self, program: Program) -> HybridTrace:
        """Zeros."""
        (es, io), (d, full) = self._parts(program)
        return HybridTrace(es.init(io), d.init(full))

    def step(
        self,
        program: Program,
        params: Params,
        trace: HybridTrace,
        jacobians: Jacobians,
        signal: Signal,
        count: jax.Array,
    ) -> tuple[HybridTrace, tuple[tuple[Factors, ...], DiagonalRecord]]:
        """One step of each algorithm on its own uses."""
        (es, io), (d, full) = self._parts(program)
        inputs, factors = es.step(io, params, trace.by_input_output, jacobians, signal, count)
        weights, record = d.step(full, params, trace.by_parameter, _seen_by(full, jacobians), signal, count)
        return HybridTrace(inputs, weights), (factors, record)

    def window_trace(
        self,
        program: Program,
        params: Params,
        trace_before: HybridTrace | None,
        trace_after: HybridTrace,
        records: tuple[tuple[Factors, ...], DiagonalRecord],
    ) -> HybridTrace:
        """The trace of each algorithm."""
        (es, io), (d, full) = self._parts(program)
        before = (None, None) if trace_before is None else trace_before
        inputs = es.window_trace(io, params, before[0], trace_after.by_input_output, records[0])
        return HybridTrace(inputs, d.window_trace(full, params, before[1], trace_after.by_parameter, records[1]))

    def window_gradient(
        self,
        program: Program,
        params: Params,
        trace_before: HybridTrace | None,
        records: tuple[tuple[Factors, ...], DiagonalRecord],
    ) -> Parts:
        """The gradient of the window by each algorithm."""
        (es, io), (d, full) = self._parts(program)
        before = (None, None) if trace_before is None else trace_before
        inputs = es.window_gradient(io, params, before[0], records[0])
        return _both(inputs, d.window_gradient(full, params, before[1], records[1]))

    def gradient_of_trace(
        self, program: Program, params: Params, trace: HybridTrace, signal: Signal, count: jax.Array
    ) -> Parts:
        """The gradients by both traces."""
        (es, io), (d, full) = self._parts(program)
        inputs = es.gradient_of_trace(io, params, trace.by_input_output, signal, count)
        return _both(inputs, d.gradient_of_trace(full, params, trace.by_parameter, signal, count))

    def trace_product(
        self, program: Program, params: Params, trace: HybridTrace, of_trace: dict[str, dict[str, jax.Array]]
    ) -> Params:
        """The product with the traces of weights; those of inputs and outputs give factors."""
        d, full = self._parts(program)[1]
        return d.trace_product(full, params, trace.by_parameter, of_trace)

    def traces_of(self, relation: Relation, trace: HybridTrace) -> dict[str, jax.Array]:
        """The traces of the algorithm that follows the use."""
        if _needs_parameter_trace(relation):
            return D_RTRL(self.rule, self.vjp).traces_of(relation, trace.by_parameter)
        return ES_D_RTRL(self.decay_or_rank, self.rule, self.vjp).traces_of(relation, trace.by_input_output)

    def _parts(self, program: Program) -> tuple[tuple[ES_D_RTRL, Program], tuple[D_RTRL, Program]]:
        """Each algorithm with the program as it sees it."""
        by_parameter = tuple(relation for relation in program.relations if _needs_parameter_trace(relation))
        others = tuple(relation for relation in program.relations if relation not in by_parameter)
        es, d = ES_D_RTRL(self.decay_or_rank, self.rule, self.vjp), D_RTRL(self.rule, self.vjp)
        return (
            (es, dataclasses.replace(program, relations=others)),
            (d, dataclasses.replace(program, relations=by_parameter)),
        )


def _needs_parameter_trace(relation: Relation) -> bool:
    if relation.x is None or relation.gradient == "full":
        return True
    weight = sum(math.prod(shape_of(relation, leaf)) for leaf in relation.leaves)
    ends = math.prod(relation.x.spec.shape) + math.prod(relation.y.shape)
    return relation.gradient == "adaptive" and ends > weight


def _both(one: Parts, other: Parts) -> Parts:
    """The parts of two algorithms' gradients, of which each names its own weights' uses."""
    return Parts(one.factors + other.factors, {}, other.of_trace)


def _seen_by(program: Program, jacobians: Jacobians) -> Jacobians:
    """The derivatives that the relations of a program use; a window then stacks no others."""
    names = {link.df for link in program.links()}
    return jacobians._replace(
        xs={name: jacobians.xs[name] for name in program.weight_inputs()},
        dfs={name: df for name, df in jacobians.dfs.items() if name in names},
    )
