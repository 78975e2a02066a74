"""One form of a jaxpr for jax 0.9.2 to 0.12. No other file of this package imports `jax.extend.core`.

Two things changed between these versions. Up to jax 0.10 a `Jaxpr` is open: it names its constants (`constvars`), and a
`ClosedJaxpr` holds it together with their values. Since jax 0.11 both are one class, whose `.jaxpr` is itself. Since
jax 0.12 a `scan` says by `ft_in` how many of its operands are constants and how many are carried, where it had the
numbers `num_consts` and `num_carry` before.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.api_util import debug_info
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun

__all__ = ["ClosedJaxpr", "Jaxpr", "JaxprEqn", "Literal", "Var", "closed", "evaluate", "inner", "program", "scan_parts"]

# What a jaxpr says of its source where it has none; JAX warns of one that says nothing.
_PIECE = debug_info("a piece of a step", lambda: None, (), {})._replace(
    func_src_info="<piece>", arg_names=None, result_paths=None
)


def inner(jaxpr: Any) -> tuple[Jaxpr, tuple[Any, ...]]:
    """The equations of a jaxpr, open or closed, and the values of its `constvars`."""
    return getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ()))


def closed(jaxpr: Any, consts: Sequence[Any] | None = None) -> ClosedJaxpr:
    """A jaxpr with the values of its `constvars`.

    Args:
      jaxpr: open or closed.
      consts: the values, in place of those that it holds; by default its own, none for an open jaxpr.
    """
    equations, own = inner(jaxpr)
    return ClosedJaxpr(equations, own if consts is None else tuple(consts))


def program(
    constvars: Sequence[Var], invars: Sequence[Var], outvars: Sequence[Any], eqns: Sequence[JaxprEqn], like: Any = None
) -> Jaxpr:
    """An open jaxpr, which since jax 0.12 has to say whether it holds operations that JAX writes out by itself.

    Args:
      constvars: the variables of its constants.
      invars: its inputs.
      outvars: its results.
      eqns: its equations.
      like: a jaxpr with the same effects and the same source, if there is one.
    """
    effects, source = (frozenset(), _PIECE) if like is None else (like.effects, like.debug_info)
    is_high = any(eqn.primitive.is_high(*(atom.aval for atom in eqn.invars), **eqn.params) for eqn in eqns)
    arguments: Any = (constvars, invars, outvars, eqns, effects, source)
    return Jaxpr(*arguments, is_high=is_high)


def evaluate(jaxpr: ClosedJaxpr, *args: Any) -> list[jax.Array]:
    """The results of a closed jaxpr at `args`."""
    return jaxpr_as_fun(jaxpr)(*args)


def scan_parts(eqn: JaxprEqn) -> tuple[int, int]:
    """How many operands of a `scan` are constants, and how many are its carry; the rest is taken row by row."""
    if "ft_in" not in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(consts), len(carry)
