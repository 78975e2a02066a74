"""Two results compared leaf by leaf: where they differ first, at which step and in which sample."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import Tree
from ._tolerances import tolerance

# What the leading axes of a leaf are, by the beginning of its path; the first line that fits holds.
AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (".outputs", ("step", "sample")),
    (".losses", ("step", "sample")),
    (".gradients", ("sample",)),
    (".carry.shared", ()),
    (".carry", ("sample",)),
)


class Difference(NamedTuple):
    """One entry in which two results differ.

    Attributes:
      path: of the leaf.
      place: the entry's step and sample where the leaf has them.
      got, expected: the two numbers, or what is wrong with the leaf as a whole.
      relative: the difference over the largest expected entry of the leaf.
      allowed: what it may be.
    """

    path: str
    place: dict[str, int]
    got: Any
    expected: Any
    relative: float
    allowed: float

    def __str__(self) -> str:
        place = "".join(f", {name} {index}" for name, index in self.place.items())
        return (
            f"{self.path.lstrip('.')}{place}: got {self.got}, expected {self.expected}"
            f" (relative difference {self.relative:.1e}, allowed {self.allowed:.0e})"
        )


def numbers(leaf: Any) -> np.ndarray:
    """A leaf as numbers; random keys as their data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def named(tree: Tree) -> list[tuple[str, np.ndarray]]:
    """The arrays of a tree with their paths, units aside."""
    return [(jax.tree_util.keystr(path), numbers(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def first_difference(got: Tree, expected: Tree, kind: Callable[[str], str]) -> Difference | None:
    """The first leaf in which two trees differ by more than they may, at its worst entry; None where none does.

    `kind` says by the path of a leaf which tolerance it has.
    """
    return next(_differences(got, expected, kind), None)


def _differences(got: Tree, expected: Tree, kind: Callable[[str], str]) -> Iterator[Difference]:
    if jax.tree.structure(got) != jax.tree.structure(expected):
        yield Difference("", {}, jax.tree.structure(got), jax.tree.structure(expected), np.inf, 0.0)
        return
    for (path, one), (_, other) in zip(named(got), named(expected), strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            yield Difference(path, {}, f"{one.dtype}{one.shape}", f"{other.dtype}{other.shape}", np.inf, 0.0)
            continue
        allowed = tolerance(kind(path), other.dtype)
        relative = entries(one, other)
        if relative.size and relative.max() > allowed:
            index = np.unravel_index(int(relative.argmax()), relative.shape)
            place = dict(zip(axes_of(path), map(int, index), strict=False))
            yield Difference(path, place, one[index], other[index], float(relative.max()), allowed)


def entries(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Each entry's difference over the largest expected entry; infinite where one is not a number and the other is."""
    if not np.issubdtype(expected.dtype, np.inexact):
        return (got != expected).astype(float)
    with np.errstate(invalid="ignore"):
        difference = np.abs(got - expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    finite = np.abs(expected[np.isfinite(expected)])
    largest = finite.max() if finite.size and finite.max() > 0 else 1.0
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference / largest))


def axes_of(path: str) -> Sequence[str]:
    """What the leading axes of a leaf are."""
    return next((axes for start, axes in AXES if path.startswith(start)), ())
