"""Parts of a flat step, cut out in the order of its equations, so that every process cuts the same part."""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, evaluate, program

Arrays = Sequence[jax.Array]


class Slice(NamedTuple):
    """A part of a step as a function of the variables where it was cut off.

    Attributes:
      jaxpr: `(*values of free, *values of cut) -> outputs`.
      free: positions in the step's temporaries of what the part reads and does not compute.
      cut: positions of the variables where it was cut off.
    """

    jaxpr: ClosedJaxpr
    free: tuple[int, ...]
    cut: tuple[int, ...]

    def at(self, temporaries: Arrays) -> tuple[Callable[..., list[jax.Array]], list[jax.Array]]:
        """The part as a function of the cut, and the values that the cut had in the step."""
        free = [temporaries[i] for i in self.free]
        return lambda *cut: evaluate(self.jaxpr, *free, *cut), [temporaries[i] for i in self.cut]


class Piece(NamedTuple):
    """A slice before the step's temporaries are known: variables in place of positions."""

    jaxpr: Jaxpr
    free: tuple[Var, ...]
    cut: tuple[Var, ...]

    def bind(self, temporaries: Sequence[Var]) -> Slice:
        """The slice that reads its variables from `temporaries`."""
        position = {var: i for i, var in enumerate(temporaries)}
        free, cut = (tuple(position[var] for var in part) for part in (self.free, self.cut))
        return Slice(ClosedJaxpr(self.jaxpr, ()), free, cut)


def spec_of_var(var: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a variable."""
    aval: Any = var.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def order_of(jaxpr: Jaxpr) -> dict[Var, int]:
    """Where each variable is defined: first the constants and inputs, then the equations."""
    defined = [*jaxpr.constvars, *jaxpr.invars, *(var for eqn in jaxpr.eqns for var in eqn.outvars)]
    return {var: i for i, var in enumerate(defined)}


def cut_piece(eqns: Iterable[JaxprEqn], cut: Sequence[Var], outputs: Sequence[Var], order: Mapping[Var, int]) -> Piece:
    """What `eqns` compute from `cut` to `outputs`: each equation once, in order, and only those that are needed.

    An output that no equation makes is read from outside, so that it does not depend on the cut.
    """
    makers = {var: eqn for eqn in eqns for var in eqn.outvars if var not in set(cut)}
    needed: dict[int, JaxprEqn] = {}
    free: set[Var] = set()
    pending = list(outputs)
    while pending:
        var = pending.pop()
        if var in cut:
            continue
        if var not in makers:
            free.add(var)
            continue
        place = order[makers[var].outvars[0]]
        if place not in needed:
            needed[place] = makers[var]
            pending.extend(v for v in makers[var].invars if isinstance(v, Var))
    outside = tuple(sorted(free, key=order.__getitem__))
    ordered = [needed[place] for place in sorted(needed)]
    return Piece(program((), [*outside, *cut], list(outputs), ordered), outside, tuple(cut))


def reachable(
    eqns: Iterable[JaxprEqn], sources: Iterable[Var], blocked: Callable[[JaxprEqn], bool] = lambda _: False
) -> list[JaxprEqn]:
    """The equations that depend on `sources` without passing a blocked one."""
    tainted, found = set(sources), []
    for eqn in eqns:
        if not blocked(eqn) and reads(eqn, tainted):
            tainted.update(eqn.outvars)
            found.append(eqn)
    return found


def reads(eqn: JaxprEqn, variables: Container[Var]) -> bool:
    """Whether an equation reads one of the variables."""
    return any(var in variables for var in eqn.invars if not isinstance(var, Literal))


def tainted_by(
    eqns: Iterable[JaxprEqn], sources: Iterable[Var], blocked: Callable[[JaxprEqn], bool] = lambda _: False
) -> set[Any]:
    """The sources, and every variable that depends on them without passing a blocked equation."""
    tainted = set(sources)
    for eqn in reachable(eqns, tainted, blocked):
        tainted.update(eqn.outvars)
    return tainted
