"""The facts about a value inside a batched step: where its samples lie, or which operation lost them."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Along:
    """Each sample has its own indices along one axis: as `(outer, B, inner)`, it holds sample `b` at `[:, b, :]`.

    Attributes:
      axis: the axis of the value.
      outer: how many blocks the axis has, each with all samples.
      inner: how many entries of one sample follow each other in a block.
    """

    axis: int
    outer: int = 1
    inner: int = 1


@dataclasses.dataclass(frozen=True)
class Own:
    """The whole value belongs to one sample, since a loop takes the samples one after the other."""


@dataclasses.dataclass(frozen=True)
class Lost:
    """The samples can no longer be told apart.

    Attributes:
      is_coupled: whether the operation mixed samples; otherwise no rule can follow it.
      primitive: the name of the operation.
      where: the source line of that operation.
    """

    is_coupled: bool
    primitive: str
    where: str


# None stands for a value that depends on no sample.
Value = Along | Own | Lost | None


def first_lost(values: Iterable[Value]) -> Lost | None:
    """Find the first value whose samples were mixed, else the first that no rule could follow; None without either."""
    lost = [value for value in values if isinstance(value, Lost)]
    return next((value for value in lost if value.is_coupled), lost[0] if lost else None)


def either(one: Value, other: Value, otherwise: Lost) -> Value:
    """Combine the facts about two possible values of one variable; they become `otherwise` where they disagree."""
    if one is None or one == other:
        return other
    if other is None:
        return one
    return first_lost((one, other)) or otherwise
