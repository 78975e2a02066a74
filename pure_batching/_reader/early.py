"""A step that is run again and again, cut into what is made once, what waits for no state, and the rest.

A product of a weight with what a step is given does not wait for the step before it, so that it is one product for all
steps. The product of `[x, h]` with a weight waits for `h`. Two products in its place, of which one need not wait, were
slower at the shapes of most networks.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .._tree import is_key
from .flat import flat
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Var, evaluate, inner, program
from .pieces import cut_piece, order_of, spec_of_var, tainted_by
from .primitives import LOOPS


class CutStep(NamedTuple):
    """A step `(*state, *given) -> (*state, *results)`.

    Attributes:
      constant: the results that are the same in every step, by their place.
      changing: the places of the others.
      early: `(*given) -> products`.
      rest: `(*products, *state, *given) -> (*state, *changing results)`.
    """

    constant: dict[int, jax.Array]
    changing: tuple[int, ...]
    early: Callable[..., list[jax.Array]]
    rest: Callable[..., list[jax.Array]]


def cut_step(made: Any, count: int) -> CutStep:
    """Cut a step.

    Args:
      made: its jaxpr, whose constants are the same in every step.
      count: of the arrays of the state.
    """
    jaxpr, consts = inner(flat(made))
    flow, order = _Flow.of(jaxpr, count), order_of(jaxpr)
    results = dict(enumerate(jaxpr.outvars[count:]))
    constant = {i: var for i, var in results.items() if isinstance(var, Var) and var not in flow.changing}
    products = [eqn.outvars[0] for eqn in jaxpr.eqns if flow.is_early(eqn)]
    named = _with_beside(jaxpr, [*constant.values(), *flow.weights(jaxpr)])
    once = cut_piece(jaxpr.eqns, (), named, order)
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    made_once = evaluate(ClosedJaxpr(once.jaxpr, ()), *(known[var] for var in once.free))
    known.update(zip(named, made_once, strict=True))
    eqns = [eqn for eqn in jaxpr.eqns if known.keys().isdisjoint(eqn.outvars)]
    early = cut_piece(eqns, jaxpr.invars[count:], products, order)
    changing = tuple(i for i in results if i not in constant)
    rest = program(
        [*known],
        [*products, *jaxpr.invars],
        [*jaxpr.outvars[:count], *(results[i] for i in changing)],
        [eqn for eqn in eqns if not flow.is_early(eqn)],
        jaxpr,
    )
    return CutStep(
        constant={i: known[var] for i, var in constant.items()},
        changing=changing,
        early=lambda *given: evaluate(ClosedJaxpr(early.jaxpr, ()), *(known[var] for var in early.free), *given),
        rest=lambda *args: evaluate(ClosedJaxpr(rest, [*known.values()]), *args),
    )


def _with_beside(jaxpr: Jaxpr, named: list[Var]) -> list[Var]:
    """Variables, and what the equations that make them make besides."""
    made = [var for eqn in jaxpr.eqns if not set(named).isdisjoint(eqn.outvars) for var in eqn.outvars]
    return [*dict.fromkeys([*named, *made])]


class _Flow(NamedTuple):
    """What depends on what.

    Attributes:
      changing: the variables that may change from step to step.
      waiting: those that depend on the state, or on what is done step by step.
    """

    changing: set[Var]
    waiting: set[Var]

    @classmethod
    def of(cls, jaxpr: Jaxpr, count: int) -> "_Flow":
        """Of a step with so many arrays in its state."""
        from_outside = [var for eqn in jaxpr.eqns if eqn.effects for var in eqn.outvars]
        in_turn = [var for eqn in jaxpr.eqns if _is_done_in_turn(eqn) for var in eqn.outvars]
        changing = tainted_by(jaxpr.eqns, [*jaxpr.invars, *from_outside])
        return cls(changing, tainted_by(jaxpr.eqns, [*jaxpr.invars[:count], *in_turn]) & changing)

    def is_early(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is a product of a weight that does not wait."""
        return self.changing_place(eqn) is not None and eqn.outvars[0] not in self.waiting

    def changing_place(self, eqn: JaxprEqn) -> int | None:
        """Which operand of a product of a weight is not the weight; None for another equation."""
        if eqn.primitive.name != "dot_general":
            return None
        places = [i for i, atom in enumerate(eqn.invars) if isinstance(atom, Var) and atom in self.changing]
        return places[0] if len(places) == 1 else None

    def weights(self, jaxpr: Jaxpr) -> list[Var]:
        """What products read of weights, where equations make it."""
        made = {var for eqn in jaxpr.eqns for var in eqn.outvars} - self.changing
        products = (eqn for eqn in jaxpr.eqns if self.changing_place(eqn) is not None)
        return [
            *dict.fromkeys(atom for eqn in products for atom in eqn.invars if isinstance(atom, Var) and atom in made)
        ]


def _is_done_in_turn(eqn: JaxprEqn) -> bool:
    """Whether an equation stays where it is.

    That is one with an effect, of random keys, with loops or branches in it, or one that JAX may be unable to map.
    """
    has_keys = any(is_key(spec_of_var(var).dtype) for var in (*eqn.invars, *eqn.outvars))
    return bool(eqn.effects) or has_keys or eqn.primitive.name in (*LOOPS, "pure_callback", "ffi_call")
