"""ES_D_RTRL worked out by hand, where a page of paper is enough."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Linear

import pure_batching as pb
from pure_batching.errors import AlgorithmError

from .alive import assert_gradients_alive, assert_traces_alive
from .bench import SAMPLES, STEPS, Request, bench
from .modules import state_of
from .trees import assert_close, assert_differ, assert_identical, named, sample

LEAK, DECAY = 0.5, 0.75
PUBLISHED, BRAINSCALE = "published", "brainscale"
RULES = (BRAINSCALE, PUBLISHED)


class Leak(brainstate.nn.Module):
    """`h = LEAK h + x W + b`."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.size = weight.shape[1]
        self.inp = Linear(*weight.shape, w_init=jnp.asarray(weight))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = brainstate.HiddenState(state_of((self.size,), batch_size))

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = LEAK * self.h.value + self.inp(x)
        return self.h.value


class Cascade(brainstate.nn.Module):
    """`g = LEAK g + x W + b`, and within the same step `v = DECAY v + g`; the output is `v`."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.size = weight.shape[1]
        self.inp = Linear(*weight.shape, w_init=jnp.asarray(weight))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.g = brainstate.HiddenState(state_of((self.size,), batch_size))
        self.v = brainstate.HiddenState(state_of((self.size,), batch_size))

    def update(self, x: jax.Array) -> jax.Array:
        self.g.value = LEAK * self.g.value + self.inp(x)
        self.v.value = DECAY * self.v.value + self.g.value
        return self.v.value


def half_square(out: jax.Array, target: jax.Array) -> jax.Array:
    return 0.5 * ((out - target) ** 2).sum()


def correction(rule: str, n: int, decay: float = DECAY) -> float:
    """What the bias of an average over `n + 1` steps is divided by."""
    return 1 - decay ** (n + 1) if rule == PUBLISHED else 1 - (1 - decay) ** (n + 1)


def gradient_of(net: brainstate.nn.Module, rule: str, xs: np.ndarray, ys: np.ndarray) -> tuple[Any, pb.Aux]:
    """Of one sample, online."""
    learner, params = pb.capture(net, jnp.asarray(xs[0]), algorithm=pb.ES_D_RTRL(DECAY, rule=rule))
    gradients, aux = pb.sequence_grad(learner, half_square, window=1)(params, None, xs, ys)
    assert_gradients_alive(gradients)
    assert_traces_alive(aux.carry.trace)
    return gradients["inp.weight_op"], aux


class TestLeakyNeuron:
    def test_numbers_on_paper(self) -> None:
        """One input, one neuron, three steps; every number below is a sum and a product of the few above."""
        xs, ys = np.array([[1.0], [2.0], [3.0]]), np.zeros((3, 1))
        h = np.array([2.0, 5.0, 8.5])
        eps_x = np.array([1.0, 2.75, 5.0625])
        eps_df = np.array([0.25, 0.34375, 0.37890625])
        bias = {BRAINSCALE: np.array([0.75, 0.9375, 0.984375]), PUBLISHED: np.array([0.25, 0.4375, 0.578125])}
        for rule in RULES:
            gradient, aux = gradient_of(Leak(np.array([[2.0]])), rule, xs, ys)
            assert_close(aux.losses, jnp.asarray(0.5 * h**2), "formula")
            assert_close(gradient["weight"], jnp.asarray([[(h * eps_x * eps_df / bias[rule]).sum()]]), "formula")
            assert_close(jax.tree.leaves(aux.carry.trace.xs), [jnp.asarray(eps_x[-1:])], "formula")
            assert_close(jax.tree.leaves(aux.carry.trace.dfs), [jnp.asarray([eps_df[-1:]])], "formula")

    @pytest.mark.parametrize("rule", RULES)
    def test_many_neurons(self, rule: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        weight, xs, ys = rng.normal(size=(3, 4)), rng.normal(size=(STEPS, 3)) * 3, rng.normal(size=(STEPS, 4))
        h, eps_x, eps_df, of_weight, of_bias = np.zeros(4), np.zeros(3), np.zeros(4), np.zeros((3, 4)), np.zeros(4)
        for n, (x, y) in enumerate(zip(xs, ys, strict=True)):
            h = LEAK * h + x @ weight
            eps_x = DECAY * eps_x + x
            eps_df = DECAY * LEAK * eps_df + (1 - DECAY)
            signal = eps_df * (h - y) / correction(rule, n)
            of_weight += np.outer(eps_x, signal)
            of_bias += signal
        gradient, aux = gradient_of(Leak(weight), rule, xs, ys)
        assert_close(gradient["weight"], jnp.asarray(of_weight), "formula")
        assert_close(gradient["bias"], jnp.asarray(of_bias), "formula")
        assert_close(aux.carry.trace.xs["inp.weight_op"], jnp.asarray(eps_x), "formula")
        assert_close(jax.tree.leaves(aux.carry.trace.dfs)[0][:, 0], jnp.asarray(eps_df), "formula")
        assert_close(aux.carry.hidden["h"], jnp.asarray(h), "formula")


class TestCascade:
    """Two states of one group; the way from `g` to `v` lies within a step."""

    @pytest.mark.parametrize("rule", RULES)
    def test_within_step_path(self, rule: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        weight, xs, ys = rng.normal(size=(3, 2)), rng.normal(size=(STEPS, 3)) * 3, rng.normal(size=(STEPS, 2))
        jacobian = np.array([[LEAK, 0.0], [LEAK, DECAY]])
        g, v, eps_x, eps_df, total = np.zeros(2), np.zeros(2), np.zeros(3), np.zeros((2, 2)), np.zeros((3, 2))
        for n, (x, y) in enumerate(zip(xs, ys, strict=True)):
            g = LEAK * g + x @ weight
            v = DECAY * v + g
            eps_x = DECAY * eps_x + x
            eps_df = DECAY * jacobian @ eps_df + (1 - DECAY) * np.ones((2, 1))
            of_v = v - y
            of_g = of_v if rule == BRAINSCALE else np.zeros(2)
            total += np.outer(eps_x, (eps_df * np.stack([of_g, of_v])).sum(0)) / correction(rule, n)
        gradient, aux = gradient_of(Cascade(weight), rule, xs, ys)
        assert_close(gradient["weight"], jnp.asarray(total), "formula")
        assert_close(jax.tree.leaves(aux.carry.trace.dfs)[0], jnp.asarray(eps_df.T), "formula")

    def test_published_counts_the_path_once(self) -> None:
        """In one step from nothing v is x w, as g is; brainscale counts the way through g a second time."""
        learners = {
            rule: pb.capture(Cascade(np.ones((1, 1))), jnp.ones(1), algorithm=pb.ES_D_RTRL(DECAY, rule=rule))
            for rule in RULES
        }
        gradients = {
            rule: pb.sequence_grad(learner, half_square)(params, None, np.full((1, 1), 3.0), np.zeros((1, 1)))[0]
            for rule, (learner, params) in learners.items()
        }
        exact, twice = jnp.full((1, 1), 9.0), jnp.full((1, 1), 2 * 9.0 * (1 - DECAY) / DECAY)
        assert_close(gradients[PUBLISHED]["inp.weight_op"]["weight"], exact, "formula")
        assert_close(gradients[BRAINSCALE]["inp.weight_op"]["weight"], twice, "formula")


class TestRules:
    @pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
    def test_they_differ(self, name: str, seed: int) -> None:
        """The two rules have the same states and traces, and other gradients."""
        ours, theirs = (bench(name, seed, pb.ES_D_RTRL(0.9, rule=rule)).result(Request()) for rule in RULES)
        assert_identical(ours.aux.carry, theirs.aux.carry)
        direct = {"LSTMCell": set(), "GRUCell": {"Wr.weight_op"}}[name]
        for path in set(ours.gradients) - direct:
            assert_differ(ours.gradients[path], theirs.gradients[path])
        for path in direct:
            assert_identical(ours.gradients[path], theirs.gradients[path])

    @pytest.mark.parametrize(
        "name", ["GRUCell", "LSTMCell", "LRUCell", "alif", "conv_rates", "lora", "masked", "used_twice", "trees"]
    )
    def test_published_is_exact_in_its_first_step(self, name: str, seed: int) -> None:
        """From a fresh carry no credit comes from the past: the rule must give the derivative of the step."""
        made = bench(name, seed, pb.ES_D_RTRL(0.9, rule=PUBLISHED))
        learner, (inputs, target) = made.learner, sample(made.data(SAMPLES), 0)
        carry = learner.init()

        def loss(params: Any) -> jax.Array:
            program = learner.program
            return made.model.loss(
                program.execute(params, carry.states, inputs, program.zero_perturbation()).output, target
            )

        sequence = jax.tree.map(lambda x: x[None], (inputs, target))
        got = pb.sequence_grad(learner, made.model.loss)(made.params, carry, *sequence)[0]
        want = jax.grad(loss)(made.params)
        assert any(leaf.any() for _, leaf in named(want))
        assert_close(got, want)


class TestHyperparameters:
    @pytest.mark.parametrize(("rank", "decay"), [(1, 0.0), (3, 0.5), (9, 0.8), (19, 0.9)])
    def test_rank_is_a_decay(self, rank: int, decay: float) -> None:
        assert pb.ES_D_RTRL(rank, rule=PUBLISHED).decay == decay

    def test_rank_one_remembers_nothing(self, seed: int) -> None:
        """With a decay of zero, the published rule is backpropagation within each step."""
        weight, xs = (
            np.random.default_rng(seed).uniform(-1, 1, (3, 2)),
            np.random.default_rng(seed).uniform(0, 3, (STEPS, 3)),
        )
        data = (xs, np.zeros((STEPS, 2)))
        want, got = (
            pb.sequence_grad(learner, half_square, window=1)(params, None, *data)[0]
            for algorithm in (pb.BPTT(), pb.ES_D_RTRL(1, rule=PUBLISHED))
            for learner, params in [pb.capture(Leak(weight), xs[0], algorithm=algorithm)]
        )
        assert_gradients_alive(want)
        assert_close(got, want)

    def test_rank_and_decay_give_the_same_gradient(self, seed: int) -> None:
        by_rank = bench("MinimalRNNCell", seed, pb.ES_D_RTRL(19)).result(Request())
        by_decay = bench("MinimalRNNCell", seed, pb.ES_D_RTRL(0.9)).result(Request())
        assert_gradients_alive(by_decay.gradients)
        assert_identical(by_rank.gradients, by_decay.gradients)

    @pytest.mark.parametrize("rule", RULES)
    def test_correction_after_many_steps(self, rule: str) -> None:
        """BrainScale stops correcting after 1000 updates; the published correction goes on."""
        decay = 0.001 if rule == BRAINSCALE else 0.999
        learner, params = pb.capture(Leak(np.ones((1, 1))), jnp.ones(1), algorithm=pb.ES_D_RTRL(decay, rule=rule))

        def at(count: int) -> jax.Array:
            carry = learner.init()._replace(update_count=jnp.asarray(count, jnp.int32))
            data = (np.ones((1, 1)), np.zeros((1, 1)))
            return pb.sequence_grad(learner, half_square)(params, carry, *data)[0]["inp.weight_op"]["weight"]

        for count in (0, 1, 998, 999, 1000, 1001):
            stops = rule == BRAINSCALE and count >= 1000
            bias = 1.0 if stops else correction(rule, count, decay)
            assert_close(at(count), jnp.full((1, 1), (1 - decay) / bias), "formula")

    @pytest.mark.parametrize(
        "value", [0.0, 1.0, 1.5, -0.1, float("nan"), float("inf"), 0, -3, True, "0.9", None], ids=repr
    )
    @pytest.mark.parametrize("algorithm", [pb.ES_D_RTRL, pb.Hybrid])
    def test_decay_or_rank_out_of_range(self, algorithm: type, value: Any) -> None:
        text = r"decay_or_rank: got .*, expected a float with 0 < decay < 1, or an integer rank >= 1\. Use .*"
        with pytest.raises(AlgorithmError, match=text):
            algorithm(value)

    @pytest.mark.parametrize("make", [lambda rule: pb.ES_D_RTRL(0.9, rule=rule), lambda rule: pb.D_RTRL(rule=rule)])
    def test_unknown_rule(self, make: Any) -> None:
        text = r"rule: got 'exact', expected 'brainscale' or 'published'\. Choose one of them\."
        with pytest.raises(AlgorithmError, match=text):
            make("exact")

    def test_hyperparameters_are_frozen_and_compared_by_value(self) -> None:
        rule = pb.ES_D_RTRL(0.9)
        with pytest.raises(AttributeError):
            rule.decay_or_rank = 0.5
        assert rule == pb.ES_D_RTRL(0.9)
        assert hash(rule) == hash(pb.ES_D_RTRL(0.9))
        assert rule != pb.ES_D_RTRL(0.8)
