"""How BrainTrace marks the uses of its weights: by the class of the primitives that compute them.

A module that uses such a primitive has imported BrainTrace, so this file does not.
"""

import sys
from collections.abc import Collection
from typing import Any

import jax

from .._reader.flat import flat
from .._reader.jaxprs import ClosedJaxpr, JaxprEqn, inner, program
from .._reader.lookups import with_products
from .._reader.loops import rewritten_inside, uses_inside
from .._reader.marking import ELEMENT_WISE_USE, MIXING, NAMES, with_marks
from .._reader.marks import Marks
from .._reader.pieces import reads
from .._reader.primitives import name_of
from .._reader.step import TracedStep
from .._reader.written_out import call_of


def with_braintrace(step: TracedStep) -> TracedStep:
    """A step in which BrainTrace's operations are marked calls of plain equations; the same step where it has none.

    As plain equations they are mapped and differentiated by JAX; BrainTrace's own batching rule warns that it loses
    the mark.

    Args:
      step: as it was traced, with the marks of BrainScale.
    """
    if not any(_holds_operation(eqn) for eqn in inner(step.jaxpr)[0].eqns):
        return step
    opened = flat(step.jaxpr, step.marks.is_use)
    equations, consts = inner(opened)
    before, _ = step.variables(equations)
    eqns = [part for eqn in equations.eqns for part in _plain(eqn)]
    plain = program(equations.constvars, equations.invars, equations.outvars, eqns, equations)
    weights = [var for path in step.of_kind("param") for var in before[path]]
    data = [var for var in equations.invars if var not in set(weights)]
    marked = with_marks(ClosedJaxpr(plain, consts), weights, data, _is_use)
    uses = [eqn for eqn in inner(marked)[0].eqns if _holds_use(eqn)]
    used = [path for path in step.of_kind("param") if any(reads(eqn, set(before[path])) for eqn in uses)]
    return with_products(step._replace(jaxpr=marked, marks=BrainTraceMarks(step.marks, used)))


class BrainTraceMarks(Marks):
    """The marks of a module with operations of BrainTrace, which may have operations of BrainScale too.

    Args:
      others: the marks of BrainScale.
      weights: the paths of the weights that an operation of BrainTrace reads.
    """

    def __init__(self, others: Marks, weights: Collection[str]) -> None:
        self._others, self._weights = others, frozenset(weights)

    def is_shared(self, path: str) -> bool:
        """Yes for BrainTrace: an operation reads a matrix and a bias, say, which may be two weights."""
        return path in self._weights or self._others.is_shared(path)

    def is_use(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is an operation of either package."""
        return _is_use(eqn) or self._others.is_use(eqn)

    def is_followed(self, eqn: JaxprEqn) -> bool:
        """Whether an operation is element-wise."""
        return name_of(eqn) == ELEMENT_WISE_USE or self._others.is_followed(eqn)

    def is_additive(self, eqn: JaxprEqn) -> bool:
        """No."""
        return self._others.is_additive(eqn)

    def why_untraced(self, path: str) -> str:
        """That no operation reads the weight."""
        reason = "" if path in self._weights else self._others.why_untraced(path)
        return f"no operation of BrainTrace reads it; {reason}" if reason else ""

    def gradient(self, path: str) -> str:
        """The smaller trace; BrainTrace has no hybrid algorithm."""
        return "adaptive" if path in self._weights else self._others.gradient(path)

    def derivative(self, path: str, x: jax.ShapeDtypeStruct | None, y: jax.ShapeDtypeStruct) -> ClosedJaxpr | None:
        """None: the equations are differentiated."""
        return None if path in self._weights else self._others.derivative(path, x, y)


def _plain(eqn: JaxprEqn) -> list[JaxprEqn]:
    """An operation of BrainTrace as a marked call of its own equations; any other equation with such calls inside."""
    if _is_operation(eqn):
        operation: Any = eqn.primitive
        return [call_of(lambda *arrays: operation.impl(*arrays, **eqn.params), eqn, _name(eqn))]
    return [rewritten_inside(eqn, _plain) if _holds_operation(eqn) else eqn]


def _name(eqn: JaxprEqn) -> str:
    """The mark of an operation.

    BrainTrace follows a hidden state through `element_wise` alone, which takes no input besides its weight. It keeps
    a list of such primitives, and one of which operands are weights, in a private module. Neither is needed: the
    number of operands tells the first, and what an operand is made of the second (`with_marks`).
    """
    return ELEMENT_WISE_USE if len(eqn.invars) == 1 else MIXING


def _is_use(eqn: JaxprEqn) -> bool:
    return name_of(eqn) in NAMES


def _holds_use(eqn: JaxprEqn) -> bool:
    return _is_use(eqn) or any(True for _ in uses_inside(eqn, _is_use))


def _is_operation(eqn: JaxprEqn) -> bool:
    braintrace: Any = sys.modules.get("braintrace")
    return braintrace is not None and isinstance(eqn.primitive, braintrace.ETPPrimitive)


def _holds_operation(eqn: JaxprEqn) -> bool:
    return _is_operation(eqn) or any(True for _ in uses_inside(eqn, _is_operation))
