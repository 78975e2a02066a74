"""A comparison counts only if there is something to compare."""

import jax

from pure_batching.testing._alive import (
    assert_fires as assert_fires,
    assert_gradients_alive as assert_gradients_alive,
    assert_moving as assert_moving,
    assert_traces_alive as assert_traces_alive,
)

from .bench import Bench, Request, Result


def assert_alive(bench: Bench, request: Request, result: Result, *, large_traces: bool = True) -> None:
    """Spikes fire, traces exceed 1, gradients are finite and not zero, the window is shorter than the sequence."""
    assert request.window is not None
    assert request.window < request.steps
    assert_gradients_alive(result.gradients)
    if large_traces and jax.tree.leaves(result.aux.carry.trace):  # backpropagation carries none
        assert_traces_alive(result.aux.carry.trace)
    assert_moving(result.aux.carry.hidden)
    if bench.model.spikes:
        assert_fires(result.aux.outputs)
