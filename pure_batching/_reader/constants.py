"""The values that the equations of a jaxpr make of constants alone, which are known before it runs."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .jaxprs import ClosedJaxpr, Jaxpr, Literal, evaluate, inner
from .pieces import cut_piece, order_of

# The value of a variable or literal that depends on constants alone; None for any other.
Numbers = Callable[[Any], np.ndarray | None]


def nothing(_: Any) -> None:
    """No value is known."""


def numbers_of(jaxpr: Jaxpr | ClosedJaxpr, outside: Numbers = nothing) -> Numbers:
    """The values that are known of a jaxpr's variables.

    Args:
      jaxpr: its equations; an open one has no constants.
      outside: the values of its inputs, as far as they are known.
    """
    equations, consts = inner(jaxpr)
    constant, order = dict(zip(equations.constvars, consts, strict=False)), order_of(equations)

    def value(atom: Any) -> np.ndarray | None:
        if isinstance(atom, Literal):
            return np.asarray(atom.val)
        piece = cut_piece(equations.eqns, (), [atom], order)
        free = [constant[var] if var in constant else outside(var) for var in piece.free]
        is_known = not any(one is None or isinstance(one, Tracer) for one in free)
        if not is_known or any(eqn.effects for eqn in piece.jaxpr.eqns):
            return None
        with jax.ensure_compile_time_eval():
            (number,) = evaluate(ClosedJaxpr(piece.jaxpr, ()), *free)
            return np.asarray(number)

    return value


def numbers_inside(body: ClosedJaxpr, operands: Sequence[Any], numbers: Numbers) -> Numbers:
    """The values that are known in a jaxpr that an equation holds.

    Args:
      body: the jaxpr.
      operands: what it is called with, by its first inputs; the others may change from call to call.
      numbers: what is known around the equation.
    """
    given = dict(zip(inner(body)[0].invars, operands, strict=False))
    return numbers_of(body, lambda var: numbers(given[var]) if var in given else None)
