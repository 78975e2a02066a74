"""What is known of a value inside a batched step: where its samples lie, or where their order was lost."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Along:
    """Each sample lies at its own index: sample `b` at the `b` of an axis made of `(outer, B, inner)`."""

    axis: int
    outer: int = 1
    inner: int = 1


@dataclasses.dataclass(frozen=True)
class Own:
    """The whole value belongs to one sample, because a loop takes the samples in turn."""


@dataclasses.dataclass(frozen=True)
class Lost:
    """Nothing is known of the samples any more.

    Attributes:
      is_coupled: whether samples were mixed; otherwise they were lost from sight.
      primitive: the operation that did it.
      where: the source line of that operation.
    """

    is_coupled: bool
    primitive: str
    where: str


# None stands for a value that is the same whatever the samples hold.
Value = Along | Own | Lost | None


def first_lost(values: Iterable[Value]) -> Lost | None:
    """The first value in which samples were mixed, else the first that was lost from sight."""
    lost = [value for value in values if isinstance(value, Lost)]
    return next((value for value in lost if value.is_coupled), lost[0] if lost else None)


def either(one: Value, other: Value, otherwise: Lost) -> Value:
    """What is known of a value that is one of two; `otherwise` where they disagree."""
    if one is None or one == other:
        return other
    if other is None:
        return one
    return first_lost((one, other)) or otherwise
