"""BPTT and the multi-step methods: what is propagated back through a window."""

import functools
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import pure_batching as pb

from .alive import assert_fires, assert_gradients_alive
from .bench import MULTI_STEP_RULES, RULES, SAMPLES, STEPS, STRATEGIES, Bench, Request, bench
from .models import N_REC
from .modules import Leaky, Linear
from .registry import captured
from .trees import assert_close, assert_differ, assert_identical, assert_some_differ, joined, sample, slice_time
from .upstream import DIFFERS, IN_A_SCAN
from .versions import needs_its_faults

NAMES = ("tutorial", "lif", "LSTMCell", "LRUCell", "readouts", "trees", "used_twice")


def stateful_gradients(made: Bench, data: Any) -> Any:
    """BrainState's own gradients through a loop over the module itself, each sample alone: no trace, no capture."""
    net, starts = made.model.build(made.seed), made.start("vmap").hidden
    weights = net.states(brainstate.ParamState)

    def step(given: Any) -> jax.Array:
        return made.model.loss(net(*given[0]), given[1])

    @brainstate.transform.jit
    def gradient(data: Any) -> Any:
        return brainstate.transform.grad(lambda: brainstate.transform.for_loop(step, data).sum(), weights)()

    def of_one(i: int) -> Any:
        for state, value in fresh:
            state.value = value
        pb.write_states(net, sample(starts, i))
        return gradient(jax.tree.map(lambda x: jnp.asarray(x)[:, i], data))

    with brainstate.environ.context(**made.model.settings):
        brainstate.nn.init_all_states(net, batch_size=None)
        fresh = [(state, state.value) for state in net.states().values()]
        found = joined([of_one(i) for i in range(SAMPLES)])
    return {".".join(map(str, path)): value for path, value in found.items()}


def cell_gradient(params: Any, inputs: jax.Array, targets: jax.Array, window: int) -> Any:
    """The registry's "MinimalRNNCell" written down anew, `[T, ...]`; no credit passes from one window to the next."""

    def step(params: Any, h: jax.Array, given: Any) -> Any:
        phi, gate = params["phi.weight_op"], params["W_u.weight_op"]
        z = given[0] @ phi["weight"] + phi["bias"]
        f = jax.nn.sigmoid(jnp.concatenate([z, h]) @ gate["weight"] + gate["bias"])
        h = f * h + (1 - f) * z
        return h, (0.5 * h**2 + given[1] * h).sum()

    def total(params: Any) -> jax.Array:
        h, losses = jnp.zeros(N_REC), 0.0
        for t in range(inputs.shape[0]):
            h = jax.lax.stop_gradient(h) if t % window == 0 else h
            h, loss = step(params, h, (inputs[t], targets[t]))
            losses = losses + loss
        return losses

    return jax.grad(total)(params)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "exact_name" in metafunc.fixturenames:
        metafunc.parametrize("exact_name", IN_A_SCAN if metafunc.config.getoption("--all-rules") else NAMES)


class TestExactGradient:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("window", [1, 2, 4, STEPS])
    def test_equals_a_cell_written_by_hand(self, window: int, strategy: str, seed: int) -> None:
        """Over the whole sequence, and cut off at each window's start."""
        made = bench("MinimalRNNCell", seed, pb.BPTT())
        (inputs,), targets = made.data(STEPS, SAMPLES)
        by_hand = functools.partial(cell_gradient, window=window)
        want = jax.jit(jax.vmap(by_hand, in_axes=(None, 1, 1)))(made.params, inputs, targets)
        assert_gradients_alive(want)
        assert_close(made.result(Request(strategy, window=window)).gradients, want, "exact")

    def test_equals_the_module_in_a_scan(self, exact_name: str, seed: int) -> None:
        made = captured(exact_name, seed, pb.BPTT())
        data, got = made.data(STEPS, SAMPLES), made.result(Request(window=None))
        want = stateful_gradients(made, data)
        assert_gradients_alive(want)
        if made.model.spikes:
            assert_fires(got.aux.outputs)
        assert_close(got.gradients, want, "exact")

    @needs_its_faults
    @pytest.mark.parametrize("name", DIFFERS["ES_D_RTRL"])
    def test_where_the_module_itself_is_wrong(self, name: str, seed: int) -> None:
        made = captured(name, seed, pb.BPTT())
        want = stateful_gradients(made, made.data(STEPS, SAMPLES))
        assert_some_differ(made.result(Request(window=None)).gradients, want)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("name", ["tutorial", "trees"])
    def test_every_strategy(self, name: str, strategy: str, seed: int) -> None:
        made = bench(name, seed, pb.BPTT())
        want, got = made.result(Request("loop", window=4)), made.result(Request(strategy, window=4))
        assert_gradients_alive(want.gradients)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)

    def test_windows_matter(self, seed: int) -> None:
        made = bench("MinimalRNNCell", seed, pb.BPTT())
        gradients = [made.result(Request(window=window)).gradients for window in (1, 2, None)]
        assert_differ(gradients[0], gradients[1])
        assert_differ(gradients[1], gradients[2])

    def test_no_trace_is_carried(self, seed: int) -> None:
        assert bench("tutorial", seed, pb.BPTT()).start("vmap").trace == ()


# A sequence long enough for the intermediate values of its steps to outweigh all else.
LONG, MANY, WIDE = 64, 16, 64


def temporary_bytes(*, checkpoint: bool) -> int:
    """What XLA says of a deep step's gradient."""
    with brainstate.random.seed_context(0):
        net = Leaky(Deep(WIDE), (WIDE,), is_recurrent=False)
    learner, params = pb.capture(net, jnp.ones(WIDE), algorithm=pb.BPTT(checkpoint=checkpoint))
    grad_fn = pb.sequence_grad(pb.vmap(learner, MANY), lambda out, target: ((out - target) ** 2).sum(), window=None)
    specs = [jax.ShapeDtypeStruct((LONG, MANY, WIDE), jnp.float64)] * 2

    def run(params: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        return grad_fn(params, None, inputs, targets)[0]

    return jax.jit(run).lower(params, *specs).compile().memory_analysis().temp_size_in_bytes


class Deep(brainstate.nn.Module):
    """A layer with many intermediate values behind it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = Linear(size, size)

    def update(self, x: jax.Array) -> jax.Array:
        y = self.layer(x)
        for _ in range(10):
            y = jnp.sin(y) * jnp.cos(y) + jnp.tanh(y)
        return y


class TestCheckpoint:
    @pytest.mark.parametrize("window", [4, None])
    @pytest.mark.parametrize("name", ["tutorial", "LSTMCell"])
    def test_same_numbers(self, name: str, window: int | None, seed: int) -> None:
        kept, made = bench(name, seed, pb.BPTT()), bench(name, seed, pb.BPTT(checkpoint=True))
        want, got = kept.result(Request(window=window)), made.result(Request(window=window))
        assert_gradients_alive(want.gradients)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)

    def test_less_memory(self) -> None:
        assert temporary_bytes(checkpoint=True) < 0.7 * temporary_bytes(checkpoint=False)


class TestMultiStep:
    """Exact inside a window, the trace for what lies behind it."""

    @pytest.mark.parametrize("rule", MULTI_STEP_RULES)
    @pytest.mark.parametrize("name", ["tutorial", "readouts"])
    def test_one_window_is_bptt(self, name: str, rule: str, seed: int) -> None:
        got = bench(name, seed, MULTI_STEP_RULES[rule]).result(Request(window=None))
        want = bench(name, seed, pb.BPTT()).result(Request(window=None))
        assert_gradients_alive(want.gradients)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux.losses, want.aux.losses)

    @pytest.mark.parametrize("rule", MULTI_STEP_RULES)
    def test_what_lies_behind_counts(self, rule: str, seed: int) -> None:
        made, cut = bench("MinimalRNNCell", seed, MULTI_STEP_RULES[rule]), bench("MinimalRNNCell", seed, pb.BPTT())
        got, truncated = made.result(Request()), cut.result(Request())
        assert_gradients_alive(got.gradients)
        assert_differ(got.gradients, truncated.gradients)
        assert_differ(got.gradients, cut.result(Request(window=None)).gradients)

    def test_published_d_rtrl_is_exact_at_every_window(self, seed: int) -> None:
        """Where the trace is exact, nothing is lost at a window's start."""
        exact = bench("two_inputs", seed, pb.BPTT()).result(Request(window=None))
        for window in (1, 2, 4):
            made = bench("two_inputs", seed, RULES["D_RTRL published multi-step"])
            assert_close(made.result(Request(window=window)).gradients, exact.gradients, "exact")

    @pytest.mark.parametrize("strategy", ["loop", "manual"])
    @pytest.mark.parametrize("rule", MULTI_STEP_RULES)
    def test_every_strategy(self, rule: str, strategy: str, seed: int) -> None:
        made = bench("tutorial", seed, MULTI_STEP_RULES[rule])
        want, got = made.result(Request()), made.result(Request(strategy))
        assert_gradients_alive(want.gradients)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)

    @pytest.mark.parametrize("rule", MULTI_STEP_RULES)
    def test_halves_at_a_window_s_end(self, rule: str, seed: int) -> None:
        made, request = bench("LSTMCell", seed, MULTI_STEP_RULES[rule]), Request()
        data, want = made.data(STEPS, SAMPLES), made.result(request)
        first = made.run(request, None, slice_time(data, 0, STEPS // 2))
        second = made.run(request, first.aux.carry, slice_time(data, STEPS // 2, STEPS))
        assert_close(jax.tree.map(jnp.add, first.gradients, second.gradients), want.gradients)
        assert_close(second.aux.carry, want.aux.carry)
        assert_identical(second.aux.carry.update_count, jnp.full(SAMPLES, 2, jnp.int32))
