"""The driver of sequences: what it takes, what it gives, what it costs."""

from functools import partial
from typing import Any

import brainscale
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching._learning import windows
from pure_batching._learning.data import check_steps
from pure_batching._learning.windows import BUDGET, Windows, equal_length
from pure_batching._tree import nbytes
from pure_batching.errors import OptionError

from .alive import assert_alive, assert_gradients_alive
from .bench import ONLINE_RULES, SAMPLES, STEPS, STRATEGIES, WINDOW, Bench, Request, bench
from .models import N_IN, N_OUT, N_REC, squared
from .modules import Untraced
from .oracle import expected, one_sample
from .trees import (
    assert_close,
    assert_identical,
    assert_not_identical,
    joined,
    sample,
)

Tree = Any


class TestCarry:
    @pytest.mark.parametrize(("name", "strategy"), [("tutorial", "manual"), ("random_start", "vmap")])
    def test_none_is_a_fresh_one(self, name: str, strategy: str, seed: int) -> None:
        made, request = bench(name, seed), Request(strategy)
        want = made.result(request)
        assert_alive(made, request, want)
        got = made.run(request, made.start(strategy), made.data(STEPS, SAMPLES))
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)

    def test_it_matters(self, seed: int) -> None:
        made, request = bench("LSTMCell", seed), Request()
        first = made.result(request)
        later = made.run(request, first.aux.carry, made.data(STEPS, SAMPLES))
        assert_not_identical(later.gradients, first.gradients)
        assert (later.aux.carry.update_count == 2 * STEPS).all()


class TestOneSample:
    @pytest.mark.parametrize("window", [1, WINDOW, None])
    def test_equals_python_over_steps(self, window: int | None, seed: int) -> None:
        made, request = bench("tutorial", seed), Request(None, window=window)
        got, want = made.result(request), one_sample(made, made.start(None), made.data(STEPS))
        assert_gradients_alive(want.gradients)
        assert got.aux.losses.shape == (STEPS,)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)

    def test_no_reduction_changes_it(self, seed: int) -> None:
        made = bench("tutorial", seed)
        mean, total, each = (made.result(Request(None, reduction)).gradients for reduction in ("mean", "sum", "none"))
        assert_gradients_alive(mean)
        assert_identical(mean, total)
        assert_identical(mean, each)


class TestTransformations:
    """A gradient goes wherever a JAX function goes."""

    def test_jit(self, seed: int) -> None:
        made, request = bench("MinimalRNNCell", seed), Request()
        got = jax.jit(made.grad_fn(request))(made.params, None, *made.data(STEPS, SAMPLES))
        assert_close(got[0], made.result(request).gradients)

    def test_vmap_over_params(self, seed: int) -> None:
        made, request = bench("MinimalRNNCell", seed), Request()
        ensemble = [jax.tree.map(lambda x, s=scale: s * x, made.params) for scale in (1.0, 0.5)]
        data, grad_fn = made.data(STEPS, SAMPLES), made.grad_fn(request)
        got, _ = jax.vmap(lambda params: grad_fn(params, None, *data))(joined(ensemble))
        assert_close(sample(got, 0), made.result(request).gradients)
        assert_close(sample(got, 1), grad_fn(ensemble[1], None, *data)[0])


class TestShapes:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_of_everything(self, strategy: str, seed: int) -> None:
        made = bench("tutorial", seed)
        each, mean = made.result(Request(strategy)), made.result(Request(strategy, "mean"))
        shapes = [leaf.shape for leaf in jax.tree.leaves(made.params)]
        assert [leaf.shape for leaf in jax.tree.leaves(mean.gradients)] == shapes
        assert [leaf.shape for leaf in jax.tree.leaves(each.gradients)] == [(SAMPLES, *shape) for shape in shapes]
        assert each.aux.losses.shape == (STEPS, SAMPLES)
        assert each.aux.outputs.shape == (STEPS, SAMPLES, N_OUT)
        assert list(each.gradients) == list(made.params)

    @pytest.mark.parametrize("strategy", [None, *STRATEGIES])
    def test_outputs_only_when_asked_for(self, strategy: str | None, seed: int) -> None:
        made = bench("trees", seed)
        run = pb.sequence_grad(made.batched(strategy), made.model.loss, reduction="none", window=WINDOW)
        request = Request(strategy)
        gradients, aux = run(made.params, None, *made.data(*request.lead))
        assert aux.outputs is None
        assert_close(gradients, made.result(request).gradients)
        assert set(made.result(request).aux.outputs) == {"potential", "parts"}


class TestData:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_the_same_label_at_every_step(self, strategy: str, seed: int) -> None:
        made, request = bench("tutorial", seed), Request(strategy)
        inputs, targets = made.data(STEPS, SAMPLES)
        label = targets[0]
        repeated = np.broadcast_to(label, (STEPS, SAMPLES))
        want = made.run(request, None, (inputs, repeated))
        assert_alive(made, request, want)
        got = made.run(request, None, (inputs, brainscale.SingleStepData(label)))
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_the_same_argument_at_every_step(self, strategy: str, seed: int) -> None:
        made, request = bench("two_inputs", seed), Request(strategy)
        (x, gate), targets = made.data(STEPS, SAMPLES)
        repeated = np.broadcast_to(gate[0], gate.shape)
        want = made.run(request, None, ((x, repeated), targets))
        assert_alive(made, request, want)
        got = made.run(request, None, ((x, brainscale.SingleStepData(gate[0])), targets))
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)

    def test_one_leaf_of_a_tree(self, seed: int) -> None:
        made, request = bench("trees", seed), Request()
        (given,), targets = made.data(STEPS, SAMPLES)
        current = given["current"]
        still = jnp.broadcast_to(current.mantissa[0], current.shape) * current.unit
        want = made.run(request, None, (({**given, "current": still},), targets))
        got = made.run(request, None, (({**given, "current": brainscale.SingleStepData(current[0])},), targets))
        assert_alive(made, request, want)
        assert_close(got.gradients, want.gradients)

    def test_only_the_targets_change(self, seed: int) -> None:
        made, request = bench("MinimalRNNCell", seed), Request()
        (x,), targets = made.data(STEPS, SAMPLES)
        want = made.run(request, None, ((np.broadcast_to(x[0], x.shape),), targets))
        got = made.run(request, None, ((brainscale.SingleStepData(x[0]),), targets))
        assert_alive(made, request, want)
        assert_close(got.gradients, want.gradients)

    def test_many_steps_wrapped(self, seed: int) -> None:
        made, request = bench("tutorial", seed), Request()
        (x,), targets = made.data(STEPS, SAMPLES)
        got = made.run(request, None, ((brainscale.MultiStepData(x),), brainscale.MultiStepData(targets)))
        assert_identical(got.gradients, made.result(request).gradients)

    def test_one_argument_without_its_tuple(self, seed: int) -> None:
        made, request = bench("tutorial", seed), Request()
        (x,), targets = made.data(STEPS, SAMPLES)
        assert_identical(made.run(request, None, (x, targets)).gradients, made.result(request).gradients)

    def test_a_tree_of_targets(self, seed: int) -> None:
        made = bench("tutorial", seed)
        inputs, labels = made.data(STEPS, SAMPLES)

        def loss(out: jax.Array, target: dict[str, Any]) -> jax.Array:
            return target["weight"] * made.model.loss(out, target["label"])

        targets = {"label": labels, "weight": brainscale.SingleStepData(np.full(SAMPLES, 2.0))}
        got, _ = pb.sequence_grad(made.batched("vmap"), loss, reduction="none", window=WINDOW)(
            made.params, None, inputs, targets
        )
        assert_close(got, jax.tree.map(lambda x: 2.0 * x, made.result(Request()).gradients))


class TestMemory:
    """What is compiled for a window does not know how long the sequence is."""

    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL"])
    def test_online_needs_the_same_for_any_length(self, rule: str, strategy: str, seed: int) -> None:
        made = bench("tutorial", seed, ONLINE_RULES[rule])
        short, long = (temporary_bytes(made, strategy, steps, window=1) for steps in (16, 4096))
        assert short == long
        assert short > 0

    def test_a_window_is_paid_for(self, seed: int) -> None:
        """Or the test above would compare nothing."""
        made = bench("tutorial", seed)
        assert temporary_bytes(made, "vmap", 64, window=64) > temporary_bytes(made, "vmap", 64, window=1)


def temporary_bytes(made: Bench, strategy: str, steps: int, window: int) -> int:
    """The temporary memory of a compiled gradient."""
    grad_fn = pb.sequence_grad(made.batched(strategy), made.model.loss, window=window)
    data = check_steps(grad_fn.learner, *made.data(steps, SAMPLES), None, None)
    lowered = jax.jit(grad_fn.run).lower(made.params, made.start(strategy), data, None)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def twice_the_traces() -> int:
    """Of the tutorial's net; a window leaves room for them."""
    return 2 * nbytes(bench("tutorial", 0).batched("vmap").carry_spec().trace)


# The input and the pulled-back output of both weights of the tutorial's net, and the latter three times more, in double
# precision.
BYTES_OF_A_STEP = 8 * SAMPLES * ((N_IN + N_REC) + N_REC + 4 * (N_REC + N_OUT))


def budget_of(steps: int) -> int:
    """A budget for so many steps of the tutorial's net, with room for the traces."""
    return steps * BYTES_OF_A_STEP + twice_the_traces()


class TestWindowOfNone:
    """What fits into the budget, and what stays in a cache."""

    @pytest.mark.parametrize(("steps_in_budget", "window"), [(1, 1), (4, 4), (STEPS, STEPS), (1000, STEPS)])
    def test_the_budget(self, seed: int, steps_in_budget: int, window: int) -> None:
        learner = bench("tutorial", seed).batched("vmap")
        assert Windows(None, budget_of(steps_in_budget)).fitting(learner, STEPS) == window
        assert Windows(None, 1).fitting(learner, STEPS) == 1

    def test_a_byte_less_is_a_step_less(self, seed: int) -> None:
        learner = bench("tutorial", seed).batched("vmap")
        assert Windows(None, budget_of(4) - 1).fitting(learner, STEPS) == 4 - 1

    def test_products_before_the_steps_are_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        params, state, x = {"w": jnp.ones((3, 5)), "v": jnp.ones((5, 5))}, jnp.zeros(5), jnp.zeros(3)

        def kept_bytes() -> int:
            step = lambda p, h, x: 2 * (jnp.tanh(x @ p["w"] + h @ p["v"]),)  # noqa: E731
            learner, _ = pb.capture_function(step, params, state, x, algorithm=pb.ES_D_RTRL(0.9))
            return windows._kept_bytes(pb.vmap(learner, SAMPLES))[0]

        counted = kept_bytes()
        monkeypatch.setattr(windows, "_early_products", lambda _: [])
        assert counted - kept_bytes() == SAMPLES * state.nbytes

    def test_what_was_asked_for_stands(self, seed: int) -> None:
        learner = bench("tutorial", seed).batched("vmap")
        for length, window in ((1, 1), (4, 4), (STEPS + 3, STEPS)):
            asked = Windows(length, 1)
            assert (asked.fitting(learner, STEPS), asked.chosen(learner, STEPS)) == (window, window)

    def test_what_is_kept_stays_in_a_cache(self, seed: int) -> None:
        """Eight MiB, whatever the length of the sequence and the number of samples."""
        made, cached = bench("tutorial", seed), 8 * 2**20
        for samples in (SAMPLES, 8 * SAMPLES):
            of_a_step = BYTES_OF_A_STEP * samples // SAMPLES
            chosen = [Windows().chosen(pb.vmap(made.learner, samples), time) for time in (STEPS, 10**5, 2**17)]
            assert chosen[0] == STEPS
            assert all(0.5 * cached < window * of_a_step <= cached for window in chosen[1:])

    @pytest.mark.parametrize(("time", "largest", "window"), [(16, 12, 8), (100, 12, 10), (97, 12, 11), (5, 9, 5)])
    def test_windows_are_equally_long_where_they_can_be(self, time: int, largest: int, window: int) -> None:
        """Or all but the last, which is a little shorter."""
        assert equal_length(time, min(time, largest)) == window

    def test_a_small_budget_gives_the_same_gradient(self, seed: int) -> None:
        made = bench("tutorial", seed)
        options: Any = {"reduction": "none", "budget": budget_of(4)}
        grad_fn = pb.sequence_grad(made.batched("vmap"), made.model.loss, **options)
        assert grad_fn.windows.chosen(grad_fn.learner, STEPS) < STEPS
        got, _ = grad_fn(made.params, None, *made.data(STEPS, SAMPLES))
        assert_close(got, expected(made, SAMPLES, STEPS).gradients)

    @pytest.mark.parametrize("driver", [pb.sequence_grad, pb.sample_norms, partial(pb.clipped_grad, bound=1.0)])
    @pytest.mark.parametrize("budget", [0, -1, 2.5, True, "256 MiB", None])
    def test_a_budget_is_a_number_of_bytes(self, driver: Any, budget: Any, seed: int) -> None:
        with pytest.raises(OptionError, match=r"budget: got .*, expected an integer >= 1"):
            driver(bench("tutorial", seed).batched("vmap"), squared, budget=budget)

    @pytest.mark.parametrize("rule", ONLINE_RULES)
    def test_the_compiled_program_needs_a_quarter_of_a_gibibyte(self, rule: str) -> None:
        """And a quarter of that more, in which traces, gradients and losses are."""
        samples, n_in, n_rec = 32, 128, 256
        example = np.ones(n_in, np.float32)
        net = brainscale.nn.MinimalRNNCell(n_in, n_rec)
        learner, params = pb.capture(net, example, algorithm=ONLINE_RULES[rule])
        params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        batched = pb.vmap(learner, samples)
        carry = batched.carry_spec()
        data = [jax.ShapeDtypeStruct((4096, samples, n), learner.program.inputs[0].dtype) for n in (n_in, n_rec)]
        grad_fn = pb.sequence_grad(batched, squared)
        assert grad_fn.windows.chosen(batched, 4096) < 4096
        lowered = jax.jit(lambda *args: grad_fn(*args)[0]).lower(params, carry, *data)
        budget = 256 * 2**20
        assert budget == BUDGET
        memory: Any = lowered.compile().memory_analysis()
        assert memory.temp_size_in_bytes < 1.25 * budget


class TestStrictArithmetic:
    """Between a module's own equations nothing is promoted, neither dtypes nor ranks."""

    @pytest.mark.parametrize("rule", ONLINE_RULES)
    def test_nothing_is_promoted(self, rule: str, seed: int) -> None:
        """In single precision, while JAX's default is double."""
        made = bench("MinimalRNNCell", seed, ONLINE_RULES[rule], precision=32)

        def loss(out: jax.Array, target: jax.Array) -> jax.Array:
            return (out * jnp.broadcast_to(target, out.shape)).sum()

        with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
            gradients, aux = pb.sequence_grad(made.batched("vmap"), loss, window=WINDOW)(
                made.params, None, *made.data(STEPS, SAMPLES)
            )
        assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {np.dtype("float32")}
        assert aux.losses.dtype == np.dtype("float32")


def test_a_model_without_traces(seed: int) -> None:
    """All of its weights get the ordinary gradient of each step."""
    x, y = np.random.default_rng(seed).normal(size=(STEPS, SAMPLES, N_IN)), np.ones((STEPS, SAMPLES))
    learner, params = pb.capture(Untraced(N_IN, N_REC), jnp.asarray(x[0, 0]), algorithm=pb.ES_D_RTRL(0.9))

    def loss(params: Tree, x: jax.Array, y: jax.Array) -> jax.Array:
        weight = params["untraced"]["weight"]
        return squared(jnp.tanh(x @ weight), y)

    want = jax.vmap(jax.vmap(jax.grad(loss), (None, 0, 0)), (None, 0, 0))(params, x, y)
    for strategy in STRATEGIES.values():
        grad_fn = pb.sequence_grad(strategy(learner, SAMPLES), squared, reduction="none", window=WINDOW)
        got, _ = grad_fn(params, None, x, y)
        assert_gradients_alive(got)
        assert_close(got, jax.tree.map(lambda g: g.sum(0), want))
