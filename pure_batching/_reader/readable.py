"""A step rewritten so that BrainScale's compiler can read it; what is computed stays the same.

The compiler finds no hidden state behind a call (`jnp.where` is one), and reads one hidden state per equation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

from .pieces import spec_of_var

Test = Callable[[JaxprEqn], bool]


def readable(jaxpr: Jaxpr, before: set[Var], after: set[Var], *, opaque: Test) -> Jaxpr:
    """The same step, its calls opened where they make a hidden state, and with one hidden state per equation.

    Args:
      jaxpr: of the step.
      before: the hidden states that go in.
      after: the hidden states that come out.
      opaque: which equations stay as they are.
    """
    eqns = [part for eqn in jaxpr.eqns for part in _opened(eqn, after, opaque)]
    eqns = [part for eqn in eqns for part in _one_hidden_state(eqn, before, opaque)]
    return Jaxpr(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, eqns, jaxpr.effects, jaxpr.debug_info)


def _one_hidden_state(eqn: JaxprEqn, hidden: set[Var], opaque: Test) -> list[JaxprEqn]:
    """An equation that reads one hidden state and copies of the others."""
    if opaque(eqn):
        return [eqn]
    places = [i for i, var in enumerate(eqn.invars) if not isinstance(var, Literal) and var in hidden]
    copies = {i: _copied(eqn.invars[i]) for i in places[1:]}
    given = [copies[i].outvars[0] if i in copies else var for i, var in enumerate(eqn.invars)]
    return [*copies.values(), eqn.replace(invars=given)]


def _opened(eqn: JaxprEqn, wanted: set[Var], opaque: Test) -> list[JaxprEqn]:
    """The equations of a jitted call that makes one of the wanted variables; any other equation as it is."""
    inner = eqn.params.get("jaxpr")
    is_call = eqn.primitive.name in ("jit", "pjit") and isinstance(inner, ClosedJaxpr)
    if not is_call or opaque(eqn) or not wanted.intersection(eqn.outvars):
        return [eqn]
    traced = jax.make_jaxpr(jaxpr_as_fun(inner))(*(spec_of_var(var) for var in eqn.invars))
    made = [var for part in traced.jaxpr.eqns for var in part.outvars]
    if traced.consts or any(made.count(var) != 1 for var in traced.jaxpr.outvars):
        return [eqn]
    names = dict(zip([*traced.jaxpr.invars, *traced.jaxpr.outvars], [*eqn.invars, *eqn.outvars], strict=True))
    parts = [_renamed(part, names) for part in traced.jaxpr.eqns]
    return [smaller for part in parts for smaller in _opened(part, wanted, opaque)]


def _renamed(eqn: JaxprEqn, names: dict[Var, Any]) -> JaxprEqn:
    given = [var if isinstance(var, Literal) else names.get(var, var) for var in eqn.invars]
    return eqn.replace(invars=given, outvars=[names.get(var, var) for var in eqn.outvars])


def _copied(var: Any) -> JaxprEqn:
    """An equation that makes a new variable of the same value."""
    (eqn,) = jax.make_jaxpr(jnp.copy)(spec_of_var(var)).jaxpr.eqns
    return eqn.replace(invars=[var])
