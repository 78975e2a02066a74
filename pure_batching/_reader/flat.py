"""A step without calls: one list of equations, in which every variable is made once.

`jax.jit`, `jax.checkpoint` and closed calls are opened. A `custom_jvp` or `custom_vjp` stays as it is, since its own
derivative would be lost, and so does a loop or a branch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, inner, program
from .lines import function_file, is_of_library
from .pieces import spec_of_var
from .primitives import called

Test = Callable[[JaxprEqn], bool]

# The calls whose meaning is that of their equations.
_OPENED = frozenset(["jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"])


def flat(jaxpr: Any, is_opaque: Test = lambda _: False, calls: frozenset[str] = _OPENED) -> ClosedJaxpr:
    """The same program with its calls opened.

    Args:
      jaxpr: of the program.
      is_opaque: which calls stay as they are.
      calls: the primitives of the calls that are opened; `primitives.CALLS` where no derivative is taken afterwards.
    """
    equations, consts = inner(jaxpr)
    work = _Flattening(is_opaque, calls)
    invars = [Var(var.aval) for var in equations.invars]
    outvars = work.inside(equations, consts, invars, None)
    names = [*work.consts]
    opened = program(names, invars, outvars, work.eqns, equations)
    return ClosedJaxpr(opened, [work.consts[name] for name in names])


def inlined(
    jaxpr: Any, given: Sequence[Any], is_opaque: Test = lambda _: False
) -> tuple[list[JaxprEqn], dict[Var, Any], list[Any]]:
    """The equations of a program at given variables and literals, its constants by variable, and its results."""
    equations, consts = inner(jaxpr)
    work = _Flattening(is_opaque, _OPENED)
    results = work.inside(equations, consts, given, None)
    return work.eqns, work.consts, results


def equations_of(function: Callable[..., jax.Array], *atoms: Any) -> tuple[list[JaxprEqn], Var]:
    """The equations of a function of variables and literals, and the variable of its result."""
    jaxpr, consts = inner(jax.make_jaxpr(function)(*(spec_of_var(atom) for atom in atoms)))
    work = _Flattening(lambda _: False, _OPENED)
    (result,) = work.inside(jaxpr, consts, atoms, None)
    return work.eqns, result


class _Flattening:
    """The equations and constants that were met so far."""

    def __init__(self, is_opaque: Test, calls: frozenset[str]) -> None:
        self.is_opaque, self.calls = is_opaque, calls
        self.eqns: list[JaxprEqn] = []
        self.consts: dict[Var, Any] = {}
        self.known: dict[int, Var] = {}

    def inside(self, jaxpr: Jaxpr, consts: Sequence[Any], given: Sequence[Any], caller: JaxprEqn | None) -> list[Any]:
        """Add the equations of a jaxpr that is called with `given`, and return its results.

        `caller` gives the source line where the called function is a library's: JAX traces such a function once, so
        that its own lines are those of its first call.
        """
        names: dict[Any, Any] = dict(zip(jaxpr.invars, given, strict=True))
        names.update((var, self._constant(var, value)) for var, value in zip(jaxpr.constvars, consts, strict=True))

        def name(atom: Any) -> Any:
            return atom if isinstance(atom, Literal) else names[atom]

        for eqn in jaxpr.eqns:
            operands = [name(atom) for atom in eqn.invars]
            own = eqn if caller is None else eqn.replace(source_info=caller.source_info)
            names.update(zip(eqn.outvars, self._results(own, operands), strict=True))
        return [name(atom) for atom in jaxpr.outvars]

    def _results(self, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        if eqn.primitive.name in self.calls and not self.is_opaque(eqn):
            body, consts = inner(called(eqn))
            is_foreign = is_of_library(function_file(body))
            return self.inside(body, consts, operands, eqn if is_foreign else None)
        results = [Var(var.aval) for var in eqn.outvars]
        self.eqns.append(eqn.replace(invars=operands, outvars=results))
        return results

    def _constant(self, var: Var, value: Any) -> Var:
        """One variable for each constant, however often it is met."""
        if id(value) not in self.known:
            self.known[id(value)] = Var(var.aval)
            self.consts[self.known[id(value)]] = value
        return self.known[id(value)]
