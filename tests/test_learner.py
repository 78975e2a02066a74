"""The learner: two pure functions, that any JAX program may contain."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from brainscale.nn import Linear

import pure_batching as pb
from pure_batching._program import Program, Step
from pure_batching._sources.base import Source
from pure_batching._strategies.base import MapSamples, Strategy
from pure_batching._strategies.shares import Sharing

from .alive import assert_alive, assert_gradients_alive
from .bench import ONLINE_RULES, SAMPLES, STEPS, STRATEGIES, WINDOW, Bench, Request, bench
from .models import N_IN, N_OUT, N_REC, Model, floats, squared
from .modules import Leaky, MinimalRNNCell, Watched
from .oracle import fresh
from .trees import (
    assert_close,
    assert_differ,
    assert_identical,
    assert_not_identical,
    joined,
    named,
    sample,
    sample_of_carry,
)

Tree = Any
KINDS = {"one sample": None, **{name: name for name in STRATEGIES}}


def losses_of(made: Bench, strategy: str | None, step: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """`(params, carry, data) -> the sum of all losses`, by a scan over `learner.step`."""
    step = step or made.batched(strategy).step
    loss = made.model.loss if strategy is None else jax.vmap(made.model.loss)

    def total(params: Tree, carry: pb.Carry, data: Tree) -> jax.Array:
        def one(carry: pb.Carry, given: Tree) -> tuple[pb.Carry, jax.Array]:
            carry, out = step(params, carry, *given[0])
            return carry, loss(out, given[1]).sum()

        return jax.lax.scan(one, carry, data)[1].sum()

    return total


class TestGradient:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [("tutorial", "one sample"), ("tutorial", "vmap"), ("counting", "loop"), ("counting", "manual")],
    )
    def test_of_a_scan_is_that_of_the_sequence(self, name: str, kind: str, seed: int) -> None:
        made, request = bench(name, seed), Request(KINDS[kind], "sum")
        want = made.result(request)
        assert_alive(made, request, want)
        total = jax.jit(jax.grad(losses_of(made, KINDS[kind])))
        got = total(made.params, made.start(KINDS[kind]), made.data(*request.lead))
        assert_close(got, want.gradients)

    @pytest.mark.parametrize("rule", ["D_RTRL", "Hybrid"])
    def test_with_every_rule(self, rule: str, seed: int) -> None:
        made, request = bench("MinimalRNNCell", seed, ONLINE_RULES[rule]), Request("vmap", "sum")
        want = made.result(request)
        assert_alive(made, request, want)
        got = jax.jit(jax.grad(losses_of(made, "vmap")))(made.params, made.start("vmap"), made.data(*request.lead))
        assert_close(got, want.gradients)

    @pytest.mark.parametrize("name", ["LSTMCell", "readouts", "trees"])
    def test_of_the_inputs_is_that_of_the_step(self, name: str, seed: int) -> None:
        made = bench(name, seed)
        inputs, target = made.data()
        carry = sample_of_carry(made.result(Request("loop")).aux.carry, 0)

        def through_learner(inputs: Tree) -> jax.Array:
            return made.model.loss(made.learner.step(made.params, carry, *inputs)[1], target)

        def through_program(inputs: Tree) -> jax.Array:
            program = made.learner.program
            done = program.execute(made.params, carry.states, inputs, program.zero_perturbation())
            return made.model.loss(done.output, target)

        want = jax.grad(through_program)(inputs)
        assert_gradients_alive(want)
        assert_close(jax.grad(through_learner)(inputs), want)

    @pytest.mark.parametrize("kind", ["one sample", "vmap", "manual"])
    def test_no_credit_flows_through_the_carry(self, kind: str, seed: int) -> None:
        """The output depends on the carry, and its gradient with respect to the carry is zero all the same."""
        strategy = KINDS[kind]
        made = bench("counting", seed)
        learner, start = made.batched(strategy), made.start(strategy)
        inputs, _ = made.data(*learner.lead)

        def loss(floating: Tree, fixed: Tree) -> jax.Array:
            carry, out = learner.step(made.params, eqx.combine(floating, fixed), *inputs)
            return out.sum() + sum(leaf.sum() for leaf in jax.tree.leaves((carry.hidden, carry.trace)))

        floating, fixed = eqx.partition(start, eqx.is_inexact_array)
        value, gradient = jax.value_and_grad(loss)(floating, fixed)
        moved = jax.tree.map(lambda x: x + 1, floating)
        assert abs(loss(moved, fixed) - value) > 1
        assert all(not leaf.any() for _, leaf in named(gradient))

    def test_of_what_the_next_carry_holds_is_zero(self, seed: int) -> None:
        made = bench("LSTMCell", seed)
        inputs, _ = made.data()

        def held(params: Tree, inputs: Tree) -> jax.Array:
            return made.learner.step(params, made.start(None), *inputs)[0].hidden["h"].sum()

        assert held(made.params, inputs) != 0
        assert all(not leaf.any() for _, leaf in named(jax.grad(held, argnums=(0, 1))(made.params, inputs)))


class TestTransformations:
    """A step goes wherever a JAX function goes."""

    @pytest.fixture
    def made(self, seed: int) -> Bench:
        return bench("tutorial", seed)

    def test_vmap_of_one_sample_is_the_strategy(self, made: Bench) -> None:
        inputs, _ = made.data(SAMPLES)
        axes = pb.Carry(0, 0, 0, None, 0, 0)
        alone = jax.vmap(made.learner.step, (None, axes, 0), (axes, 0))
        got = alone(made.params, fresh(made, SAMPLES), *inputs)
        want = made.batched("vmap").step(made.params, made.start("vmap"), *inputs)
        assert_close(got, want)

    def test_vmap_over_params(self, made: Bench) -> None:
        """An ensemble: other weights for the same samples."""
        inputs, _ = made.data(SAMPLES)
        learner, start = made.batched("manual"), made.start("manual")
        ensemble = [jax.tree.map(lambda x, s=scale: s * x, made.params) for scale in (1.0, 2.0)]
        got = jax.vmap(lambda params: learner.step(params, start, *inputs))(joined(ensemble))
        want = [learner.step(params, start, *inputs) for params in ensemble]
        assert_close(got, joined(want))
        assert_differ(want[0][0].hidden["neu.V"], want[1][0].hidden["neu.V"])

    @pytest.mark.parametrize("strategy", ["loop", "manual"])
    def test_jit(self, made: Bench, strategy: str) -> None:
        inputs, _ = made.data(SAMPLES)
        step, start = made.batched(strategy).step, made.start(strategy)
        assert_close(jax.jit(step)(made.params, start, *inputs), step(made.params, start, *inputs))

    def test_scan(self, made: Bench) -> None:
        inputs, _ = made.data(STEPS, SAMPLES)
        learner, carry = made.batched("vmap"), made.start("vmap")
        got = jax.lax.scan(lambda carry, given: learner.step(made.params, carry, *given), carry, inputs)
        outputs = []
        for t in range(STEPS):
            carry, out = learner.step(made.params, carry, *sample(inputs, t))
            outputs.append(out)
        assert_close(got, (carry, joined(outputs)))

    def test_checkpoint(self, made: Bench) -> None:
        request = Request("vmap", "sum")
        total = losses_of(made, "vmap", jax.checkpoint(made.batched("vmap").step))
        got = jax.jit(jax.grad(total))(made.params, made.start("vmap"), made.data(*request.lead))
        assert_close(got, made.result(request).gradients)

    def test_a_learner_is_a_static_argument(self, made: Bench) -> None:
        inputs, _ = made.data()
        run = jax.jit(lambda learner, *rest: learner.step(*rest), static_argnums=0)
        got = run(made.learner, made.params, made.start(None), *inputs)
        assert_close(got, made.learner.step(made.params, made.start(None), *inputs))
        assert jax.tree.leaves(made.learner) == []

    def test_eval_shape(self, made: Bench) -> None:
        learner, (inputs, _) = made.batched("vmap"), made.data(SAMPLES)
        carry, out = jax.eval_shape(learner.step, made.params, made.start("vmap"), *inputs)
        assert jax.tree.map(jnp.shape, jax.tree.leaves(carry)) == [x.shape for x in jax.tree.leaves(made.start("vmap"))]
        assert out.shape == (SAMPLES, N_OUT)


class TestSaved:
    @pytest.mark.parametrize("name", ["trees", "delayed"])
    def test_params_and_a_carry_are_read_back(self, name: str, seed: int) -> None:
        """Into the structure that another capture gives, which has other numbers."""
        made, other, file = bench(name, seed), bench(name, seed + 1), io.BytesIO()
        saved = (made.params, made.result(Request("vmap")).aux.carry)
        eqx.tree_serialise_leaves(file, saved)
        file.seek(0)
        assert_identical(eqx.tree_deserialise_leaves(file, (other.params, other.batched("vmap").init())), saved)


class Network(eqx.Module):
    """An encoder, a BrainScale layer and a readout."""

    encoder: eqx.nn.Linear
    cell: Tree
    readout: eqx.nn.Linear
    learner: pb.Learner

    def losses(self, xs: jax.Array, ys: jax.Array) -> jax.Array:
        """Of a batch of sequences `[T, B, N_IN]`."""

        def one(carry: pb.Carry, given: tuple[jax.Array, jax.Array]) -> tuple[pb.Carry, jax.Array]:
            x, y = given
            carry, h = self.learner.step(self.cell, carry, jax.vmap(self.encoder)(x))
            return carry, ((jax.vmap(self.readout)(h) - y) ** 2).mean()

        return jax.lax.scan(one, self.learner.init(), (xs, ys))[1]


class TestInALargerModel:
    def test_training(self, seed: int) -> None:
        made = bench("MinimalRNNCell", seed)
        first, second = jax.random.split(jax.random.key(seed))
        network = Network(
            eqx.nn.Linear(2, N_IN, key=first), made.params, eqx.nn.Linear(N_REC, 1, key=second), made.batched("manual")
        )
        xs = jax.random.normal(jax.random.key(seed + 1), (STEPS, SAMPLES, 2))
        ys = jnp.cumsum(xs.sum(-1, keepdims=True), 0) / STEPS
        network, before, after, gradients = trained(network, xs, ys)
        assert_gradients_alive(eqx.filter(gradients, eqx.is_array))
        assert after < before / 2


def trained(network: Network, xs: jax.Array, ys: jax.Array) -> tuple[Network, float, float, Network]:
    """A network after some steps of Adam, its losses before and after, and its first gradient."""
    optimiser = optax.adam(1e-2)
    state = optimiser.init(eqx.filter(network, eqx.is_inexact_array))

    @eqx.filter_jit
    def update(network: Network, state: Any) -> Any:
        value, gradients = eqx.filter_value_and_grad(lambda network: network.losses(xs, ys).mean())(network)
        updates, state = optimiser.update(gradients, state)
        return eqx.apply_updates(network, updates), state, value, gradients

    history = []
    for _ in range(100):
        network, state, value, gradients = update(network, state)
        history.append((float(value), gradients))
    return network, history[0][0], history[-1][0], history[0][1]


class TestTypes:
    @pytest.mark.parametrize(("strategy", "dtype"), [("loop", np.int32), ("vmap", np.bool_), ("manual", np.bool_)])
    def test_a_module_of_whole_numbers(self, strategy: str, dtype: Any, seed: int) -> None:
        """Captured with spikes or counts as inputs, whose traces are kept in the weight's dtype."""
        values = np.random.default_rng(seed).integers(0, 2, (STEPS, SAMPLES, N_IN))
        made = {kind: leaky(values.astype(kind), seed) for kind in (dtype, np.float64)}
        results = {}
        for kind, (learner, params) in made.items():
            grad_fn = pb.sequence_grad(STRATEGIES[strategy](learner, SAMPLES), squared, reduction="none", window=WINDOW)
            results[kind] = grad_fn(params, None, values.astype(kind), np.ones((STEPS, SAMPLES)))
        (got, aux), (want, expected_aux) = results.values()
        assert_gradients_alive(want)
        assert_close(got, want)
        assert_close(aux.carry, expected_aux.carry)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_whole_numbers_in_the_carry(self, strategy: str, seed: int) -> None:
        made = bench("counting", seed)
        carry = made.result(Request(strategy)).aux.carry
        assert carry.shared["clock"].dtype == np.int32
        assert carry.shared["clock"].shape == ()
        assert carry.shared["clock"] == STEPS
        assert carry.update_count.dtype == np.int32

    @pytest.mark.parametrize("name", ["trees", "noisy"])
    def test_a_carry_is_printed_without_its_numbers(self, name: str, seed: int) -> None:
        carry, units = bench(name, seed).start("vmap"), " mV" if name == "trees" else ""
        assert f"': float64[3, {N_REC}]{units}}}, other={{}}, keys={{" in repr(carry)
        assert repr(carry).endswith("update_count=int32[3])")
        assert repr(jax.eval_shape(lambda: carry)) == repr(carry)
        assert repr(jax.tree.map(lambda _: 0, carry)).endswith("update_count=0)")

    @pytest.mark.parametrize("key", [jax.random.key(3), jax.random.PRNGKey(3)], ids=["typed", "raw"])
    @pytest.mark.parametrize("name", ["noisy", "random_start"])
    def test_both_forms_of_random_keys(self, name: str, key: jax.Array, seed: int) -> None:
        made = bench(name, seed)
        got = made.batched("vmap").init(key)
        assert_identical(got, made.batched("vmap").init(jax.random.key(3)))
        assert_not_identical(got, made.start("vmap"))


def leaky(values: np.ndarray, seed: int) -> tuple[pb.Learner, Tree]:
    """A leaky layer, captured with an input of the dtype of `values`."""
    model = Model("leaky", lambda: Leaky(Linear(N_IN, N_REC), (N_REC,), is_recurrent=False), (floats(N_IN),))
    return pb.capture(model.build(seed), values[0, 0], algorithm=pb.ES_D_RTRL(0.9))


class Counter:
    """How often Python ran something."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


class TestTraces:
    """Nothing runs in Python a second time."""

    @pytest.mark.parametrize(
        ("kind", "window"), [("one sample", 1), ("loop", None), ("vmap", WINDOW), ("vmap", None), ("manual", 1)]
    )
    def test_sequence_grad(self, kind: str, window: int | None, seed: int) -> None:
        module, loss_runs = Counter(), Counter()
        learner, params, data = watched(module, KINDS[kind], seed)

        def loss(out: jax.Array, target: jax.Array) -> jax.Array:
            loss_runs()
            return squared(out, target)

        grad_fn, built = pb.sequence_grad(learner, loss, window=window), module.count
        first = grad_fn(params, None, *data)
        runs = loss_runs.count
        second = grad_fn(jax.tree.map(lambda x: 2 * x, params), None, *data)
        rebuilt = pb.sequence_grad(learner, loss, window=window)(params, None, *data)
        assert (module.count, loss_runs.count) == (built, runs)
        assert runs > 0
        assert_not_identical(second[0], first[0])
        assert_identical(rebuilt, first)

    @pytest.mark.parametrize("kind", KINDS)
    def test_step_and_init(self, kind: str, seed: int) -> None:
        module, runs = Counter(), Counter()
        learner, params, (xs, _) = watched(module, KINDS[kind], seed)
        learner, built = learner.run_by(counted(learner.strategy, runs)), module.count
        carry, _ = learner.step(params, learner.init(), xs[0])
        traced = runs.count
        assert traced > 0
        for t in range(1, STEPS):
            carry, _ = learner.step(params, carry, xs[t])
        learner.init(jax.random.key(seed))
        assert (module.count, runs.count) == (built, traced)
        assert (carry.update_count == STEPS).all()

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_module_runs_at_capture_and_for_manual_alone(self, strategy: str, seed: int) -> None:
        module = Counter()
        learner, params, _ = watched(module, None, seed)
        captured = module.count
        batched = STRATEGIES[strategy](learner, SAMPLES)
        assert captured > 0
        assert (module.count > captured) == (strategy == "manual")
        built = module.count
        batched.step(params, batched.init(), np.zeros((SAMPLES, N_IN)))
        assert module.count == built


class TestEqualLearners:
    """A strategy is a value: what was compiled for one learner serves every equal one."""

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_are_equal_and_compile_nothing(self, strategy: str, seed: int) -> None:
        module, losses = Counter(), Counter()
        learner, params, data = watched(module, None, seed)
        first, second = (STRATEGIES[strategy](learner, SAMPLES) for _ in range(2))
        assert first == second
        assert hash(first) == hash(second)
        assert first != STRATEGIES[strategy](learner, SAMPLES + 1)
        built = module.count

        def loss(out: jax.Array, target: jax.Array) -> jax.Array:
            losses()
            return squared(out, target)

        xs, targets = (np.broadcast_to(array[:, None], (STEPS, SAMPLES, *array.shape[1:])) for array in data)
        want = pb.sequence_grad(first, loss)(params, None, xs, targets)
        traced = losses.count
        assert traced > 0
        assert_identical(pb.sequence_grad(second, loss)(params, None, xs, targets), want)
        assert (losses.count, module.count) == (traced, built)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_may_be_made_inside_jit(self, strategy: str, seed: int) -> None:
        """The source remembers the programs that it traced, and no tracer with them."""
        made = bench("MinimalRNNCell", seed)
        learner, params, size = made.learner, made.params, SAMPLES + 2  # a size that nobody has traced yet

        @jax.jit
        def inside(*inputs: jax.Array) -> jax.Array:
            batched = STRATEGIES[strategy](learner, size)
            return batched.step(params, batched.init(), *inputs)[1]

        inputs = made.data(size)[0]
        got, batched = inside(*inputs), STRATEGIES[strategy](learner, size)
        assert_close(got, batched.step(params, batched.init(), *inputs)[1])

    def test_strategies_differ(self, seed: int) -> None:
        made = bench("tutorial", seed)
        learners = [made.learner, *(make(made.learner, SAMPLES) for make in STRATEGIES.values())]
        assert all((one == other) == (one is other) for one in learners for other in learners)


def watched(counter: Counter, strategy: str | None, seed: int) -> tuple[pb.Learner, Tree, Tree]:
    """A learner whose module counts how often Python runs it, with data."""
    model = Model("watched", lambda: Watched(MinimalRNNCell(N_IN, N_REC), counter))
    learner, params = pb.capture(model.build(seed), *model.inputs(seed), algorithm=pb.ES_D_RTRL(0.9))
    lead = (STEPS,) if strategy is None else (STEPS, SAMPLES)
    batched = learner if strategy is None else STRATEGIES[strategy](learner, SAMPLES)
    return batched, params, (model.inputs(seed, *lead)[0], model.targets(seed, *lead))


def counted(strategy: Strategy, runs: Counter) -> Strategy:
    """The same strategy, in which each trace of a step of samples that run at once is counted."""
    if isinstance(strategy, Sharing):
        return dataclasses.replace(strategy, inner=counted(strategy.inner, runs))
    return Counted(strategy, runs)


@dataclasses.dataclass(frozen=True)
class Counted(Strategy):
    """Another strategy, with each trace of its step counted."""

    inner: Strategy
    runs: Counter

    name = "counted"

    @property
    def batch_size(self) -> int | None:
        return self.inner.batch_size

    def resized(self, size: int) -> "Counted":
        return Counted(self.inner.resized(size), self.runs)

    def program(self, source: Source) -> Program:
        return self.inner.program(source)

    def execute(self, source: Source, *args: Any) -> Step:
        self.runs()
        return self.inner.execute(source, *args)

    def each(self, source: Source) -> MapSamples:
        return self.inner.each(source)

    def kept_once(self, source: Source) -> frozenset[str]:
        return self.inner.kept_once(source)
