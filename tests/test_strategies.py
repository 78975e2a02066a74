"""The laws: every strategy means the same, for every model."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.errors import StrategyError

from .alive import assert_alive, assert_gradients_alive
from .bench import (
    BATCHED_RUNS,
    ONLINE_RULES,
    REPRESENTATIVE_RUNS,
    REPRESENTATIVES,
    RUNS,
    SAMPLES,
    STEPS,
    STRATEGIES,
    WEIGHTS,
    Request,
    bench,
)
from .models import N_IN, N_OUT, N_REC
from .oracle import by_hand, expected, fresh, fresh_with
from .trees import (
    assert_close,
    assert_differ,
    assert_identical,
    assert_not_identical,
    joined,
    joined_carries,
    not_numbers,
    sample,
    sample_of_carry,
    slice_time,
    with_sample,
)

every_run = pytest.mark.parametrize(("name", "strategy"), RUNS)
every_batched_run = pytest.mark.parametrize(("name", "strategy"), BATCHED_RUNS)
every_representative_run = pytest.mark.parametrize(("name", "strategy"), REPRESENTATIVE_RUNS)

HALF = STEPS // 2
ORDER = np.array([2, 0, 1])
OTHERS = (0, 2)
"""The samples besides the one that a test of locality changes."""


class TestEveryModel:
    """The laws that every model keeps under every strategy; one class, so that each gradient is made once."""

    @every_run
    def test_equals_python_over_samples_and_steps(self, name: str, strategy: str, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy)
        want = expected(made, SAMPLES, STEPS)
        assert_alive(made, request, want)
        assert_same(made.result(request), want)

    @every_batched_run
    def test_equals_loop(self, name: str, strategy: str, seed: int) -> None:
        made = bench(name, seed)
        want = made.result(Request("loop"))
        assert_alive(made, Request("loop"), want)
        assert_same(made.result(Request(strategy)), want)

    @pytest.mark.parametrize("change", ["not a number", "other numbers"])
    @every_run
    def test_another_sample_changes(self, name: str, strategy: str, change: str, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy)
        data, want = made.data(STEPS, SAMPLES), made.result(request)
        assert_alive(made, request, want)
        other = not_numbers(data) if change == "not a number" else jax.tree.map(lambda x: x[::-1], data)
        assert_others_untouched(made.run(request, None, with_sample(data, 1, other)), want)

    @pytest.mark.parametrize(("name", "strategy"), [run for run in RUNS if run[0] not in ("noisy", "random_start")])
    def test_permutation(self, name: str, strategy: str, seed: int) -> None:
        """Samples in another order; those of a random start have keys of their own, and follow below."""
        made, request = bench(name, seed), Request(strategy)
        data, want = made.data(STEPS, SAMPLES), made.result(request)
        assert_alive(made, request, want)
        assert_permuted(made.run(request, None, sample(data, ORDER, axis=1)), want)

    @pytest.mark.parametrize(("name", "strategy"), [run for run in RUNS if run[0] in ("noisy", "random_start")])
    def test_permutation_with_the_carry(self, name: str, strategy: str, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy)
        data, want = made.data(STEPS, SAMPLES), made.result(request)
        start = sample_of_carry(made.start(strategy), ORDER)
        assert_permuted(made.run(request, start, sample(data, ORDER, axis=1)), want)

    @every_run
    def test_same_inputs_same_bits(self, name: str, strategy: str, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy)
        again, first = made.run(request, None, made.data(STEPS, SAMPLES)), made.result(request)
        assert_identical(again.gradients, first.gradients)
        assert_identical(again.aux, first.aux)


def assert_others_untouched(got: Any, want: Any) -> None:
    """Sample 1 has other gradients, and nothing of the others moved."""
    assert_not_identical(sample(got.gradients, 1), sample(want.gradients, 1))
    for i in OTHERS:
        assert_identical(sample(got.gradients, i), sample(want.gradients, i))
        assert_identical(sample_of_carry(got.aux.carry, i), sample_of_carry(want.aux.carry, i))
        assert_identical(sample(got.aux.losses, i, axis=1), sample(want.aux.losses, i, axis=1))
        assert_identical(sample(got.aux.outputs, i, axis=1), sample(want.aux.outputs, i, axis=1))


def assert_permuted(got: Any, want: Any) -> None:
    """What was permuted came out permuted."""
    assert_close(got.gradients, sample(want.gradients, ORDER))
    assert_close(got.aux.carry, sample_of_carry(want.aux.carry, ORDER))
    assert_close(got.aux.losses, want.aux.losses[:, ORDER])
    assert_close(got.aux.outputs, sample(want.aux.outputs, ORDER, axis=1))


def assert_same(got: Any, want: Any) -> None:
    """The same gradients of each sample, carry, losses and outputs."""
    assert_close(got.gradients, want.gradients)
    assert_close(got.aux, want.aux)


class TestRepresentatives:
    """The laws that cost a compilation each, for one model of each kind."""

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("name", [*REPRESENTATIVES, "random_start", "conv_spikes", "counting"])
    def test_sample_by_sample(self, name: str, strategy: str, seed: int) -> None:
        made, key = bench(name, seed), jax.random.key(seed + 1)
        assert_identical(made.batched(strategy).init(key), fresh_with(made, SAMPLES, key))

    @every_representative_run
    def test_step_equals_each_sample_alone(self, name: str, strategy: str, seed: int) -> None:
        made = bench(name, seed)
        carry, (inputs, _) = made.result(Request(strategy)).aux.carry, made.data(SAMPLES)
        got = made.batched(strategy).step(made.params, carry, *inputs)
        parts = [made.learner.step(made.params, sample_of_carry(carry, i), *sample(inputs, i)) for i in range(SAMPLES)]
        assert_close(got[0], joined_carries([part[0] for part in parts]))
        assert_close(got[1], joined([part[1] for part in parts]))

    @pytest.mark.parametrize(("first", "second"), list(itertools.permutations(STRATEGIES, 2)))
    @pytest.mark.parametrize("name", REPRESENTATIVES)
    def test_one_strategy_continues_another(self, name: str, first: str, second: str, seed: int) -> None:
        made = bench(name, seed)
        data, want = made.data(STEPS, SAMPLES), made.result(Request("loop"))
        assert_alive(made, Request("loop"), want)
        half = made.run(Request(first, steps=HALF), made.start(first), slice_time(data, 0, HALF))
        # A program of one device gets the samples of several as a user would hand them on: by the host.
        between = jax.device_get(half.aux.carry) if first == "sharded" else half.aux.carry
        rest = made.run(Request(second, steps=HALF), between, slice_time(data, HALF, STEPS))
        assert_close(jax.tree.map(jnp.add, half.gradients, rest.gradients), want.gradients)
        assert_close(rest.aux.carry, want.aux.carry)

    @every_representative_run
    def test_another_carry_is_ruined(self, name: str, strategy: str, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy, steps=HALF)
        start, data = made.result(Request(strategy)).aux.carry, made.data(HALF, SAMPLES)
        carries = [sample_of_carry(start, i) for i in range(SAMPLES)]
        carries[1] = not_numbers(carries[1]._replace(shared={}))._replace(shared=start.shared)
        want = made.run(request, start, data)
        assert_gradients_alive(want.gradients)
        assert_others_untouched(made.run(request, joined_carries(carries), data), want)

    @every_representative_run
    def test_samples_differ(self, name: str, strategy: str, seed: int) -> None:
        """The data tells samples apart, or no law about samples would mean anything."""
        gradients = bench(name, seed).result(Request(strategy)).gradients
        assert_differ(sample(gradients, 0), sample(gradients, 1))

    @pytest.mark.parametrize("samples", [1, N_OUT, N_IN, N_REC])
    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    @pytest.mark.parametrize("name", ["tutorial", "delayed"])
    def test_every_batch_size(self, name: str, strategy: str, samples: int, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy, samples=samples)
        want = expected(made, samples, STEPS)
        assert_alive(made, request, want)
        assert_same(made.result(request), want)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("name", ["LSTMCell", "delayed"])
    def test_one_step_of_one_sample(self, name: str, strategy: str, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy, samples=1, steps=1)
        begun = sample_of_carry(made.result(Request("loop")).aux.carry, slice(0, 1))
        got, want = made.run(request, begun, made.data(1, 1)), by_hand(made, begun, made.data(1, 1))
        assert_gradients_alive(want.gradients)
        assert_same(got, want)

    @pytest.mark.parametrize("window", [1, 4, None])
    @pytest.mark.parametrize(
        ("name", "strategy"),
        [("tutorial", "loop"), ("tutorial", "vmap"), ("tutorial", "manual"), ("readouts", "vmap"), ("delayed", "vmap")],
    )
    def test_every_window(self, name: str, strategy: str, window: int | None, seed: int) -> None:
        made = bench(name, seed)
        want = expected(made, SAMPLES, STEPS)
        assert_alive(made, Request(strategy), want)
        assert_same(made.result(Request(strategy, window=window)), want)

    @every_representative_run
    def test_two_halves_are_the_whole(self, name: str, strategy: str, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy, steps=HALF)
        data, want = made.data(STEPS, SAMPLES), made.result(Request(strategy))
        assert_alive(made, Request(strategy), want)
        first = made.run(request, made.start(strategy), slice_time(data, 0, HALF))
        second = made.run(request, first.aux.carry, slice_time(data, HALF, STEPS))
        assert_close(jax.tree.map(jnp.add, first.gradients, second.gradients), want.gradients)
        assert_close(second.aux.carry, want.aux.carry)
        assert_close(jnp.concatenate([first.aux.losses, second.aux.losses]), want.aux.losses)


class TestRandomNumbers:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_without_a_key(self, strategy: str, seed: int) -> None:
        made = bench("random_start", seed)
        assert_identical(made.start(strategy), fresh(made, SAMPLES))

    @pytest.mark.parametrize(("name", "drawn"), [("noisy", "keys"), ("random_start", "hidden")])
    def test_random_states_differ_between_samples_and_keys(self, name: str, drawn: str, seed: int) -> None:
        made = bench(name, seed)
        states = getattr(made.start("vmap"), drawn)
        assert_not_identical(sample(states, 0), sample(states, 1))
        assert_not_identical(states, getattr(made.batched("vmap").init(jax.random.key(seed + 1)), drawn))

    def test_random_numbers_follow_the_carry(self, seed: int) -> None:
        made = bench("noisy", seed)
        learner, start, inputs = made.batched("vmap"), made.start("vmap"), made.data(SAMPLES)[0]
        carry, first = learner.step(made.params, start, *inputs)
        assert_not_identical(carry.keys, start.keys)
        assert_identical(learner.step(made.params, start, *inputs)[1], first)
        assert_not_identical(learner.step(made.params, start._replace(keys=carry.keys), *inputs)[1], first)


class TestOtherArithmetic:
    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    @pytest.mark.parametrize("rule", list(ONLINE_RULES)[1:])
    def test_every_rule(self, rule: str, strategy: str, seed: int) -> None:
        made = bench("tutorial", seed, ONLINE_RULES[rule])
        want = expected(made, SAMPLES, STEPS)
        assert_alive(made, Request(strategy), want)
        assert_same(made.result(Request(strategy)), want)

    @pytest.mark.parametrize(
        ("name", "strategy"), [("tutorial", "manual"), ("LSTMCell", "vmap"), ("LRUCell", "vmap"), ("delayed", "manual")]
    )
    def test_single_precision(self, name: str, strategy: str, seed: int) -> None:
        made = bench(name, seed, precision=32)
        got, want = made.result(Request(strategy)), expected(made, SAMPLES, STEPS)
        assert_alive(made, Request(strategy), want)
        floats = (got.gradients, got.aux.carry.hidden, got.aux.carry.trace, got.aux.losses, got.aux.outputs)
        assert {leaf.dtype for leaf in jax.tree.leaves(floats)} == {np.dtype("float32")}
        assert_same(got, want)


class TestReduction:
    @pytest.mark.parametrize("name", WEIGHTS)
    def test_sum_is_the_sum_of_the_samples(self, name: str, seed: int) -> None:
        self.check(name, "vmap", "sum", seed)

    @pytest.mark.parametrize(
        ("strategy", "reduction"), [("loop", "sum"), ("manual", "sum"), ("loop", "mean"), ("vmap", "mean")]
    )
    @pytest.mark.parametrize("name", ["tutorial", "readouts"])
    def test_every_strategy(self, name: str, strategy: str, reduction: str, seed: int) -> None:
        self.check(name, strategy, reduction, seed)

    @staticmethod
    def check(name: str, strategy: str, reduction: str, seed: int) -> None:
        made = bench(name, seed)
        each, got = made.result(Request(strategy)), made.result(Request(strategy, reduction))
        assert_alive(made, Request(strategy), each)
        share = {"sum": 1, "mean": SAMPLES}[reduction]
        assert_close(got.gradients, jax.tree.map(lambda x: x.sum(0) / share, each.gradients))
        assert_close(got.aux, each.aux)


class TestRefusals:
    @pytest.mark.parametrize("second", STRATEGIES)
    @pytest.mark.parametrize("first", STRATEGIES)
    def test_a_batched_learner(self, first: str, second: str, seed: int) -> None:
        learner = bench("LSTMCell", seed).batched(first)
        text = rf"pb\.{second}: got a learner batched by pb\.{first}, expected a learner of one sample\. .*pb\.capture"
        with pytest.raises(StrategyError, match=text):
            STRATEGIES[second](learner, SAMPLES)

    def test_manual_with_batch_normalisation(self, seed: int) -> None:
        with pytest.raises(StrategyError, match=r"[Nn]orm.*pb\.vmap"):
            pb.manual(bench("normalized", seed).learner, SAMPLES)

    def test_manual_with_another_way_of_compiling(self, seed: int) -> None:
        text = r"pb\.manual: got the traced weights \[\] with a batch axis, expected \['inp\.weight_op'\].*use pb\.vmap"
        with pytest.raises(StrategyError, match=text):
            pb.manual(bench("group_state", seed).learner, SAMPLES)
