"""EProp: the trace of D_RTRL, filtered over time."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._program import Jacobians, Params, Program, Signal, States
from .._relation import Group, Relation
from .._tree import Tree
from ..errors import AlgorithmError
from ._diagonal_window import DiagonalRecord
from ._hyperparameters import Number, beside, check_fraction, dtype_field, number_field
from ._parameter_trace import ParameterTrace
from .base import Algorithm, Derivatives, Parts
from .d_rtrl import D_RTRL


class EProp(Algorithm):
    """Eligibility propagation.

        eps[t]  = D[t] eps[t-1] + x[t] (x) df[t]
        ebar[t] = kappa ebar[t-1] + eps[t]
        grad[t] = sum_s L[t, s] ebar[t, s]

    with `D = dh[t]/dh[t-1]` (diagonal), `df = dh/dy`, `L = dloss/dh` and `s` the states of a hidden group. The filter
    stands for a readout that leaks by `kappa` in each step: what a state does now reaches the losses of later steps
    through the readout, which the trace of the state itself does not see. Where the readout is a hidden state of the
    step, the weights that lead to it have the leak in their own traces already; name such states as `unfiltered`.

    The publication filters the product of `eps` and the derivative of a spike. Here that derivative is part of `L[t]`:
    both are the same where the output depends on the hidden states by constant factors. The rule is complete: with
    `K = dloss/dy` and `l = dloss/dh[t-1]` at fixed `h[t]` it adds

        sum_s l[t, s] ebar[t-1, s] + x[t] (x) K[t]

    `ebar` is a second state beside `h` whose Jacobian is `[[D, 0], [D, kappa]]`: the windows of D_RTRL serve both.

    Source: Bellec et al., "A solution to the learning dilemma for recurrent networks of spiking neurons" (2020),
    doi:10.1038/s41467-020-17236-y.

    Attributes:
      kappa: in [0, 1): the leak of the readout; with 0 the rule is `D_RTRL(rule="published")`. An array `[]` may be
        traced: `jax.vmap` over it then compiles once for all values. Nothing has a derivative by it.
      unfiltered: the paths of hidden states whose groups have no filter.
      trace_dtype: the float type in which a carry keeps the traces; None for that in which they are computed.

    Raises:
      AlgorithmError: a `kappa` out of range; a `trace_dtype` that is no float type; at capture, an unfiltered path that
        is no hidden state; at a derivative by `kappa`.
    """

    kappa: Number = number_field()
    unfiltered: tuple[str, ...] = eqx.field(static=True, default=(), converter=tuple)
    trace_dtype: Any = dtype_field()

    def __check_init__(self) -> None:
        check_fraction("kappa", self.kappa)

    @property
    def is_complete(self) -> bool:
        """Yes."""
        return True

    @property
    def derivatives(self) -> Derivatives:
        """Those of the states and of their filters."""
        return self._with_filters

    def check(self, program: Program) -> None:
        """Every unfiltered path has to be a hidden state."""
        unknown = [path for path in self.unfiltered if path not in program.states.hidden]
        if unknown:
            raise AlgorithmError(
                "unfiltered",
                got=", ".join(map(repr, unknown)),
                expected=f"paths of hidden states: {', '.join(map(repr, program.states.hidden))}",
                repair="learner.init().hidden has the paths.",
            )

    def init(self, program: Program) -> ParameterTrace:
        """Zeros."""
        return self._rule.init(self._doubled(program))

    def step(
        self,
        program: Program,
        params: Params,
        trace: ParameterTrace,
        jacobians: Jacobians,
        signal: Signal,
        count: jax.Array,
    ) -> tuple[ParameterTrace, DiagonalRecord]:
        """The record of D_RTRL, of twice as many states."""
        new, old = self._behind_filters(program, signal.new), self._behind_filters(program, signal.old)
        behind = Signal(new, old, signal.products)
        return self._rule.step(self._doubled(program), params, trace, jacobians, behind, count)

    def window_trace(
        self,
        program: Program,
        params: Params,
        trace_before: ParameterTrace | None,
        trace_after: ParameterTrace,
        records: DiagonalRecord,
    ) -> ParameterTrace:
        """The traces and the filtered traces of all steps in one contraction."""
        return self._rule.window_trace(self._doubled(program), params, trace_before, trace_after, records)

    def window_gradient(
        self, program: Program, params: Params, trace_before: ParameterTrace | None, records: DiagonalRecord
    ) -> Parts:
        """The reverse scan of D_RTRL."""
        return self._rule.window_gradient(self._doubled(program), params, trace_before, records)

    def trace_product(
        self, program: Program, params: Params, trace: ParameterTrace, of_trace: dict[str, dict[str, jax.Array]]
    ) -> Params:
        """That of D_RTRL."""
        return self._rule.trace_product(self._doubled(program), params, trace, of_trace)

    def traces_of(self, relation: Relation, trace: ParameterTrace) -> dict[str, jax.Array]:
        """A trace and a filtered trace, side by side along the last axis, for each array and each hidden group."""
        return self._rule.traces_of(relation, trace)

    @property
    def _rule(self) -> D_RTRL:
        return D_RTRL(rule="published")

    def _is_filtered(self, group: Group) -> bool:
        return not set(group.paths) & set(self.unfiltered)

    def _doubled(self, program: Program) -> Program:
        """The program with the filter of each state as a state of its own, behind those of its group."""
        groups = {group.name: self._doubled_group(group) for group in program.groups}

        def doubled(relation: Relation) -> Relation:
            links = tuple(link._replace(group=groups[link.group.name]) for link in relation.links)
            return dataclasses.replace(relation, links=links)

        relations = tuple(doubled(relation) for relation in program.relations)
        return dataclasses.replace(program, groups=tuple(groups.values()), relations=relations)

    def _doubled_group(self, group: Group) -> Group:
        if not self._is_filtered(group):
            return group
        return dataclasses.replace(group, paths=group.paths * 2, widths=group.widths * 2, dtypes=group.dtypes * 2)

    def _behind_filters(self, program: Program, signal: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The signals of filtered states go to their filters."""
        filtered = {group.name for group in program.groups if self._is_filtered(group)}
        return {
            name: jnp.concatenate([jnp.zeros_like(own), own], -1) if name in filtered else own
            for name, own in signal.items()
        }

    def _with_filters(
        self, program: Program, params: Params, states: States, inputs: tuple[Tree, ...], jacobians: Jacobians
    ) -> Jacobians:
        del params, states, inputs
        filtered = {group.name for group in program.groups if self._is_filtered(group)}
        links = {link.df for link in program.links() if link.group.name in filtered}
        return Jacobians(
            xs=jacobians.xs,
            dfs={k: jnp.concatenate([df, df], -1) if k in links else df for k, df in jacobians.dfs.items()},
            diagonals={k: self._filtering(d) if k in filtered else d for k, d in jacobians.diagonals.items()},
            within={k: _apart(m) if k in filtered else m for k, m in jacobians.within.items()},
        )

    def _filtering(self, diagonal: jax.Array) -> jax.Array:
        """`[[D, 0], [D, kappa]]`."""
        leak = jnp.broadcast_to(jnp.eye(diagonal.shape[-1], dtype=diagonal.dtype), diagonal.shape)
        leak = beside(self.kappa, diagonal) * leak
        columns = jnp.concatenate([diagonal, diagonal], -2), jnp.concatenate([jnp.zeros_like(leak), leak], -2)
        return jnp.concatenate(columns, -1)


def _apart(matrix: jax.Array) -> jax.Array:
    """`[[M, 0], [0, M]]`."""
    none = jnp.zeros_like(matrix)
    rows = jnp.concatenate([matrix, none], -1), jnp.concatenate([none, matrix], -1)
    return jnp.concatenate(rows, -2)
