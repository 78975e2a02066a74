"""D_RTRL: exact where the theory says so, in every window and strategy."""

import functools
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Linear

import pure_batching as pb
from pure_batching._algorithms.d_rtrl import _largest as largest

from .alive import assert_alive, assert_gradients_alive
from .bench import RULES, SAMPLES, STEPS, STRATEGIES, WINDOW, Bench, Request
from .feed_forward import Weighted
from .models import MODELS, N_IN, N_REC
from .modules import Leaky
from .registry import EXACT, captured
from .trees import (
    assert_close,
    assert_identical,
    assert_not_identical,
    assert_some_differ,
    sample,
    with_sample,
)

PUBLISHED = pb.D_RTRL(rule="published")


# Where several strategies and windows are worth their time.
FEW = ("LIF", "Expon_LIF", "LRUCell", "lora_matrix", "conv1d", "own_operation")


class TestExactness:
    @pytest.mark.parametrize("rule", ["D_RTRL published", "D_RTRL published multi-step"])
    @pytest.mark.parametrize("name", EXACT)
    def test_equals_bptt(self, name: str, rule: str, seed: int) -> None:
        self.check(name, Request(), seed, rule)

    @pytest.mark.parametrize("window", [1, 4, STEPS - 1])
    @pytest.mark.parametrize("name", FEW)
    def test_every_window(self, name: str, window: int, seed: int) -> None:
        self.check(name, Request(window=window), seed)

    @pytest.mark.parametrize("strategy", ["loop", "manual"])
    @pytest.mark.parametrize("name", FEW)
    def test_every_strategy(self, name: str, strategy: str, seed: int) -> None:
        self.check(name, Request(strategy), seed)

    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    @pytest.mark.parametrize("name", ["Expon_LIF", "csr"])
    def test_every_reduction(self, name: str, reduction: str, seed: int) -> None:
        self.check(name, Request(reduction=reduction), seed)

    @staticmethod
    def check(name: str, request: Request, seed: int, rule: str = "D_RTRL published") -> None:
        exact = captured(name, seed, pb.BPTT()).result(Request("vmap", request.reduction, window=None))
        online = captured(name, seed, RULES[rule])
        got = online.result(request)
        assert_alive(online, request, got)
        assert_close(got.gradients, exact.gradients, "exact")
        assert_close(got.aux.losses, exact.aux.losses)

    @pytest.mark.parametrize("name", ["tutorial", "LSTMCell", "MinimalRNNCell"])
    def test_not_with_recurrent_weights(self, name: str, seed: int) -> None:
        """The diagonal approximation shows, so that equality above means something."""
        exact, online = (captured(name, seed, rule).result(Request()) for rule in (pb.BPTT(), PUBLISHED))
        assert_close(online.aux.losses, exact.aux.losses)
        assert_not_identical(online.gradients, exact.gradients)

    @pytest.mark.parametrize("name", ["Expon_LIF", "LRUCell"])
    def test_paths_within_a_step_count_once(self, name: str, seed: int) -> None:
        """BrainScale's rule counts them twice."""
        exact = captured(name, seed, pb.BPTT()).result(Request(window=None))
        assert_some_differ(captured(name, seed, pb.D_RTRL()).result(Request()).gradients, exact.gradients)


def leaky_gradient(params: Any, inputs: jax.Array, targets: jax.Array) -> Any:
    """`jax.grad` of the model "matrix", written down anew."""
    weight = params["layer.weight_op"]

    def total(weight: Any) -> jax.Array:
        def step(h: jax.Array, given: Any) -> Any:
            h = 0.7 * h + jnp.tanh(given[0] @ weight["weight"] + weight["bias"])
            return h, (0.5 * h**2 + given[1] * h).sum()

        return jax.lax.scan(step, jnp.zeros(N_REC), (inputs, targets))[1].sum()

    return {"layer.weight_op": jax.grad(total)(weight)}


class TestClosedForms:
    @pytest.mark.parametrize("window", [1, WINDOW, None])
    def test_a_scan_written_by_hand(self, window: int | None, seed: int) -> None:
        online = captured("matrix", seed, PUBLISHED)
        (inputs,), targets = online.data(STEPS, SAMPLES)
        want = jax.vmap(leaky_gradient, in_axes=(None, 1, 1))(online.params, inputs, targets)
        assert_close(online.result(Request(window=window)).gradients, want, "exact")

    def test_a_function_of_a_weight_is_applied_once(self, seed: int) -> None:
        """A matrix of which twice the value is used has twice the gradient of the matrix that is twice as large."""
        online = captured("doubled", seed, PUBLISHED)
        (inputs,), targets = online.data(STEPS, SAMPLES)
        own = online.params["layer.weight"]
        plain = {"layer.weight_op": {**own, "weight": 2 * own["weight"]}}
        want = jax.vmap(leaky_gradient, in_axes=(None, 1, 1))(plain, inputs, targets)["layer.weight_op"]
        got = online.result(Request()).gradients["layer.weight"]
        assert_close(got, {**want, "weight": 2 * want["weight"]}, "exact")

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("rule", ["published", "brainscale"])
    def test_in_numpy(self, rule: str, strategy: str, seed: int) -> None:
        online = captured("matrix", seed, pb.D_RTRL(rule=rule))
        got = online.result(Request(strategy))
        assert_alive(online, Request(strategy), got)
        want = [in_numpy(online, i, rule) for i in range(SAMPLES)]
        gradients, traces = (jax.tree.map(lambda *x: jnp.stack(x), *column) for column in zip(*want, strict=True))
        assert_close(got.gradients["layer.weight_op"], gradients, "formula")
        trace = got.aux.carry.trace
        for name, eps in trace.weights["layer.weight_op -> h"].items():
            scales = trace.scales["layer.weight_op -> h"][name] if rule == "brainscale" else jnp.ones(SAMPLES)
            assert_close(eps[..., 0] / scales.reshape(-1, *(1 for _ in eps.shape[2:])), traces[name], "formula")


def in_numpy(online: Bench, i: int, rule: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The gradient and the last trace of a sample of the model "matrix": every trace in the open."""
    (inputs,), targets = online.data(STEPS, SAMPLES)
    weight = {name: np.asarray(leaf) for name, leaf in online.params["layer.weight_op"].items()}
    limited = {"brainscale": lambda v: v / max(1.0, np.abs(v).max()), "published": lambda v: v}[rule]
    h, eps, total = np.zeros(N_REC), dict.fromkeys(weight, 0.0), dict.fromkeys(weight, 0.0)
    for x, target in zip(inputs[:, i], targets[:, i], strict=True):
        rate = np.tanh(x @ weight["weight"] + weight["bias"])
        h = 0.7 * h + rate
        instant = {"weight": np.outer(x, 1 - rate**2), "bias": 1 - rate**2}
        eps = {name: limited(0.7 * eps[name] + limited(instant[name])) for name in weight}
        total = {name: total[name] + (h + target) * eps[name] for name in weight}
    return total, eps


class TestNormalisation:
    """`rule="brainscale"`: divided by the largest entry, of each sample, leaf and step."""

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("name", ["tutorial", "matrix", "element_wise", "conv1d"])
    def test_belongs_to_the_sample(self, name: str, strategy: str, seed: int) -> None:
        """Another sample's input, made a hundred times larger, moves no bit."""
        online, request = captured(name, seed, pb.D_RTRL()), Request(strategy)
        inputs, targets = online.data(STEPS, SAMPLES)
        want = online.result(request)
        assert_alive(online, request, want)
        assert any((scale > 1).all() for scale in jax.tree.leaves(want.aux.carry.trace.scales))
        got = online.run(request, None, (with_sample(inputs, 1, jax.tree.map(lambda x: 100 * x, inputs)), targets))
        assert_not_identical(sample(got.gradients, 1), sample(want.gradients, 1))
        for i in (0, 2):
            assert_identical(sample(got.gradients, i), sample(want.gradients, i))
            assert_identical(sample(got.aux.carry.trace, i), sample(want.aux.carry.trace, i))

    @pytest.mark.parametrize("name", ["tutorial", "LRUCell", "matrix"])
    def test_differs_from_the_published_rule(self, name: str, seed: int) -> None:
        one, other = (captured(name, seed, rule).result(Request()).gradients for rule in (pb.D_RTRL(), PUBLISHED))
        assert_some_differ(one, other)

    def test_traces_stay_below_one(self, seed: int) -> None:
        trace = captured("matrix", seed, pb.D_RTRL()).result(Request()).aux.carry.trace
        for link, leaves in trace.weights.items():
            for name, eps in leaves.items():
                largest = np.abs(eps).max(tuple(range(1, eps.ndim)))
                np.testing.assert_array_equal(np.maximum(largest, 1), trace.scales[link][name])


class TestWindows:
    @pytest.mark.parametrize("window", [2, STEPS - 1, None])
    @pytest.mark.parametrize("rule", ["brainscale", "published"])
    @pytest.mark.parametrize("name", ["tutorial", "lif", "LSTMCell", "own_operation", "used_twice"])
    def test_every_window_gives_the_same(self, name: str, rule: str, window: int | None, seed: int) -> None:
        online = captured(name, seed, pb.D_RTRL(rule=rule))
        want, got = online.result(Request(window=1)), online.result(Request(window=window))
        assert_alive(online, Request(window=1), want)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)

    @pytest.mark.parametrize("rule", ["brainscale", "published"])
    @pytest.mark.parametrize("name", ["tutorial", "lora_matrix"])
    def test_the_differentiable_step(self, name: str, rule: str, seed: int) -> None:
        """`jax.grad` of the losses of a scan over `step`."""
        online = captured(name, seed, pb.D_RTRL(rule=rule))
        learner, start, data = online.batched("vmap"), online.start("vmap"), online.data(STEPS, SAMPLES)

        def total(params: Any) -> jax.Array:
            def step(carry: pb.Carry, given: Any) -> Any:
                carry, output = learner.step(params, carry, *given[0])
                return carry, jax.vmap(online.model.loss)(output, given[1]).sum()

            return jax.lax.scan(step, start, data)[1].sum()

        got = jax.grad(total)(online.params)
        assert_gradients_alive(got)
        assert_close(got, online.result(Request(reduction="sum")).gradients)


# Sizes at which a trace of every sample outweighs all else.
WIDE, MANY = 192, 24
TRACE_BYTES = MANY * (WIDE + 1) * WIDE * 8


@functools.cache
def wide(rule: str, strategy: str) -> tuple[pb.Learner, Any]:
    """A large layer without recurrent weights, `MANY` samples of it."""
    with brainstate.random.seed_context(0):
        net = Leaky(Linear(WIDE, WIDE), (WIDE,), is_recurrent=False)
    learner, params = pb.capture(net, jnp.ones(WIDE), algorithm=pb.D_RTRL(rule=rule))
    return STRATEGIES[strategy](learner, MANY), params


def compiled(rule: str, steps: int, window: int | None, strategy: str = "vmap", *, keeps_carry: bool) -> Any:
    """What XLA says of the memory of a fresh sequence's gradient."""
    learner, params = wide(rule, strategy)
    grad_fn = pb.sequence_grad(learner, MODELS["LRUCell"].loss, window=window)

    def run(params: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        gradients, aux = grad_fn(params, None, inputs, targets)
        return gradients, aux if keeps_carry else aux.losses

    specs = (jax.ShapeDtypeStruct((steps, MANY, *shape), jnp.float64) for shape in ((WIDE,), ()))
    return jax.jit(run).lower(params, *specs).compile().memory_analysis()


class TestMemory:
    @pytest.mark.parametrize("function", [jnp.tanh, jnp.arctan, jnp.ceil, jnp.arcsinh], ids=lambda f: f.__name__)
    def test_an_element_wise_function_of_a_matrix_keeps_its_trace_small(self, function: Any) -> None:
        """One number for each weight element and hidden state, not one for each output element besides."""
        op = brainscale.MatMulOp(weight_fn=function)
        net = Leaky(Weighted({"weight": jnp.full((N_IN, N_REC), 0.5)}, op), (N_REC,), is_recurrent=False)
        learner, _ = pb.capture(net, jnp.ones(N_IN), algorithm=pb.D_RTRL())
        leaves = jax.tree.leaves(jax.eval_shape(learner.init).trace.weights)
        assert [leaf.shape for leaf in leaves] == [(N_IN, N_REC, 1)]

    def test_a_whole_sequence_builds_no_trace(self) -> None:
        memory = compiled("published", 8, None, keeps_carry=False)
        assert memory.temp_size_in_bytes < TRACE_BYTES

    def test_unless_it_is_asked_for(self) -> None:
        """The statement above is one: with the carry the trace is there."""
        memory = compiled("published", 8, None, keeps_carry=True)
        assert memory.output_size_in_bytes > TRACE_BYTES

    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    @pytest.mark.parametrize("rule", ["brainscale", "published"])
    def test_online_needs_two_traces(self, rule: str, strategy: str) -> None:
        """The old one and the new one, however long the sequence is."""
        short, long = self.temporary_bytes(rule, 1, strategy)
        assert long - short < TRACE_BYTES / 10
        assert long < 1.25 * TRACE_BYTES  # besides the one that is given back

    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    @pytest.mark.parametrize("rule", ["brainscale", "published"])
    @pytest.mark.parametrize("window", [4, 8])
    def test_depends_on_the_window_alone(self, window: int, rule: str, strategy: str) -> None:
        short, long = self.temporary_bytes(rule, window, strategy)
        assert long - short < TRACE_BYTES / 10

    @staticmethod
    def temporary_bytes(rule: str, window: int, strategy: str) -> tuple[int, int]:
        """Of a short sequence and of a long one."""
        short, long = (compiled(rule, steps, window, strategy, keeps_carry=True) for steps in (16, 64))
        return short.temp_size_in_bytes, long.temp_size_in_bytes


@pytest.mark.parametrize("size", [1, 3, 4, 9, 30])
def test_the_divisor_is_the_largest_entry_wherever_it_lies(size: int) -> None:
    """It is found in parts, and what is left of them."""
    for place in range(size):
        for entry, divisor in ((-3.0, 3.0), (2.0, 2.0), (0.5, 1.0), (np.nan, np.nan)):
            trace = np.full(size, 0.25, np.float32)
            trace[place] = entry
            np.testing.assert_equal(float(largest(jnp.asarray(trace).reshape(size, 1))), divisor)
