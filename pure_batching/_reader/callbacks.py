"""Callbacks that keep their order, which JAX runs on one device alone."""

from .jaxprs import Jaxpr, JaxprEqn
from .lines import place
from .loops import way_to


def ordered_callback(jaxpr: Jaxpr) -> str | None:
    """What an error says of the first callback that keeps its order, at any depth; None where there is none."""
    found = way_to(jaxpr, _keeps_order)
    if not found:
        return None
    line = place(found[0])
    return f"{found[-1].primitive.name}(ordered=True){f' at {line}' if line else ''}"


def _keeps_order(eqn: JaxprEqn) -> bool:
    return any("Ordered" in type(effect).__name__ for effect in eqn.effects)
