"""Comparing trees leaf by leaf, and cutting samples out of them."""

from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

from pure_batching.testing import tolerance
from pure_batching.testing._alive import largest as largest
from pure_batching.testing._altered import divided_traces as divided_traces
from pure_batching.testing._compare import entries, first_difference, named as named, numbers as numbers

Tree = Any


def assert_same_structure(got: Tree, want: Tree) -> None:
    """The same containers, keys and units; the same shape and dtype of every leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (name, one), (_, other) in zip(named(got), named(want), strict=True):
        assert (name, one.shape, one.dtype) == (name, other.shape, other.dtype)


def assert_identical(got: Tree, want: Tree) -> None:
    """The same trees, bit for bit."""
    assert_same_structure(got, want)
    for (name, one), (_, other) in zip(named(got), named(want), strict=True):
        assert one.tobytes() == other.tobytes(), f"{name}: largest difference {distance(one, other)}"


def assert_not_identical(got: Tree, want: Tree) -> None:
    """Some bit differs."""
    assert_same_structure(got, want)
    pairs = zip(named(got), named(want), strict=True)
    assert any(one.tobytes() != other.tobytes() for (_, one), (_, other) in pairs), "the same bits"


def assert_close(got: Tree, want: Tree, kind: str = "gradient") -> None:
    """The same trees, each leaf within the tolerance of `kind` of its largest entry."""
    difference = first_difference(got, want, lambda _: kind)
    assert difference is None, str(difference)


def distance(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, relative to the largest entry; infinite where one is not a number and the other is."""
    return float(entries(got, want).max(initial=0.0))


def assert_differ(got: Tree, want: Tree) -> None:
    """Every pair of leaves differs by more than any tolerance could hide: two rules, two samples, two steps."""
    for (name, one), (_, other) in zip(named(got), named(want), strict=True):
        assert distance(one, other) > 1e3 * tolerance("gradient", other.dtype), f"{name}: the same numbers"


def assert_some_differ(got: Tree, want: Tree) -> None:
    """Some pair of leaves differs by more than any tolerance could hide."""
    pairs = [(one, other) for (_, one), (_, other) in zip(named(got), named(want), strict=True)]
    assert any(distance(one, other) > 1e3 * tolerance("gradient", other.dtype) for one, other in pairs), "the same"


def sample(tree: Tree, i: Any, axis: int = 0) -> Tree:
    """Sample `i` of a tree that leads with samples."""
    return jax.tree.map(lambda x: x[(slice(None),) * axis + (i,)], tree)


def sample_of_carry(carry: Any, i: Any) -> Any:
    """Sample `i` of a batched carry: what all samples share stays whole."""
    return sample(carry._replace(shared={}), i)._replace(shared=carry.shared)


def joined(parts: list[Tree], axis: int = 0) -> Tree:
    """Trees of single samples, stacked."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *parts)


def joined_carries(carries: list[Any]) -> Any:
    """Carries of single samples as one of a batch."""
    return joined([carry._replace(shared={}) for carry in carries])._replace(shared=carries[0].shared)


def units_of(tree: Tree) -> list[Any]:
    """The unit of each leaf."""
    return [u.get_unit(leaf) for leaf in jax.tree.leaves(tree, is_leaf=u.math.is_quantity)]


def slice_time(tree: Tree, start: int, stop: int) -> Tree:
    """Steps `start` to `stop` of a tree that leads with time."""
    return jax.tree.map(lambda x: x[start:stop], tree)


def with_sample(tree: Tree, j: int, other: Tree) -> Tree:
    """A tree `[T, B, ...]` whose sample `j` is that of another tree."""
    return jax.tree.map(lambda x, y: jnp.asarray(x).at[:, j].set(y[:, j]), tree, other)


def not_numbers(tree: Tree) -> Tree:
    """A tree of the same kind that ruins whatever it touches; what has no such number stays."""

    def ruin(leaf: Any) -> jax.Array:
        is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.full_like(leaf, jnp.nan) if is_float else jnp.asarray(leaf)

    return jax.tree.map(ruin, tree)
