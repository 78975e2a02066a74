"""A training begun in BrainScale goes on here, and the other way round."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import pure_batching as pb

from ..alive import assert_gradients_alive, assert_moving, assert_traces_alive
from ..bench import SAMPLES, STEPS, Bench, Data, Request, bench
from ..trees import assert_close, assert_identical, assert_not_identical, divided_traces, largest, slice_time
from .brainscale_runs import Native, d_rtrl, es_d_rtrl, manual, mapped, one_sample

MODES = {None: one_sample, "manual": manual, "vmap": mapped}
RULES = {"ES_D_RTRL": (pb.ES_D_RTRL(0.9), es_d_rtrl), "D_RTRL": (pb.D_RTRL(), d_rtrl)}

# One for each way of keeping states: recurrent spikes, several states, a shared pointer and a moved axis, units, a
# counter. D_RTRL in BrainScale's manual mode divides by the largest entry of the batch (fault 1), and cannot go on.
MODELS = ("tutorial", "lif", "LSTMCell", "delayed", "trees", "counting")
D_MODELS = ("tutorial", "lif", "LSTMCell", "trees")

RUNS = [
    *(("ES_D_RTRL", name, mode) for name in MODELS for mode in MODES),
    *(("D_RTRL", name, mode) for name in D_MODELS for mode in MODES if mode != "manual"),
]
every_run = pytest.mark.parametrize(("rule", "name", "mode"), RUNS)

HALF = STEPS // 2


@functools.cache
def compiled(rule: str, name: str, mode: str | None, seed: int) -> Native:
    """A compiled algorithm, made once and restarted by each test."""
    algorithm, make = RULES[rule]
    return MODES[mode](bench(name, seed, algorithm), make)


def request(mode: str | None) -> Request:
    """A gradient as BrainScale's mode gives it; the window is shorter than what it is used for."""
    return Request(mode, "sum", window=2)


def halves(made: Bench, mode: str | None) -> tuple[Data, Data]:
    """The first steps and the others."""
    data = made.data(*request(mode).lead)
    return slice_time(data, 0, HALF), slice_time(data, HALF, STEPS)


@every_run
class TestRoundTrip:
    def test_begun_there(self, rule: str, name: str, mode: str | None, seed: int) -> None:
        """Some steps in BrainScale, then the rest in both."""
        made, native = both(rule, name, mode, seed)
        first, rest = halves(made, mode)
        native.restart()
        native.run(first)
        carry = pb.from_native(made.batched(mode), native.algorithm)
        assert_native_traces_alive(carry.trace)
        assert_moving(carry.hidden)
        assert (carry.update_count == HALF).all()
        continue_in_both(made, native, mode, carry, rest)

    def test_begun_here(self, rule: str, name: str, mode: str | None, seed: int) -> None:
        """Some steps here, then the rest in both."""
        made, native = both(rule, name, mode, seed)
        first, rest = halves(made, mode)
        half = made.run(request(mode), None, first)
        native.restart()
        pb.to_native(made.batched(mode), half.aux.carry, native.algorithm)
        continue_in_both(made, native, mode, half.aux.carry, rest)

    def test_nothing_is_lost(self, rule: str, name: str, mode: str | None, seed: int) -> None:
        """There and back, bit for bit; and the weights stay."""
        made, native = both(rule, name, mode, seed)
        native.restart()
        learner, before = made.batched(mode), pb.read_states(native.net)
        carry = made.run(request(mode), None, halves(made, mode)[0]).aux.carry
        pb.to_native(learner, carry, native.algorithm)
        assert_identical(divided_traces(pb.from_native(learner, native.algorithm)), divided_traces(carry))
        after = pb.read_states(native.net)
        assert_not_identical({p: after[p] for p in carry.hidden}, {p: before[p] for p in carry.hidden})
        assert_identical({p: after[p] for p in made.params}, {p: before[p] for p in made.params})
        native.restart()
        assert_identical(pb.read_states(native.net), before)
        pb.write_states(native.net, after)
        assert_identical(pb.read_states(native.net), after)


def both(rule: str, name: str, mode: str | None, seed: int) -> tuple[Bench, Native]:
    """A model captured by us and compiled by BrainScale."""
    return bench(name, seed, RULES[rule][0]), compiled(rule, name, mode, seed)


def continue_in_both(made: Bench, native: Native, mode: str | None, carry: pb.Carry, rest: Data) -> None:
    """The same gradients, losses, outputs and ends from the same carry."""
    gradients, losses, outputs = native.run(rest)
    got = made.run(request(mode), carry, rest)
    assert_gradients_alive(got.gradients)
    assert_close(got.gradients, gradients, "native")
    assert_close((got.aux.losses, got.aux.outputs), (losses, outputs), "native")
    end = pb.from_native(made.batched(mode), native.algorithm)
    assert_close(divided_traces(got.aux.carry), divided_traces(end), "native")


def assert_native_traces_alive(trace: Any) -> None:
    """BrainScale's D_RTRL divides a trace by its largest entry where that exceeds 1; what it keeps then reads 1."""
    if hasattr(trace, "weights"):
        assert largest(trace.weights) == 1
    else:
        assert_traces_alive(trace)


class TestSwap:
    @pytest.mark.parametrize("name", ["tutorial", "LSTMCell"])
    def test_from_one_mode_to_the_other(self, name: str, seed: int) -> None:
        """BrainScale's manual batch, handed to its mapped batch."""
        made, (first, rest) = bench(name, seed), halves(bench(name, seed), "vmap")
        here, there = compiled("ES_D_RTRL", name, "manual", seed), compiled("ES_D_RTRL", name, "vmap", seed)
        here.restart()
        here.run(first)
        carry = pb.from_native(made.batched("manual"), here.algorithm)
        pb.to_native(made.batched("vmap"), carry, there.algorithm)
        want, got = here.run(rest), there.run(rest)
        assert_gradients_alive(want[0])
        assert_close(got, want, "native")

    def test_samples_into_a_batch(self, seed: int) -> None:
        """One sample's training, continued as every sample of a batch."""
        made, native = bench("LSTMCell", seed), compiled("ES_D_RTRL", "LSTMCell", None, seed)
        first, rest = halves(made, None)
        native.restart()
        native.run(first)
        alone = pb.from_native(made.learner, native.algorithm)
        carry = jax.tree.map(lambda x: jnp.stack([x] * SAMPLES), alone)
        batch = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * SAMPLES, 1), rest)
        got = made.run(Request("vmap", "mean"), carry, batch)
        gradients, losses, _ = native.run(rest)
        assert_close(got.gradients, gradients, "native")
        assert_close(got.aux.losses[:, 1], losses, "native")
