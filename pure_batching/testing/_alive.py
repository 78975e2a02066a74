"""Checks that two results have something to compare: a comparison of nothing proves nothing."""

import numpy as np

from .._tree import Tree
from ._compare import named


class DeadComparisonError(AssertionError):
    """Two results agree because nothing happened in them."""


def assert_alive(result: Tree, *, spikes: bool = False, large_traces: bool = True) -> None:
    """Raise DeadComparisonError unless a result has something to compare.

    Gradients are finite and each weight has one; hidden states are finite and have left zero; some trace exceeds 1,
    where a normalisation begins to show; and where the outputs are spikes, some neuron fires before the last step.

    Args:
      result: with `gradients`, `outputs` and `carry`.
      spikes: whether the outputs are silent until a neuron fires.
      large_traces: whether a trace must exceed 1, where the algorithm has traces.
    """
    assert_gradients_alive(result.gradients)
    assert_moving(result.carry.hidden)
    if large_traces and has_traces(result.carry.trace):
        assert_traces_alive(result.carry.trace)
    if spikes:
        assert_fires(result.outputs)


def assert_gradients_alive(gradients: Tree) -> None:
    """Check that every weight has a gradient, and that it is finite."""
    for path, leaf in named(gradients):
        _check(bool(np.isfinite(leaf).all()), f"the gradient of {path} is not finite")
        _check(bool(leaf.any()), f"the gradient of {path} is zero")


def assert_moving(states: Tree) -> None:
    """Check that hidden states are finite, and that they moved."""
    for path, leaf in named(states):
        _check(bool(np.isfinite(leaf).all()), f"the hidden state {path} is not finite")
        _check(bool(leaf.any()), f"the hidden state {path} never left zero")


def assert_traces_alive(trace: Tree) -> None:
    """Check that some trace grows beyond 1, where a normalisation begins to show."""
    size = largest(trace)
    _check(size > 1, f"no trace exceeds 1: the largest entry is {size}")


def has_traces(trace: Tree) -> bool:
    """Whether an algorithm keeps any traces of the module."""
    return any(leaf.size for _, leaf in named(trace))


def assert_fires(outputs: Tree) -> None:
    """Check that some neuron fires before the last step, so that the steps after a spike are seen as well."""
    _check(any(leaf[:-1].any() for _, leaf in named(outputs)), "no neuron fires before the last step")


def assert_differ(one: Tree, other: Tree, what: str) -> None:
    """Raise DeadComparisonError where two things that should differ give the same numbers."""
    pairs = zip(named(one), named(other), strict=True)
    same = all(np.allclose(a, b, rtol=1e-6, atol=0) for (_, a), (_, b) in pairs)
    _check(not same, f"{what} do not differ")


def largest(tree: Tree) -> float:
    """The largest magnitude in a tree, 0 in an empty one."""
    return max((float(np.abs(leaf).max()) for _, leaf in named(tree) if leaf.size), default=0.0)


def _check(holds: bool, text: str) -> None:  # noqa: FBT001 - one condition, one text
    if not holds:
        raise DeadComparisonError(f"{text}; draw other weights, larger inputs or a longer sequence")
