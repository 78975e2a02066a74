"""The multi-step method, against BrainScale's own."""

import dataclasses
import functools
import itertools
from typing import Any

import brainscale
import jax
import numpy as np
import pytest

import pure_batching as pb

from ..alive import assert_gradients_alive, assert_traces_alive
from ..bench import SAMPLES, STEPS, Bench, Request, bench
from ..trees import Tree, assert_close, assert_differ, joined, joined_carries, sample
from .brainscale_runs import Make, Native, carry_of, d_rtrl, es_d_rtrl, hidden_states, one_sample

MODELS = ("MinimalRNNCell", "LSTMCell", "tutorial", "lif", "readouts", "LRUCell")
WINDOWS = (1, 2, 3)

RULES = {"ES_D_RTRL": (pb.ES_D_RTRL(0.9, vjp="multi-step"), es_d_rtrl), "D_RTRL": (pb.D_RTRL(vjp="multi-step"), d_rtrl)}


def windowed(made: Bench, make: Make) -> Native:
    """BrainScale's multi-step method on one sample, fed with a window at a time."""
    native = one_sample(made, functools.partial(make, vjp_method="multi-step"))

    def call(*inputs: Tree) -> Tree:
        return native.algorithm(*map(brainscale.MultiStepData, inputs))

    return dataclasses.replace(native, call=call, is_batched=True)


def in_windows(tree: Tree, window: int) -> Tree:
    """`[T, ...]` as `[T / K, K, ...]`."""
    return jax.tree.map(lambda x: x.reshape(-1, window, *x.shape[1:]), tree)


def flat(tree: Tree) -> Tree:
    """The inverse."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", RULES)
def test_equals_brainscale(rule: str, name: str, window: int, seed: int) -> None:
    algorithm, make = RULES[rule]
    made = bench(name, seed, algorithm)
    native = windowed(made, make)
    data, parts, ends = made.data(STEPS, SAMPLES), [], []
    for i in range(SAMPLES):
        native.restart()
        parts.append(native.run(in_windows(sample(data, i, axis=1), window)))
        ends.append(end_of(made, native))
    got = made.result(Request(window=window))
    assert_gradients_alive(got.gradients)
    assert_traces_alive(got.aux.carry.trace)
    assert_close(got.gradients, joined([part[0] for part in parts]), "native")
    outputs = joined([flat(part[1:]) for part in parts], axis=1)
    assert_close((got.aux.losses, got.aux.outputs), outputs, "native")
    if rule == "ES_D_RTRL":
        assert_close(got.aux.carry, joined_carries(ends), "native")
    else:
        assert_close(got.aux.carry.hidden, joined(ends), "native")


def end_of(made: Bench, native: Native) -> Any:
    """Where BrainScale ended: the whole carry, or the hidden states where it cannot be read."""
    return carry_of(made, native) if isinstance(made.learner.algorithm, pb.ES_D_RTRL) else hidden_states(made, native)


@pytest.mark.parametrize("rule", RULES)
def test_windows_matter(rule: str, seed: int) -> None:
    """What lies behind a window is approximate, and counts."""
    made = bench("MinimalRNNCell", seed, RULES[rule][0])
    gradients = [made.result(Request(window=window)).gradients for window in (*WINDOWS, STEPS)]
    for one, other in itertools.pairwise(gradients):
        assert_differ(one, other)
    counts = [np.asarray(made.result(Request(window=window)).aux.carry.update_count) for window in WINDOWS]
    assert [set(count.tolist()) for count in counts] == [{STEPS // window} for window in WINDOWS]
