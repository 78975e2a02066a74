"""Marks for a step that has none: the first equation that mixes a weight with the data is the use of that weight.

A package may name the operations that are its uses instead.

What is made of weights alone (a mask, a transposition, a norm) belongs to the use, so that each use reads the weights
themselves.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .flat import Test
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Var, inner, program
from .pieces import cut_piece, order_of, reads, spec_of_var
from .places import is_element_wise
from .primitives import moved_operands, name_of

# The names of the calls that hold a use: one that mixes its data, one that is element-wise in them, and a sum.
MIXING, ELEMENT_WISE_USE, ADDITIVE = "use_of_weights", "element_wise_use_of_weights", "sum_with_weights"
NAMES = (MIXING, ELEMENT_WISE_USE, ADDITIVE)

_SUMS = ("add", "add_any", "sub")


def with_marks(
    jaxpr: Any, weights: Sequence[Var], data: Sequence[Var], is_operation: Test | None = None
) -> ClosedJaxpr:
    """The same step, flat, with each use of weights in a call of its own.

    Args:
      jaxpr: of the step, closed and flat.
      weights: the variables of the arrays of weights.
      data: the variables of inputs and states.
      is_operation: which equations, calls named by one of `NAMES`, are the uses; by default each equation that mixes
        weights with data.
    """
    equations, consts = inner(jaxpr)
    work = _Marking(equations, consts, weights, data, is_operation)
    eqns = _needed([marked for eqn in equations.eqns for marked in work.marked(eqn)], equations.outvars)
    whole = program(equations.constvars, equations.invars, equations.outvars, eqns, equations)
    return ClosedJaxpr(whole, consts)


def _needed(eqns: Sequence[JaxprEqn], results: Sequence[Any]) -> list[JaxprEqn]:
    """The equations without those of weights alone that the calls hold now, and that nothing else reads."""
    read: set[Any] = {atom for atom in results if isinstance(atom, Var)}
    kept: list[JaxprEqn] = []
    for eqn in reversed(eqns):
        if eqn.effects or read.intersection(eqn.outvars):
            read.update(atom for atom in eqn.invars if isinstance(atom, Var))
            kept.append(eqn)
    return kept[::-1]


class _Marking:
    """The weights that each variable is made of, and the variables that depend on the data."""

    def __init__(
        self,
        jaxpr: Jaxpr,
        consts: Sequence[Any],
        weights: Sequence[Var],
        data: Sequence[Var],
        is_operation: Test | None,
    ) -> None:
        self.jaxpr, self.consts = jaxpr, dict(zip(jaxpr.constvars, consts, strict=True))
        self.of: dict[Any, tuple[Var, ...]] = {var: (var,) for var in weights}
        self.data: set[Any] = set(data)
        self.order = order_of(jaxpr)
        self.copied: set[Any] = set()
        self.is_operation = is_operation

    def marked(self, eqn: JaxprEqn) -> list[JaxprEqn]:
        """The equation, in a call if it is a use; none if a call makes its result already."""
        weights = [atom for atom in eqn.invars if isinstance(atom, Var) and atom in self.of]
        leaves = tuple(dict.fromkeys(leaf for atom in weights for leaf in self.of[atom]))
        is_use = self._is_use(eqn, leaves)
        if is_use or reads(eqn, self.data):
            self.data.update(eqn.outvars)
            self.copied.update(eqn.outvars if self._copies(eqn) else ())
            return [self._use(eqn, leaves) if is_use else eqn]
        if leaves:
            self.of.update(dict.fromkeys(eqn.outvars, leaves))
        return [eqn]

    def _is_use(self, eqn: JaxprEqn, leaves: Sequence[Var]) -> bool:
        if self.is_operation is None:
            return bool(leaves) and reads(eqn, self.data)
        return self.is_operation(eqn)

    def _use(self, eqn: JaxprEqn, leaves: Sequence[Var]) -> JaxprEqn:
        data = list(dict.fromkeys(atom for atom in eqn.invars if isinstance(atom, Var) and atom in self.data))
        given = [*leaves, *data]
        piece = cut_piece(self.jaxpr.eqns, given, eqn.outvars, self.order)
        body = program(piece.free, given, eqn.outvars, piece.jaxpr.eqns)
        return _call(ClosedJaxpr(body, [self.consts[v] for v in piece.free]), self._kind(eqn, data), eqn)

    def _kind(self, eqn: JaxprEqn, data: Sequence[Var]) -> str:
        if self.is_operation is not None:
            return name_of(eqn)
        if not is_element_wise(eqn) or self._copies(eqn):
            return MIXING
        return ADDITIVE if eqn.primitive.name in _SUMS and len(data) == 1 else ELEMENT_WISE_USE

    def _copies(self, eqn: JaxprEqn) -> bool:
        """Whether the result holds elements of the data several times, as `x[:, None] * w` does before a sum."""
        moved = [eqn.invars[i] for i in moved_operands(eqn)]
        operands = eqn.invars if is_element_wise(eqn) else moved
        data = [atom for atom in operands if isinstance(atom, Var) and atom in self.data and _size(atom) > 1]
        results = 0 if len(moved) > 1 else sum(map(_size, eqn.outvars))  # several are put beside each other
        return bool(data) and all(var in self.copied or _size(var) < results for var in data)


def _size(var: Any) -> int:
    return math.prod(spec_of_var(var).shape)


def _call(body: ClosedJaxpr, name: str, eqn: JaxprEqn) -> JaxprEqn:
    """A call of a jaxpr under a name, which takes the place of an equation."""
    equations, _ = inner(body)

    def run(*_: jax.Array) -> list[jax.Array]:
        return [jnp.zeros(spec.shape, spec.dtype) for spec in map(spec_of_var, eqn.outvars)]

    run.__name__ = name
    (call,) = jax.make_jaxpr(jax.jit(run))(*map(spec_of_var, equations.invars)).jaxpr.eqns
    params = {**call.params, "jaxpr": body}
    return call.replace(
        params=params, invars=equations.invars, outvars=eqn.outvars, effects=eqn.effects, source_info=eqn.source_info
    )
