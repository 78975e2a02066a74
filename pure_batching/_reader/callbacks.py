"""Callbacks that keep their order, which JAX runs on one device alone."""

from .jaxprs import Jaxpr, JaxprEqn
from .lines import place
from .loops import first


def ordered_callback(jaxpr: Jaxpr) -> str | None:
    """What an error says of the first callback that keeps its order, at any depth; None where there is none."""
    eqn = first(jaxpr, _keeps_order)
    if eqn is None:
        return None
    line = place(eqn)
    return f"{eqn.primitive.name}(ordered=True){f' at {line}' if line else ''}"


def _keeps_order(eqn: JaxprEqn) -> bool:
    return any("Ordered" in type(effect).__name__ for effect in eqn.effects)
