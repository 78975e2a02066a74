"""How numbers and lists of things are written in an error's text."""

from collections.abc import Sequence

# A text names this many things of a kind; the others it counts.
NAMED = 5


def count(number: int, one: str, many: str | None = None) -> str:
    """A number of things, such as `1 leaf` or `2 leaves`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
