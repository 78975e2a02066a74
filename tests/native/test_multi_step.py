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

from ..alive import assert_alive
from ..bench import SAMPLES, STEPS, WINDOW, Bench, Request, bench
from ..registry import captured
from ..trees import Tree, assert_close, assert_differ, assert_some_differ, joined, joined_carries, sample
from ..upstream import COMPARED, DIFFERS, HYBRID, RAISES
from .brainscale_runs import (
    Make,
    Native,
    Samples,
    carry_of,
    d_rtrl,
    each_alone,
    es_d_rtrl,
    hidden_states,
    hybrid,
    one_sample,
)

# Every model and layer in one window, with both rules or with one in turn; some in other windows.
WINDOWS = (1, 2, 3)
SOME = ("MinimalRNNCell", "tutorial", "readouts", "LRUCell")
OTHER_WINDOWS = [(rule, name, window) for rule in COMPARED for name in SOME for window in WINDOWS if window != WINDOW]
ALL = [(rule, name, WINDOW) for rule, names in COMPARED.items() for name in names]
BOTH = set(COMPARED["ES_D_RTRL"]) & set(COMPARED["D_RTRL"])
IN_TURN = [(r, n, w) for r, n, w in ALL if n not in BOTH or (r == "D_RTRL") == (sorted(BOTH).index(n) % 2 == 0)]

RULES = {"ES_D_RTRL": (pb.ES_D_RTRL(0.9, vjp="multi-step"), es_d_rtrl), "D_RTRL": (pb.D_RTRL(vjp="multi-step"), d_rtrl)}


def windowed(made: Bench, make: Make) -> Native:
    """BrainScale's multi-step method on one sample, fed with a window at a time."""
    native = one_sample(made, functools.partial(make, vjp_method="multi-step"))

    def call(*inputs: Tree) -> Tree:
        return native.algorithm(*map(brainscale.MultiStepData, inputs))

    return dataclasses.replace(native, call=call, is_batched=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "window" in metafunc.fixturenames:
        runs = ALL if metafunc.config.getoption("--all-rules") else IN_TURN
        metafunc.parametrize(("rule", "name", "window"), [*runs, *OTHER_WINDOWS])


def test_equals_brainscale(rule: str, name: str, window: int, seed: int) -> None:
    algorithm, make = RULES[rule]
    made = captured(name, seed, algorithm)
    want, got = in_windows(made, make, window), made.result(Request(window=window))
    assert_alive(made, Request(window=window), got)
    assert_close(got.gradients, want.gradients, "native")
    assert_close((got.aux.losses, got.aux.outputs), (want.losses, want.outputs), "native")
    if rule == "ES_D_RTRL":
        assert_close(got.aux.carry, joined_carries(want.ends), "native")
    else:
        assert_close(got.aux.carry.hidden, joined(want.ends), "native")


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule, names in DIFFERS.items() for name in names])
def test_where_it_is_wrong(rule: str, name: str, seed: int) -> None:
    algorithm, make = RULES[rule]
    made = captured(name, seed, algorithm)
    want, got = in_windows(made, make, WINDOW), made.result(Request())
    assert_alive(made, Request(), got)
    assert_some_differ(got.gradients, want.gradients)


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule, names in RAISES.items() for name in names])
def test_what_it_cannot_run(rule: str, name: str, seed: int) -> None:
    (algorithm, make), (_, error, text) = RULES[rule], RAISES[rule][name]
    made = captured(name, seed, algorithm)
    with pytest.raises(error, match=text):
        in_windows(made, make, WINDOW)


@pytest.mark.parametrize("name", HYBRID)
def test_hybrid_runs_nowhere(name: str, seed: int) -> None:
    made, (_, error, text) = captured(name, seed, pb.Hybrid(0.9, vjp="multi-step")), HYBRID[name]
    with pytest.raises(error, match=text):
        in_windows(made, hybrid, WINDOW)


def in_windows(made: Bench, make: Make, window: int) -> Samples:
    """Each sample alone, a window at a time."""
    runs, hidden = windowed(made, make), made.start("vmap").hidden
    data = jax.tree.map(lambda x: x.reshape(-1, window, *x.shape[1:]).swapaxes(1, 2), made.data(STEPS, SAMPLES))
    starts = [sample(hidden, i) for i in range(SAMPLES)]
    found = each_alone(runs, starts, data, lambda: end_of(made, runs))
    losses, outputs = jax.tree.map(
        lambda x: x.swapaxes(1, 2).reshape(STEPS, SAMPLES, *x.shape[3:]), (found.losses, found.outputs)
    )
    return found._replace(losses=losses, outputs=outputs)


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
