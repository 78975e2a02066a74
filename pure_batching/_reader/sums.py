"""Sums of a weight's product and further weights, such as a bias: they have one derivative."""

from .jaxprs import JaxprEqn, Var, inner
from .pieces import reads, spec_of_var
from .step import FlatStep


def sum_of(step: FlatStep, y: Var) -> Var:
    """The variable that `y` becomes by the terms of weights that are added to it, before anything else reads it."""
    while (after := _with_a_term(step, y)) is not None:
        y = after
    return y


def _with_a_term(step: FlatStep, y: Var) -> Var | None:
    """`y` plus the next term; None where `y` is read otherwise too."""
    readers = [eqn for eqn in step.eqns if reads(eqn, {y})]
    if len(readers) != 1 or y in step.closed.jaxpr.outvars or not step.traced.marks.is_additive(readers[0]):
        return None
    (after,) = readers[0].outvars
    return after if _adds(readers[0], y) and spec_of_var(after) == spec_of_var(y) else None


def _adds(eqn: JaxprEqn, y: Var) -> bool:
    """Whether a call that holds a sum has `y` with a plus."""
    equations, _ = inner(eqn.params["jaxpr"])
    place = equations.invars[list(eqn.invars).index(y)]
    last = equations.eqns[-1]
    return last.primitive.name != "sub" or last.invars[0] is place
