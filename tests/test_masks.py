"""Masks and resets: a masked step is no step, a reset sample equals a fresh one."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.errors import BatchSizeError, DtypeError, ShapeError

from .alive import assert_gradients_alive, assert_moving
from .bench import ONLINE_RULES, RULES, SAMPLES, STEPS, STRATEGIES, WINDOW, Bench, Data, Request, Result, bench
from .models import N_IN, N_REC, squared
from .modules import Silent, Unit
from .trees import (
    assert_close,
    assert_differ,
    assert_identical,
    assert_not_identical,
    joined,
    named,
    not_numbers,
    sample,
    sample_of_carry,
)

# The rules whose gradient depends on where a window begins.
WINDOWED_RULES = ("BPTT", "ES_D_RTRL multi-step", "D_RTRL multi-step")
EACH_RULE = ("ES_D_RTRL", "D_RTRL", "D_RTRL published", "Hybrid", *WINDOWED_RULES)

# One rule for each way of a gradient: contracted factors, the linear trace, backpropagation with a trace behind it.
SOME_RULES = ("ES_D_RTRL", "D_RTRL published", "D_RTRL multi-step")

# Two layers, with a weight that has a trace, one that has none, and an ordinary one.
MODEL = "readouts"

# Every strategy with the usual window, and every window with one strategy.
RUNS = [*((strategy, WINDOW) for strategy in STRATEGIES), ("vmap", 1), ("vmap", None)]

every_rule = pytest.mark.parametrize("rule", EACH_RULE)
some_rules = pytest.mark.parametrize("rule", SOME_RULES)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def flags(*samples: str) -> tuple[tuple[bool, ...], ...]:
    """Each sample's steps as "x" and "."."""
    return tuple(tuple(mark == "x" for mark in one) for one in samples)


ALL, NONE = flags(*["xxxxxx"] * SAMPLES), flags(*["......"] * SAMPLES)


@dataclasses.dataclass(frozen=True)
class Flags:
    """Which steps count, and where samples start anew, `[B][T]`; None where nothing is said of it."""

    mask: tuple[tuple[bool, ...], ...] | None = None
    reset: tuple[tuple[bool, ...], ...] | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """What is said, as `[T, B]`."""
        said = {"mask": self.mask, "reset": self.reset}
        return {name: np.array(value).T for name, value in said.items() if value is not None}

    def of(self, i: int) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
        """The mask and the resets of sample `i`."""
        return (self.mask or ALL)[i], (self.reset or NONE)[i]


# Windows of three begin at steps 0 and 3.
FLAGS = {
    "neither": Flags(ALL, NONE),
    # a gap, a whole window missing, nothing at all
    "mask": Flags(mask=flags("xx.xx.", "...x.x", "......")),
    # inside a window and twice in a row, at both beginnings, never
    "reset": Flags(reset=flags(".x..xx", "x..x..", "......")),
    # a reset before steps that count, before one that does not, and of a sample that has no step
    "both": Flags(flags("x.xx.x", ".xxxxx", "......"), flags(".x..x.", "x.xx..", "...x..")),
    # a reset after the last step that counts in its window
    "late": Flags(flags("xxxx..", "x..xxx", "xxx..."), flags("....x.", ".x....", "......")),
}


def start(made: Bench) -> pb.Carry:
    """A carry that has seen a sequence, so that its traces count."""
    return made.result(Request("vmap")).aux.carry


def where_masked(data: Data, mask: np.ndarray, *, targets: bool) -> Data:
    """Inputs, and targets if asked for, that are no numbers at masked steps."""

    def padded(leaf: Any, ruined: jax.Array) -> jax.Array:
        return jnp.where(mask.reshape(*mask.shape, *(1 for _ in ruined.shape[2:])), leaf, ruined)

    inputs = jax.tree.map(padded, data[0], not_numbers(data[0]))
    return inputs, jax.tree.map(padded, data[1], not_numbers(data[1])) if targets else data[1]


def run(made: Bench, request: Request, case: Flags, carry: pb.Carry | None, *, targets: bool = False) -> Result:
    """The gradient under a mask and resets, with padding that ruins what it touches."""
    given, data = case.arrays(), made.data(STEPS, SAMPLES)
    data = where_masked(data, given["mask"], targets=targets) if "mask" in given else data
    return Result(*made.grad_fn(request)(made.params, carry, *data, **given))


def pieces(mask: tuple[bool, ...], reset: tuple[bool, ...], window: int) -> Iterator[tuple[bool, list[int]]]:
    """One sample's sequence without masked steps, cut at windows and resets: whether a piece starts anew, its steps."""
    for first in range(0, STEPS, window):
        starts_anew, steps = False, []
        for t in range(first, min(first + window, STEPS)):
            if reset[t]:
                yield starts_anew, steps
                starts_anew, steps = True, []
            if mask[t]:
                steps.append(t)
        yield starts_anew, steps


def one_sample(made: Bench, case: Flags, window: int, i: int, carry: pb.Carry) -> Result:
    """The pieces of sample `i`, each run alone and without flags, their gradients added up."""
    fresh, data = sample_of_carry(made.start("vmap"), i), sample(made.data(STEPS, SAMPLES), i, axis=1)
    gradients, losses = jax.tree.map(jnp.zeros_like, made.params), np.zeros(STEPS)
    for starts_anew, steps in pieces(*case.of(i), window):
        carry = fresh._replace(keys=carry.keys) if starts_anew else carry
        if steps:
            request = Request(None, window=None, steps=len(steps))
            done = made.run(request, carry, sample(data, np.array(steps)))
            carry, gradients = done.aux.carry, jax.tree.map(jnp.add, gradients, done.gradients)
            losses[steps] = done.aux.losses
    return Result(gradients, pb.Aux(carry, losses, None))


@functools.cache
def expected(made: Bench, name: str, window: int, *, fresh: bool = False) -> Result:
    """What a pattern of flags must give: each sample in pieces."""
    carry = made.start("vmap") if fresh else start(made)
    alone = [one_sample(made, FLAGS[name], window, i, sample_of_carry(carry, i)) for i in range(SAMPLES)]
    carries = joined([pb.apart(one.aux.carry) for one in alone])
    losses = np.stack([one.aux.losses for one in alone], axis=1)
    return Result(joined([one.gradients for one in alone]), pb.Aux(carries, losses, None))


def window_of(rule: str, window: int | None) -> int:
    """Where a rule's gradient depends on windows, the one in use; elsewhere the one that is the least to compile."""
    return (STEPS if window is None else window) if rule in WINDOWED_RULES else 1


def assert_same(got: Result, want: Result) -> None:
    """The same gradients, carry and losses."""
    assert_close(got.gradients, want.gradients)
    assert_close(got.aux.carry, want.aux.carry)
    assert_close(got.aux.losses, want.aux.losses)


class TestOfOneSample:
    """The reference itself is worth something: it cuts where it should, and tells patterns apart."""

    def test_pieces(self) -> None:
        assert self.cut("both", 0, 3) == [(False, [0]), (True, [2]), (False, [3]), (True, [5])]
        assert self.cut("late", 0, 3) == [(False, [0, 1, 2]), (False, [3]), (True, [])]
        assert self.cut("both", 1, 6) == [(False, []), (True, [1]), (True, [2]), (True, [3, 4, 5])]
        assert self.cut("neither", 0, 3) == [(False, [0, 1, 2]), (False, [3, 4, 5])]

    @staticmethod
    def cut(name: str, i: int, window: int) -> list[tuple[bool, list[int]]]:
        return list(pieces(*FLAGS[name].of(i), window))

    @every_rule
    def test_is_alive(self, rule: str, seed: int) -> None:
        made, window = bench(MODEL, seed, RULES[rule]), window_of(rule, WINDOW)
        plain, masked, reset, both = (expected(made, name, window) for name in ("neither", "mask", "reset", "both"))
        assert_gradients_alive(plain.gradients)
        assert_moving(start(made).hidden)
        assert_close(plain.gradients, run(made, Request("vmap"), FLAGS["neither"], start(made)).gradients)
        for one, other in [(plain, masked), (plain, reset), (plain, both), (masked, both)]:
            assert_differ(sample(one.gradients, 0), sample(other.gradients, 0))


class TestFlags:
    @pytest.mark.parametrize(
        ("rule", "strategy", "window"),
        [(rule, *run) for rule in EACH_RULE for run in (RUNS if rule in SOME_RULES else [("vmap", WINDOW)])],
    )
    def test_both(self, rule: str, strategy: str, window: int | None, seed: int) -> None:
        self.check("both", rule, Request(strategy, window=window), seed)

    @every_rule
    @pytest.mark.parametrize("name", ["mask", "reset"])
    def test_one_of_them(self, name: str, rule: str, seed: int) -> None:
        self.check(name, rule, Request("vmap"), seed)

    @pytest.mark.parametrize("strategy", ["loop", "manual"])
    @pytest.mark.parametrize("name", ["mask", "reset"])
    def test_one_of_them_in_other_strategies(self, name: str, strategy: str, seed: int) -> None:
        self.check(name, "D_RTRL multi-step", Request(strategy, window=None), seed)

    @every_rule
    def test_a_reset_after_the_last_step_that_counts(self, rule: str, seed: int) -> None:
        self.check("late", rule, Request("vmap"), seed)

    @staticmethod
    def check(name: str, rule: str, request: Request, seed: int) -> None:
        made = bench(MODEL, seed, RULES[rule])
        want = expected(made, name, window_of(rule, request.window))
        assert_same(run(made, request, FLAGS[name], start(made)), want)

    @every_rule
    def test_from_a_fresh_start(self, rule: str, seed: int) -> None:
        made = bench(MODEL, seed, RULES[rule])
        want = expected(made, "both", window_of(rule, None), fresh=True)
        assert_same(run(made, Request("vmap", window=None), FLAGS["both"], None), want)

    @every_rule
    def test_summed_over_samples(self, rule: str, seed: int) -> None:
        made = bench(MODEL, seed, RULES[rule])
        each = expected(made, "both", window_of(rule, WINDOW))
        got = run(made, Request("manual", "sum"), FLAGS["both"], start(made))
        assert_same(got, Result(jax.tree.map(lambda x: x.sum(0), each.gradients), each.aux))

    @some_rules
    @pytest.mark.parametrize("name", ["tutorial", "trees", "noisy"])
    def test_of_other_models(self, name: str, rule: str, seed: int) -> None:
        """Spikes, units, and keys, which go on after a reset."""
        made = bench(name, seed, RULES[rule])
        want = expected(made, "both", window_of(rule, WINDOW))
        assert_same(run(made, Request("vmap"), FLAGS["both"], start(made)), want)

    @every_strategy
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL multi-step"])
    @pytest.mark.parametrize("name", ["delayed", "counting"])
    def test_of_samples_that_share_a_state(self, name: str, rule: str, strategy: str, seed: int) -> None:
        """A pointer or counter that goes on for some samples only becomes each sample's own."""
        made = bench(name, seed, RULES[rule])
        want = expected(made, "both", window_of(rule, WINDOW))
        got = run(made, Request(strategy), FLAGS["both"], start(made))
        assert_same(got, want)
        assert not got.aux.carry.shared
        assert len({int(x) for x in next(iter(got.aux.carry.other[path] for path in start(made).shared))}) > 1


class TestApart:
    """Samples that no longer share a state."""

    @every_strategy
    def test_go_on_as_each_alone(self, strategy: str, seed: int) -> None:
        made = bench("delayed", seed)
        carry, (inputs, _) = run(made, Request("vmap"), FLAGS["both"], start(made)).aux.carry, made.data(SAMPLES)
        got = made.batched(strategy).step(made.params, carry, *inputs)
        alone = [made.learner.step(made.params, one, *sample(inputs, i)) for i, one in enumerate(pb.unstack(carry))]
        assert_close(got, (pb.stack([one for one, _ in alone]), joined([output for _, output in alone])))

    def test_are_put_together(self, seed: int) -> None:
        """Carries that made different numbers of steps."""
        made = bench("delayed", seed)
        late, early = pb.apart(start(made)), pb.apart(made.start("vmap"))
        assert_identical(pb.split(pb.concat([late, early]), [SAMPLES, SAMPLES]), [late, early])
        assert_not_identical(late.other["past.write_ptr"], early.other["past.write_ptr"])


def cosine_distance(output: jax.Array, target: jax.Array) -> jax.Array:
    """One less the cosine of the angle between output and target."""
    return 1 - jnp.vdot(output, target) / (jnp.linalg.norm(output) * jnp.linalg.norm(target))


class TestMaskedSteps:
    @every_rule
    def test_nothing_happens_to_a_sample_without_steps(self, rule: str, seed: int) -> None:
        made, last = bench(MODEL, seed, RULES[rule]), SAMPLES - 1
        got = run(made, Request("vmap"), FLAGS["mask"], start(made))
        assert not any(leaf[last].any() for _, leaf in named(got.gradients))
        assert_identical(sample_of_carry(got.aux.carry, last), sample_of_carry(start(made), last))
        assert not got.aux.losses[:, last].any()

    @pytest.mark.parametrize("reduction", ["none", "sum"])
    @some_rules
    def test_targets_that_are_no_numbers_reach_nothing(self, rule: str, reduction: str, seed: int) -> None:
        made, request = bench(MODEL, seed, RULES[rule]), Request("vmap", reduction)
        got = run(made, request, FLAGS["mask"], start(made), targets=True)
        assert_same(got, run(made, request, FLAGS["mask"], start(made)))

    def test_padding_that_has_no_direction(self, seed: int) -> None:
        """A step that divides by the norm of its input has no derivative at zeros, of which padding often is."""
        learner, params = pb.capture(Unit(N_IN, N_REC), np.ones(N_IN), algorithm=RULES["ES_D_RTRL"])
        inputs, mask = np.random.default_rng(seed).uniform(1, 2, (STEPS, SAMPLES, N_IN)), np.array(FLAGS["mask"].mask).T
        grad_fn = pb.sequence_grad(pb.vmap(learner, SAMPLES), lambda out, _: (out**2).sum(), reduction="sum")
        padded = np.where(mask[..., None], inputs, 0.0)
        want = grad_fn(params, None, inputs, np.zeros((STEPS, SAMPLES)), mask=mask)
        got = grad_fn(params, None, padded, np.zeros((STEPS, SAMPLES)), mask=mask)
        assert_gradients_alive(want[0])
        assert_identical(got, want)

    @pytest.mark.parametrize("changed", [lambda x: (x - x.mean()) / x.std(), lambda x: 1 / (x - 1)])
    @pytest.mark.parametrize("rule", ["D_RTRL", "D_RTRL published", "RTRL", "BPTT"])
    def test_a_step_without_a_derivative_at_ones(self, rule: str, changed: Any, seed: int) -> None:
        """It has one at the steps that count, and padding is run on the data of one of these."""

        def step(weight: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = 0.5 * h + weight * changed(x)
            return h, h

        learner, params = pb.capture_function(
            step, np.linspace(0.1, 0.9, N_IN), np.zeros(N_IN), np.arange(N_IN) + 2.0, algorithm=RULES[rule]
        )
        inputs, mask = np.random.default_rng(seed).uniform(2, 9, (STEPS, 2, N_IN)), np.ones((STEPS, 2), bool)
        mask[STEPS - 2 :, 1] = False
        gradient = pb.sequence_grad(pb.vmap(learner, 2), squared, reduction="none")
        got, _ = gradient(params, None, np.where(mask[..., None], inputs, 0.0), inputs, mask=mask)
        longer, _ = gradient(params, None, inputs, inputs)
        shorter, _ = gradient(params, None, inputs[:-2], inputs[:-2])
        assert_gradients_alive(longer)
        assert_close(got, np.stack([longer[0], shorter[1]]))

    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL", "D_RTRL multi-step", "BPTT"])
    def test_an_output_that_has_no_direction(self, rule: str, seed: int) -> None:
        """A cell that is silent at small inputs, under a loss that has no derivative at an output of zeros."""
        learner, params = pb.capture(Silent(N_IN, N_REC), np.ones(N_IN), algorithm=RULES[rule])
        data = np.random.default_rng(seed)
        inputs, targets = data.normal(size=(STEPS, SAMPLES, N_IN)), data.normal(size=(STEPS, SAMPLES, N_REC))
        grad_fn = pb.sequence_grad(pb.vmap(learner, SAMPLES), cosine_distance, reduction="sum")
        mask = np.ones((STEPS, SAMPLES), bool)
        mask[0] = False
        got, _ = grad_fn(params, None, 1000 * inputs, targets, mask=mask)
        want, _ = grad_fn(params, None, 1000 * inputs[1:], targets[1:])
        assert_gradients_alive(want)
        assert_close(got, want)

    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL multi-step"])
    def test_counts_steps_or_windows(self, rule: str, seed: int) -> None:
        made = bench(MODEL, seed, RULES[rule])
        counts = run(made, Request("vmap"), FLAGS["mask"], None).aux.carry.update_count
        assert counts.tolist() == ([4, 2, 0] if rule in ONLINE_RULES else [2, 1, 0])


class TestRefusals:
    @pytest.mark.parametrize("flag", ["mask", "reset"])
    @pytest.mark.parametrize(
        ("value", "error", "text"),
        [
            (np.ones((STEPS, SAMPLES + 1), bool), BatchSizeError, r"got shape \(6, 4\), expected \(T=6, B=3\)"),
            (np.ones((STEPS - 1, SAMPLES), bool), ShapeError, r"got shape \(5, 3\), expected \(T=6, B=3\)"),
            (np.ones(STEPS, bool), ShapeError, r"got shape \(6,\), expected \(T=6, B=3\)\. Give a flag to every step"),
            (np.ones((STEPS, SAMPLES, 1), bool), ShapeError, r"got shape \(6, 3, 1\), .*in one array \[T, B\]"),
            (np.ones((STEPS, SAMPLES), np.int32), DtypeError, r"got int32, expected bool"),
            (np.ones((STEPS, SAMPLES)), DtypeError, r"got float64, expected bool"),
        ],
    )
    def test_what_is_no_flag_for_each_step(self, flag: str, value: Any, error: type, text: str, seed: int) -> None:
        made = bench(MODEL, seed)
        with pytest.raises(error, match=f"^{flag}: {text}"):
            made.grad_fn(Request("vmap"))(made.params, None, *made.data(STEPS, SAMPLES), **{flag: value})

    def test_of_one_sample_have_no_batch_axis(self, seed: int) -> None:
        made, mask = bench(MODEL, seed), np.array(FLAGS["mask"].of(0)[0])
        grad_fn, data = made.grad_fn(Request(None)), made.data(STEPS)
        with pytest.raises(ShapeError, match=r"^mask: got shape \(6, 1\), expected \(T=6\)"):
            grad_fn(made.params, None, *data, mask=mask[:, None])
        kept = made.run(Request(None, window=None), None, sample(data, np.flatnonzero(mask)))
        assert_close(grad_fn(made.params, None, *data, mask=mask)[0], kept.gradients)
