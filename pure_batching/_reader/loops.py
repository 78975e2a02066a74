"""Weights inside loops and branches: no trace can follow such a use."""

from collections.abc import Callable, Container, Iterator
from typing import Any

import jax

from .flat import Test, equations_of
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, inner, program
from .marks import Marks

# The calls that bring a derivative of their own, which their equations do not have.
OWN_DERIVATIVE = frozenset(["custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"])


def bodies(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs inside an equation."""
    for value in eqn.params.values():
        for body in value if isinstance(value, (tuple, list)) else (value,):
            if _is_jaxpr(body):
                yield inner(body)[0]


def holds(jaxpr: Jaxpr, primitives: Container[str]) -> bool:
    """Whether a jaxpr holds one of some primitives, at any depth."""
    return any(
        eqn.primitive.name in primitives or any(holds(body, primitives) for body in bodies(eqn)) for eqn in jaxpr.eqns
    )


def way_to(jaxpr: Jaxpr, is_wanted: Test) -> tuple[JaxprEqn, ...]:
    """The first equation that is wanted, behind those that hold it, the outermost in front; empty if there is none."""
    for eqn in jaxpr.eqns:
        inside = next((found for body in bodies(eqn) if (found := way_to(body, is_wanted))), ())
        if inside or is_wanted(eqn):
            return eqn, *inside
    return ()


def uses_inside(eqn: JaxprEqn, is_use: Test) -> Iterator[JaxprEqn]:
    """The uses of weights inside an equation, at any depth."""
    for part in (part for body in bodies(eqn) for part in body.eqns):
        if is_use(part):
            yield part
        else:
            yield from uses_inside(part, is_use)


def rewritten_inside(eqn: JaxprEqn, rewrite: Callable[[JaxprEqn], list[JaxprEqn]]) -> JaxprEqn:
    """An equation in whose jaxprs others stand in place of each equation."""
    return eqn.replace(params={name: rewritten(value, rewrite) for name, value in eqn.params.items()})


def rewritten(value: Any, rewrite: Callable[[JaxprEqn], list[JaxprEqn]]) -> Any:
    """A jaxpr, or a parameter that may hold jaxprs, in which others stand in place of each equation."""
    if isinstance(value, (tuple, list)):
        return type(value)(rewritten(item, rewrite) for item in value)
    if not _is_jaxpr(value):
        return value
    jaxpr, consts = inner(value)
    eqns = [part for eqn in jaxpr.eqns for part in rewrite(eqn)]
    new = program(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, eqns, jaxpr)
    return ClosedJaxpr(new, consts) if isinstance(value, ClosedJaxpr) else new


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))


def differentiable(eqn: JaxprEqn, marks: Marks) -> list[JaxprEqn]:
    """A `while` with a weight inside, cut off from every gradient; any other equation as it is.

    JAX has no reverse derivative of a `while`: without the cut, nothing in the step could be trained.
    """
    is_undifferentiable = eqn.primitive.name == "while" and any(True for _ in uses_inside(eqn, marks.is_use))
    return _cut_off(eqn) if is_undifferentiable else [eqn]


def without_weights(eqn: JaxprEqn, marks: Marks) -> JaxprEqn:
    """A loop or branch in which no derivative of hidden states goes through a weight; any other equation as it is.

    This is what happens outside of loops and branches, where a trace does not follow an equation that uses a weight.
    """
    has_weights = eqn.primitive.name not in OWN_DERIVATIVE and any(True for _ in uses_inside(eqn, marks.is_use))
    if not has_weights:
        return eqn
    return rewritten_inside(eqn, lambda part: _cut_at_weights(part, marks))


def _cut_at_weights(eqn: JaxprEqn, marks: Marks) -> list[JaxprEqn]:
    has_own_derivative = eqn.primitive.name in OWN_DERIVATIVE and any(True for _ in uses_inside(eqn, marks.is_use))
    if has_own_derivative or (marks.is_use(eqn) and not marks.is_followed(eqn)):
        return _cut_off(eqn)
    return [eqn if marks.is_use(eqn) else without_weights(eqn, marks)]


def _without_gradient(x: jax.Array) -> jax.Array:
    return jax.lax.stop_gradient(x)


def _cut_off(eqn: JaxprEqn) -> list[JaxprEqn]:
    """An equation whose operands pass no gradient."""
    before, operands = [], []
    for atom in eqn.invars:
        made, operand = ([], atom) if isinstance(atom, Literal) else equations_of(_without_gradient, atom)
        before += made
        operands.append(operand)
    return [*before, eqn.replace(invars=operands)]
