"""One operation, with where the samples lie in its operands, and what its rule may raise."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._reader.jaxprs import JaxprEqn
from .._reader.pieces import spec_of_var
from .values import Along


class Mixing(Exception):  # noqa: N818 - a signal between the rules and the walk, which no caller sees
    """The operation brings samples together."""


class Unclear(Exception):  # noqa: N818
    """The rule cannot tell where the samples lie."""


Places = Sequence[Along | None]


class At(NamedTuple):
    """An equation as its rule sees it.

    Attributes:
      eqn: the equation.
      places: where the samples lie in each operand; None for an operand that depends on none.
      column: `(operand, column) -> operand[..., column]`, None where that depends on more than constants.
    """

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
        """Where the samples lie in the first operand.

        Raises:
          Unclear: another operand depends on the samples, or the first does not.
        """
        first, *others = self.places
        if first is None or any(place is not None for place in others):
            raise Unclear
        return first


# A rule gives one place for all results, or a list with a place for each.
Rule = Callable[[At], "Along | list[Along | None]"]


def agreed(at: At) -> Along:
    """Find where the samples lie, if all operands that depend on them agree.

    Raises:
      Mixing: the operands disagree.
    """
    found = {place for place in at.places if place is not None}
    if len(found) != 1:
        raise Mixing
    return found.pop()


def put(along: Along, axis: int) -> Along:
    """Move the samples to another axis."""
    return Along(int(axis), along.outer, along.inner)


def without(along: Along, axes: Sequence[int]) -> Along:
    """Move the samples to where they lie after some axes are removed.

    Raises:
      Mixing: the samples' own axis is removed.
    """
    if along.axis in axes:
        raise Mixing
    return put(along, along.axis - sum(axis < along.axis for axis in axes))
