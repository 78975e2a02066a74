"""Data and results, cut, joined and altered."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._algorithms._parameter_trace import divided
from .._learning.carry import Carry
from .._tree import Tree
from ._case import Data, Result
from ._compare import numbers

# By how much a changed sequence is larger than the one that it stands for.
_LARGER = 3.0


def joined(first: Result, rest: Result) -> Result:
    """Join two parts of a sequence."""
    outputs, losses = jax.tree.map(lambda a, b: np.concatenate([a, b]), first[:2], rest[:2])
    return Result(outputs, losses, jax.tree.map(np.add, first.gradients, rest.gradients), rest.carry)


def side_by_side(parts: Any, axis: int) -> Tree:
    """Stack trees of the same structure along a new axis."""
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *parts)


def of_samples(result: Result, rows: np.ndarray) -> Result:
    """Take some samples of a result."""
    outputs, losses = jax.tree.map(lambda x: np.asarray(x)[:, rows], result[:2])
    own = jax.tree.map(lambda x: numbers(x)[rows], (result.gradients, result.carry._replace(shared={})))
    return Result(outputs, losses, own[0], own[1]._replace(shared=result.carry.shared))


def rows(sizes: list[int]) -> list[np.ndarray]:
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def changed(data: Data, sample: int) -> Data:
    """Replace the sequence of one sample by its own, backwards and larger."""

    def change(leaf: Any) -> np.ndarray:
        array = np.array(leaf)
        other = array[::-1, sample].copy()
        array[:, sample] = _LARGER * other if jnp.issubdtype(array.dtype, jnp.inexact) else other
        return array

    return jax.tree.map(change, data)


def poisoned(data: Data, sample: int) -> Data:
    """Fill one sample with NaN, which spreads to every value that depends on it."""

    def poison(leaf: Any) -> np.ndarray:
        array = np.array(leaf)
        if jnp.issubdtype(array.dtype, jnp.inexact):
            array[:, sample] = np.nan
        return array

    return jax.tree.map(poison, data)


def divided_traces(carry: Carry) -> Carry:
    """A carry whose traces are divided by what they wait for: a step, a window and BrainScale divide at other times."""
    if not getattr(carry.trace, "scales", None):
        return carry
    return carry._replace(trace=carry.trace._replace(weights=divided(carry.trace), scales={}))
