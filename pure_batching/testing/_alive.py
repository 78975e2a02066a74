"""A comparison counts only if there is something to compare."""

import jax
import numpy as np

from .._tree import Tree
from ._compare import numbers


class DeadComparisonError(AssertionError):
    """Two results agree because nothing happened in them."""


def assert_alive(result: Tree, *, spikes: bool = False, large_traces: bool = True) -> None:
    """Raise DeadComparisonError unless a result has something to compare.

    Gradients are finite and each weight has one; hidden states have left zero; some trace exceeds 1, where a
    normalisation begins to show; and where the outputs are spikes, some neuron fires before the last step.

    Args:
      result: with `gradients`, `outputs` and `carry`.
      spikes: whether the outputs are silent until a neuron fires.
      large_traces: whether a trace must exceed 1; not so for an algorithm without traces.
    """
    for path, leaf in _named(result.gradients):
        _check(bool(np.isfinite(leaf).all()), f"the gradient of {path} is not finite")
        _check(bool(leaf.any()), f"the gradient of {path} is zero")
    for path, leaf in _named(result.carry.hidden):
        _check(bool(leaf.any()), f"the hidden state {path} never left zero")
    sizes = [float(np.abs(leaf).max()) for _, leaf in _named(result.carry.trace) if leaf.size]
    if large_traces and sizes:
        _check(max(sizes) > 1, f"no trace exceeds 1: the largest entry is {max(sizes)}")
    if spikes:
        _check(any(leaf[:-1].any() for _, leaf in _named(result.outputs)), "no neuron fires before the last step")


def assert_differ(one: Tree, other: Tree, what: str) -> None:
    """Raise DeadComparisonError where two things that should differ give the same numbers."""
    pairs = zip(_named(one), _named(other), strict=True)
    same = all(np.allclose(a, b, rtol=1e-6, atol=0) for (_, a), (_, b) in pairs)
    _check(not same, f"{what} do not differ")


def _check(holds: bool, text: str) -> None:  # noqa: FBT001 - one condition, one text
    if not holds:
        raise DeadComparisonError(f"{text}; draw other weights, larger inputs or a longer sequence")


def _named(tree: Tree) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), numbers(leaf)) for path, leaf in leaves]
