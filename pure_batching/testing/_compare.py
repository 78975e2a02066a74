"""The comparison of two results, leaf by leaf: it finds the first step, sample and entry in which they differ."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._tree import Tree
from ._tolerances import coarsest, tolerance

# What the leading axes of a leaf are, by the beginning of its path; the first line that fits holds.
AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (".outputs", ("step", "sample")),
    (".losses", ("step", "sample")),
    (".gradients.total", ()),
    (".gradients", ("sample",)),
    (".carry.shared", ()),
    (".carry", ("sample",)),
)


class Total(NamedTuple):
    """Gradients that have been reduced over samples."""

    total: Any


class Part(NamedTuple):
    """The part of a case's data that two results belong to.

    Attributes:
      start: the first step.
      samples: which samples, in their order; None for all.
      flags: the mask and the resets, if any.
    """

    start: int = 0
    samples: Sequence[int] | np.ndarray | None = None
    flags: Mapping[str, Any] = MappingProxyType({})

    def placed(self, place: Mapping[str, int]) -> dict[str, int]:
        """Count a step and a sample of the part from the beginning of the case."""
        origin = {"step": lambda t: self.start + t, "sample": lambda i: i if self.samples is None else self.samples[i]}
        return {name: int(origin[name](index)) for name, index in place.items()}


WHOLE = Part()


class Difference(NamedTuple):
    """One entry in which two results differ.

    Attributes:
      path: of the leaf.
      place: the entry's step and sample where the leaf has them.
      got, expected: the two numbers, or what is wrong with the leaf as a whole.
      relative: the difference over the largest expected entry of the leaf.
      allowed: what it may be.
      kind: which tolerance that is; "nothing" for a leaf as a whole.
      first_step: at which anything of the sample differs; None where the leaf has no steps.
    """

    path: str
    place: dict[str, int]
    got: Any
    expected: Any
    relative: float
    allowed: float
    kind: str = "nothing"
    first_step: int | None = None

    def within(self, part: Part) -> "Difference":
        """Place the difference within the whole case."""
        first = None if self.first_step is None else part.start + self.first_step
        return self._replace(place=part.placed(self.place), first_step=first)

    def __str__(self) -> str:
        place = "".join(f", {name} {index}" for name, index in self.place.items())
        return (
            f"{self.path.lstrip('.')}{place}: got {self.got}, expected {self.expected}"
            f" (relative difference {self.relative:.1e}, allowed {self.allowed:.0e})"
        )


def numbers(leaf: Any) -> np.ndarray:
    """Turn a leaf into a numpy array; random keys become their data."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def named(tree: Tree) -> list[tuple[str, np.ndarray]]:
    """List the arrays of a tree with their paths, without units."""
    return [(jax.tree_util.keystr(path), numbers(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def first_difference(got: Tree, expected: Tree, kind: Callable[[str], str]) -> Difference | None:
    """The first leaf in which two trees differ by more than they may, at its worst entry; None where none does.

    `kind` says by the path of a leaf which tolerance it has.
    """
    found = next(_differences(got, expected, kind), None)
    if found is None or "step" not in found.place:
        return found
    return found._replace(first_step=_first_step(got, expected, kind, found.place["sample"]))


def _differences(got: Tree, expected: Tree, kind: Callable[[str], str]) -> Iterator[Difference]:
    if jax.tree.structure(got) != jax.tree.structure(expected):
        yield Difference("", {}, jax.tree.structure(got), jax.tree.structure(expected), np.inf, 0.0)
        return
    allowance = _allowance(expected, kind)
    for (path, one), (_, other) in zip(named(got), named(expected), strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            yield Difference(path, {}, f"{one.dtype}{one.shape}", f"{other.dtype}{other.shape}", np.inf, 0.0)
            continue
        allowed = allowance(path, other)
        relative = entries(one, other)
        if relative.size and relative.max() > allowed:
            index = np.unravel_index(int(relative.argmax()), relative.shape)
            place = dict(zip(axes_of(path), map(int, index), strict=False))
            yield Difference(path, place, one[index], other[index], float(relative.max()), allowed, kind(path))


def _allowance(expected: Tree, kind: Callable[[str], str]) -> Callable[[str, np.ndarray], float]:
    """By how much a leaf may differ: what its own float type allows, or the one with the fewest digits in the result.

    A loss in float32 of a state in bfloat16 has the digits of the state.
    """
    coarse = coarsest(leaf.dtype for _, leaf in named(expected))

    def allowed(path: str, leaf: np.ndarray) -> float:
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            return max(tolerance(kind(path), dtype) for dtype in (leaf.dtype, *coarse))
        return tolerance(kind(path), leaf.dtype)

    return allowed


def _first_step(got: Tree, expected: Tree, kind: Callable[[str], str], sample: int) -> int:
    """Find the first step at which an output or a loss of a sample differs by more than it may."""
    allowance = _allowance(expected, kind)
    differs = [
        (entries(one, other)[:, sample] > allowance(path, other)).reshape(len(one), -1).any(-1)
        for (path, one), (_, other) in zip(named(got), named(expected), strict=True)
        if "step" in axes_of(path) and one.shape == other.shape
    ]
    return int(np.any(differs, axis=0).argmax())


def entries(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Divide each entry's difference by the largest expected entry; infinite where one of the two is no number."""
    if not jnp.issubdtype(expected.dtype, jnp.inexact):
        return (got != expected).astype(float)
    if not np.issubdtype(expected.dtype, np.inexact):  # numpy does not know bfloat16 for a float type
        got, expected = got.astype(float), expected.astype(float)
    with np.errstate(invalid="ignore"):
        difference = np.abs(got - expected)
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    finite = np.abs(expected[np.isfinite(expected)])
    largest = finite.max() if finite.size and finite.max() > 0 else 1.0
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference / largest))


def axes_of(path: str) -> Sequence[str]:
    """Name the leading axes of a leaf."""
    return next((axes for start, axes in AXES if path.startswith(start)), ())
