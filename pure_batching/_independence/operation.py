"""One operation as the rules see it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._reader.jaxprs import JaxprEqn
from .._reader.pieces import spec_of_var
from .values import Along


class Mixing(Exception):  # noqa: N818 - a signal between the rules and the walk, which no caller sees
    """The operation brings samples together."""


class Unclear(Exception):  # noqa: N818
    """The rule cannot tell."""


Places = Sequence[Along | None]


class At(NamedTuple):
    """An equation, where the samples lie in each operand, and the known entries `[..., column]` of an operand."""

    eqn: JaxprEqn
    places: Places
    column: Callable[[int, int], np.ndarray | None]

    @property
    def params(self) -> dict[str, Any]:
        return self.eqn.params

    def shape(self, operand: int = 0) -> tuple[int, ...]:
        return tuple(spec_of_var(self.eqn.invars[operand]).shape)

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(spec_of_var(self.eqn.outvars[0]).shape)

    @property
    def only(self) -> Along:
        """Where the samples lie in the first operand; the others must not depend on them."""
        first, *others = self.places
        if first is None or any(place is not None for place in others):
            raise Unclear
        return first


# One place for every result, or a place for each.
Rule = Callable[[At], "Along | list[Along | None]"]


def agreed(at: At) -> Along:
    """The place in which all operands that depend on the samples hold them."""
    found = {place for place in at.places if place is not None}
    if len(found) != 1:
        raise Mixing
    return found.pop()


def put(along: Along, axis: int) -> Along:
    """The samples in another axis."""
    return Along(int(axis), along.outer, along.inner)


def without(along: Along, axes: Sequence[int]) -> Along:
    """The samples where some axes are gone."""
    if along.axis in axes:
        raise Mixing
    return put(along, along.axis - sum(axis < along.axis for axis in axes))
