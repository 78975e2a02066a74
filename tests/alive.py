"""A comparison counts only if there is something to compare."""

from typing import Any

import numpy as np

from .bench import Bench, Request, Result
from .trees import Tree, largest, named


def assert_alive(bench: Bench, request: Request, result: Result) -> None:
    """Spikes fire, traces exceed 1, gradients are finite and not zero, the window is shorter than the sequence."""
    assert request.window is not None
    assert request.window < request.steps
    assert_gradients_alive(result.gradients)
    assert_traces_alive(result.aux.carry.trace)
    assert_moving(result.aux.carry.hidden)
    if bench.model.spikes:
        assert_fires(result.aux.outputs)


def assert_gradients_alive(gradients: Tree) -> None:
    """Every weight has a gradient, and the gradient is finite."""
    for name, leaf in named(gradients):
        assert np.isfinite(leaf).all(), f"{name}: not finite"
        assert leaf.any(), f"{name}: no gradient"


def assert_traces_alive(trace: Any) -> None:
    """Traces grow beyond 1, where a normalisation would begin to show."""
    assert largest(trace) > 1, f"the largest trace is {largest(trace)}"


def assert_moving(states: Tree) -> None:
    """Hidden states are finite, and have left where they began."""
    for name, leaf in named(states):
        assert np.isfinite(leaf).all(), f"{name}: not finite"
        assert leaf.any(), f"{name}: still zero"


def assert_fires(outputs: Tree) -> None:
    """Some neuron fires before the last step, so that what follows a spike is seen as well."""
    assert any(leaf[:-1].any() for _, leaf in named(outputs)), "no spike"
