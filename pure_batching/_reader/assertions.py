"""Assertions of a step about its own constants, such as that of BrainState's dropout about its probability.

An assertion is a branch without a result, which raises an error by a callback if it is taken. Where no input decides
whether it is taken, a step that passes it once passes it always.
"""

from .constants import Numbers, numbers_of
from .jaxprs import ClosedJaxpr, JaxprEqn, inner, program


def without_passed_assertions(step: ClosedJaxpr) -> ClosedJaxpr:
    """A flat step without the branches that have no result and of which an empty one is always taken."""
    jaxpr, consts = inner(step)
    numbers = numbers_of(step)
    eqns = [eqn for eqn in jaxpr.eqns if not _is_passed(eqn, numbers)]
    return ClosedJaxpr(program(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, eqns, jaxpr), consts)


def _is_passed(eqn: JaxprEqn, numbers: Numbers) -> bool:
    if eqn.primitive.name != "cond" or eqn.outvars:
        return False
    chosen = numbers(eqn.invars[0])
    return chosen is not None and not inner(eqn.params["branches"][int(chosen)])[0].eqns
