"""Assertions of a step about its own constants, such as that of BrainState's dropout about its probability.

An assertion is a branch without a result, which raises an error by a callback if it is taken. Where no input decides
whether it is taken, a step that passes it once passes it always.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.core import Tracer

from .jaxprs import ClosedJaxpr, JaxprEqn, Literal, evaluate, inner, program
from .pieces import cut_piece, order_of, tainted_by


def without_passed_assertions(step: ClosedJaxpr) -> ClosedJaxpr:
    """A flat step without the branches that have no result and of which an empty one is always taken."""
    jaxpr, consts = inner(step)
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    depending = tainted_by(jaxpr.eqns, jaxpr.invars)
    eqns = [eqn for eqn in jaxpr.eqns if not _is_passed(eqn, step, known, depending)]
    return ClosedJaxpr(program(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, eqns, jaxpr), consts)


def _is_passed(eqn: JaxprEqn, step: ClosedJaxpr, known: Mapping[Any, Any], depending: set[Any]) -> bool:
    if eqn.primitive.name != "cond" or eqn.outvars or eqn.invars[0] in depending:
        return False
    chosen = _value(eqn.invars[0], step, known)
    return not isinstance(chosen, Tracer) and not inner(eqn.params["branches"][int(chosen)])[0].eqns


def _value(atom: Any, step: ClosedJaxpr, known: Mapping[Any, Any]) -> Any:
    """The number of a variable that depends on constants alone; traced where one of them is."""
    if isinstance(atom, Literal):
        return atom.val
    jaxpr, _ = inner(step)
    piece = cut_piece(jaxpr.eqns, (), [atom], order_of(jaxpr))
    with jax.ensure_compile_time_eval():
        (value,) = evaluate(ClosedJaxpr(piece.jaxpr, ()), *(known[var] for var in piece.free))
    return value
