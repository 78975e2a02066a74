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

from .constants import numbers_of
from .flat import Test
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Var, inner, program
from .origins import arrives_once
from .pieces import cut_piece, order_of, spec_of_var
from .places import is_element_wise
from .primitives import moved_operands, name_of

# The names of the calls that hold a use: one that mixes its data, one that leaves their elements in their places, and
# a sum.
MIXING, ELEMENT_WISE_USE, ADDITIVE = "use_of_weights", "element_wise_use_of_weights", "sum_with_weights"
NAMES = (MIXING, ELEMENT_WISE_USE, ADDITIVE)

_SUMS = ("add", "add_any", "sub")


def with_marks(
    jaxpr: Any,
    weights: Sequence[Var],
    data: Sequence[Var],
    is_operation: Test | None = None,
    states: Sequence[Var] = (),
) -> ClosedJaxpr:
    """The same step, flat, with each use of weights in a call of its own.

    Args:
      jaxpr: of the step, closed and flat.
      weights: the variables of the arrays of weights.
      data: the variables of inputs and states.
      is_operation: which equations, calls named by one of `NAMES`, are the uses; by default each equation that mixes
        weights with data.
      states: those of the data that are followed from step to step.
    """
    equations, consts = inner(jaxpr)
    work = _Marking(equations, consts, weights, data, is_operation, states)
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
        states: Sequence[Var],
    ) -> None:
        self.jaxpr, self.consts = jaxpr, dict(zip(jaxpr.constvars, consts, strict=True))
        self.of: dict[Any, tuple[Var, ...]] = {var: (var,) for var in weights}
        self.data: set[Any] = set(data)
        self.order = order_of(jaxpr)
        self.copied: set[Any] = set()
        self.is_operation = is_operation
        self.remembered: set[Any] = set(states)
        self.numbers = numbers_of(ClosedJaxpr(jaxpr, consts))

    def marked(self, eqn: JaxprEqn) -> list[JaxprEqn]:
        """The equation, in a call if it is a use; none if a call makes its result already."""
        weights = [atom for atom in eqn.invars if isinstance(atom, Var) and atom in self.of]
        leaves = tuple(dict.fromkeys(leaf for atom in weights for leaf in self.of[atom]))
        data = list(dict.fromkeys(atom for atom in eqn.invars if isinstance(atom, Var) and atom in self.data))
        kind = self._kind(eqn, leaves, data)
        if kind or data:
            self.copied.update(eqn.outvars if self._copies(eqn) else ())
            self.data.update(eqn.outvars)
            self.remembered.update(eqn.outvars if self.remembered.intersection(data) else ())
        elif leaves:
            self.of.update(dict.fromkeys(eqn.outvars, leaves))
        return [self._use(eqn, leaves, data, kind) if kind else eqn]

    def _use(self, eqn: JaxprEqn, leaves: Sequence[Var], data: Sequence[Var], kind: str) -> JaxprEqn:
        given = [*leaves, *data]
        piece = cut_piece(self.jaxpr.eqns, given, eqn.outvars, self.order)
        body = program(piece.free, given, eqn.outvars, piece.jaxpr.eqns)
        return _call(ClosedJaxpr(body, [self.consts[v] for v in piece.free]), kind, eqn)

    def _kind(self, eqn: JaxprEqn, leaves: Sequence[Var], data: Sequence[Var]) -> str:
        """The name of the call that holds a use; "" for an equation that is none."""
        if self.is_operation is not None:
            return name_of(eqn) if self.is_operation(eqn) else ""
        if not (leaves and data):
            return ""
        if not self._is_in_place(eqn, data):
            return MIXING
        return ADDITIVE if eqn.primitive.name in _SUMS and len(data) == 1 else ELEMENT_WISE_USE

    def _is_in_place(self, eqn: JaxprEqn, data: Sequence[Var]) -> bool:
        """Whether an old state is followed through a use: each of its elements arrives once, and with no other."""
        if is_element_wise(eqn) or _is_of_pairs(eqn):
            return not self._copies(eqn)
        old = [var for var in data if var in self.remembered]
        return bool(old) and self.copied.isdisjoint(old) and all(arrives_once(eqn, var, self.numbers) for var in old)

    def _copies(self, eqn: JaxprEqn) -> bool:
        """Whether the result holds elements of the data several times, as `x[:, None] * w` does before a sum."""
        moved = [eqn.invars[i] for i in moved_operands(eqn)]
        operands = eqn.invars if is_element_wise(eqn) or _is_of_pairs(eqn) else moved
        data = [atom for atom in operands if isinstance(atom, Var) and atom in self.data and _size(atom) > 1]
        results = 0 if len(moved) > 1 else sum(map(_size, eqn.outvars))  # several are put beside each other
        return bool(data) and all(var in self.copied or _size(var) < results for var in data)


def _is_of_pairs(eqn: JaxprEqn) -> bool:
    """Whether a product multiplies pairs of elements and sums none, as `einsum("i,i->i", a, h)` does."""
    if eqn.primitive.name != "dot_general":
        return False
    contracted, batch = eqn.params["dimension_numbers"]
    shapes = [spec_of_var(atom).shape for atom in eqn.invars]
    return all(
        len(axes) + len(summed) == len(shape) and all(shape[axis] == 1 for axis in summed)
        for shape, axes, summed in zip(shapes, batch, contracted, strict=True)
    )


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
