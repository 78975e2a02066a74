"""BrainScale's two batching modes, against our two strategies."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

import pure_batching as pb

from ..alive import assert_alive, assert_gradients_alive
from ..bench import SAMPLES, STEPS, Data, Request, bench
from ..trees import assert_close, assert_some_differ, sample
from ..upstream import MODES, Raised
from .brainscale_runs import BATCHED, Make, d_rtrl, es_d_rtrl

EQUAL = [run for run, found in MODES.items() if found is None]
DIFFERING = [run for run, found in MODES.items() if isinstance(found, int)]
RAISING = [run for run, found in MODES.items() if isinstance(found, Raised)]

RULES = {"ES_D_RTRL": (pb.ES_D_RTRL(0.9), es_d_rtrl), "D_RTRL": (pb.D_RTRL(), d_rtrl)}


@functools.cache
def in_one_batch(name: str, mode: str, make: Make, seed: int) -> tuple[Any, Any]:
    """The gradients, losses and outputs of BrainScale's mode, and where it ended."""
    made = bench(name, seed)
    native = BATCHED[mode](made, make)
    pb.write_states(native.net, made.start("loop").hidden)
    return native.run(made.data(STEPS, SAMPLES)), native.algorithm


@pytest.mark.parametrize(("rule", "mode", "name"), EQUAL)
def test_equals_the_strategy(rule: str, mode: str, name: str, seed: int) -> None:
    """Summed gradients, losses, outputs, and the carry."""
    algorithm, make = RULES[rule]
    made, request = bench(name, seed, algorithm), Request(mode, "sum")
    (gradients, losses, outputs), native = in_one_batch(name, mode, make, seed)
    got = made.result(request)
    assert_alive(made, request, got)
    assert_close(got.gradients, gradients, "native")
    assert_close((got.aux.losses, got.aux.outputs), (losses, outputs), "native")
    if rule == "ES_D_RTRL":  # D_RTRL's division waits in a scale of its own
        assert_close(got.aux.carry, pb.from_native(made.batched(mode), native), "native")


@pytest.mark.parametrize(("rule", "mode", "name"), RAISING)
def test_what_it_cannot_run(rule: str, mode: str, name: str, seed: int) -> None:
    (algorithm, make), raised = RULES[rule], MODES[rule, mode, name]
    assert isinstance(raised, Raised)
    with pytest.raises(raised.error, match=raised.text):
        in_one_batch(name, mode, make, seed)
    assert_gradients_alive(bench(name, seed, algorithm).result(Request(mode)).gradients)


@pytest.mark.parametrize(("rule", "mode", "name"), DIFFERING)
def test_where_it_is_wrong(rule: str, mode: str, name: str, seed: int) -> None:
    """Fault 1: it divides by the largest entry of the batch. Ours belongs to the sample."""
    algorithm, make = RULES[rule]
    made = bench(name, seed, algorithm)
    (gradients, losses, outputs), _ = in_one_batch(name, mode, make, seed)
    got = made.result(Request(mode, "sum"))
    assert_close((got.aux.losses, got.aux.outputs), (losses, outputs), "native")
    assert_some_differ(got.gradients, gradients)
    assert_close(got.gradients, made.result(Request("vmap", "sum")).gradients)


def test_manual_couples_samples(seed: int) -> None:
    """Fault 1, seen from a sample whose loss alone counts, while the other samples' inputs grow."""
    made = bench("MinimalRNNCell", seed, pb.D_RTRL())
    native = BATCHED["manual"](made, d_rtrl)
    (inputs,), targets = made.data(STEPS, SAMPLES)
    alone = jax.tree.map(lambda x: np.where(np.arange(SAMPLES)[:, None] == 0, x, 10 * x), inputs)
    outputs, of_first = [], []
    for given in (inputs, alone):
        native.restart()
        _, _, output = native.run(Data((given,), targets))
        outputs.append(sample(output, 0, axis=1))
        of_first.append({k: sample(t, 0) for k, t in trace_of(native.algorithm).items()})
    assert_close(outputs[0], outputs[1])
    assert_some_differ(of_first[0]["phi"], of_first[1]["phi"])
    carries = [made.run(Request("manual"), None, ((given,), targets)).aux.carry for given in (inputs, alone)]
    assert_close(sample(carries[0].trace, 0), sample(carries[1].trace, 0))


def trace_of(algorithm: Any) -> dict[str, Any]:
    """D_RTRL's traces by the first word of the weight's path."""
    return {key[0][0]: state.value for key, state in algorithm.etrace_bwg.items()}
