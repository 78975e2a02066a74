"""Callbacks that keep their order, which JAX runs on one device alone, and of which it maps some over no samples."""

from .flat import Test
from .jaxprs import Jaxpr, JaxprEqn
from .lines import place
from .loops import way_to


def ordered_callback(jaxpr: Jaxpr) -> str:
    """What an error says of the first callback that keeps its order, at any depth; empty where there is none."""
    return _first(jaxpr, _keeps_order)


def unmapped_callback(jaxpr: Jaxpr) -> str:
    """The same of the first `io_callback` among them, the one kind that JAX does not map over samples."""
    return _first(jaxpr, lambda eqn: eqn.primitive.name == "io_callback" and _keeps_order(eqn))


def _first(jaxpr: Jaxpr, is_wanted: Test) -> str:
    found = way_to(jaxpr, is_wanted)
    if not found:
        return ""
    line = place(found[0])
    return f"{found[-1].primitive.name}(ordered=True){f' at {line}' if line else ''}"


def _keeps_order(eqn: JaxprEqn) -> bool:
    return any("Ordered" in type(effect).__name__ for effect in eqn.effects)
