"""A module becomes pure functions, and neither hears of the other again."""

import copy
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Linear

import pure_batching as pb
from pure_batching._reader import executing
from pure_batching._reader.jacobians import jacobians
from pure_batching._sources.paths import path_of
from pure_batching._sources.tracing import RANDOM
from pure_batching.errors import CaptureError

from .alive import assert_alive, assert_moving
from .bench import SAMPLES, STEPS, STRATEGIES, WINDOW, Request, bench
from .models import MODELS, N_IN, N_REC, Model
from .modules import GroupState, Growing, Leaky
from .trees import assert_close, assert_identical, assert_not_identical, named, sample, units_of

Tree = Any

ROOT = Path(__file__).parents[1]


def states_of(net: brainstate.nn.Module) -> dict[Any, brainstate.State]:
    return dict(brainstate.graph.states(net).items())


def modules_of(net: brainstate.nn.Module) -> list[Any]:
    return list(brainstate.graph.nodes(net).values())


class TestPaths:
    @pytest.mark.parametrize("name", MODELS)
    def test_sorted_and_readable(self, name: str, seed: int) -> None:
        made = bench(name, seed)
        carry = made.learner.init()
        for paths in (made.params, carry.hidden, carry.other, carry.keys, carry.shared):
            assert list(paths) == sorted(paths)
            assert all(isinstance(path, str) and path and "object at" not in path for path in paths)

    @pytest.mark.parametrize(
        ("name", "params", "hidden"),
        [
            ("tutorial", ["out.weight_op", "syn.comm.weight_op"], ["neu.V", "out.r"]),
            ("LSTMCell", ["Wf.weight_op", "Wg.weight_op", "Wi.weight_op", "Wo.weight_op"], ["c", "h"]),
            ("element_wise", ["gain", "inp.weight_op", "leak"], ["h"]),
            ("readouts", ["cell.W_u.weight_op", "cell.phi.weight_op", "plain.weight", "untraced"], ["cell.h"]),
            ("used_twice", ["both.weight_op"], ["h"]),
        ],
    )
    def test_by_name(self, name: str, params: list[str], hidden: list[str], seed: int) -> None:
        made = bench(name, seed)
        assert list(made.params) == params
        assert list(made.start("vmap").hidden) == hidden

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("name", ["tutorial", "delayed"])
    def test_the_same_in_every_strategy(self, name: str, strategy: str, seed: int) -> None:
        made = bench(name, seed)
        one, many = made.start(None), made.start(strategy)
        assert jax.tree.structure(many) == jax.tree.structure(one)
        assert [leaf.shape for _, leaf in named(many._replace(shared={}))] == [
            (SAMPLES, *leaf.shape) for _, leaf in named(one._replace(shared={}))
        ]

    def test_a_weight_used_twice_is_one_parameter_with_two_traces(self, seed: int) -> None:
        carry = bench("used_twice", seed).result(Request()).aux.carry
        assert sorted(carry.trace.xs) == ["both.weight_op#0", "both.weight_op#1"]
        assert_not_identical(*carry.trace.xs.values())


class TestWhereStatesBelong:
    def test_shared_and_other_states(self, seed: int) -> None:
        made = bench("counting", seed)
        result, (x,) = made.result(Request()), made.data(STEPS, SAMPLES)[0]
        carry = result.aux.carry
        assert (list(carry.shared), list(carry.other), list(carry.keys)) == (["clock"], ["peak"], [])
        assert carry.shared["clock"] == STEPS
        assert_close(carry.other["peak"], jnp.asarray(x.max(0)))

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_delay(self, strategy: str, seed: int) -> None:
        """A ring of the last outputs, each sample's own, and one pointer for all."""
        made = bench("delayed", seed)
        result = made.result(Request(strategy))
        carry = result.aux.carry
        assert (list(carry.shared), list(carry.other)) == (["past.write_ptr"], ["past.history"])
        assert carry.shared["past.write_ptr"].shape == ()
        length = carry.other["past.history"].shape[1]
        assert carry.other["past.history"].shape == (SAMPLES, length, N_REC)
        last = np.sort(np.asarray(result.aux.outputs[-length:]).transpose(1, 0, 2), axis=1)
        assert_close(np.sort(np.asarray(carry.other["past.history"]), axis=1), last)

    @pytest.mark.parametrize("error", [TypeError, ValueError])
    def test_a_delay_beside_a_part_without_batch_sizes(self, error: type[Exception], seed: int) -> None:
        """The module says where the delay keeps the samples, whatever another part's `init_state` raises."""
        model = MODELS["delayed"]
        with brainstate.environ.context(**model.settings):
            net = Beside(model.build(seed), error)
        example = model.inputs(seed)
        learner, params = pb.capture(net, *example, algorithm=pb.ES_D_RTRL(0.9), environ=model.settings)
        data = model.inputs(seed, STEPS, SAMPLES)
        runs = [make(learner, SAMPLES) for make in (pb.vmap, pb.manual)]
        carries = [run.init(jax.random.key(0)) for run in runs]
        for t in range(STEPS):
            given = jax.tree.map(lambda x, t=t: x[t], data)
            carries = [run.step(params, carry, *given)[0] for run, carry in zip(runs, carries, strict=True)]
        assert carries[0].other["peak"].shape == (SAMPLES, N_REC)
        assert_moving(carries[0].other["peak"])
        assert_close(carries[1], carries[0])

    def test_random_keys(self, seed: int) -> None:
        start = bench("noisy", seed).start("vmap")
        assert list(start.keys) == [RANDOM]
        assert start.keys[RANDOM].shape[0] == SAMPLES
        assert not start.other
        assert not start.shared

    def test_statistics(self, seed: int) -> None:
        made = bench("normalized", seed)
        assert list(made.learner.init().other) == ["norm.running_mean", "norm.running_var"]

    def test_no_state_is_lost_and_none_is_twice(self, seed: int) -> None:
        for name in MODELS:
            made = bench(name, seed)
            net = made.model.build(seed)
            with brainstate.environ.context(**made.model.settings):
                brainstate.nn.init_all_states(net)
            carry = made.learner.init()
            found = [*made.params, *carry.hidden, *carry.other, *carry.shared, *carry.keys]
            assert sorted(set(found) - {RANDOM}) == sorted(pb.read_states(net))
            assert len(pb.read_states(net)) == len(states_of(net))
            assert len(found) == len(set(found))


class Beside(brainstate.nn.Module):
    """A module, and a state whose initialisation knows no batch size."""

    def __init__(self, inner: brainstate.nn.Module, error: type[Exception]) -> None:
        super().__init__()
        self.inner, self.error = inner, error

    def init_state(self, batch_size: int | None = None) -> None:
        if batch_size is not None:
            raise self.error("one sample only")
        self.peak = brainstate.ShortTermState(jnp.zeros(N_REC))

    def update(self, x: jax.Array) -> jax.Array:
        h = self.inner(x)
        self.peak.value = jnp.maximum(self.peak.value, h)
        return h + self.peak.value


class TestUnits:
    def test_params_and_carry(self, seed: int) -> None:
        made = bench("tutorial", seed)
        assert units_of(made.params["syn.comm.weight_op"]) == [u.mV, u.mV]
        assert units_of(made.params["out.weight_op"]) == [u.UNITLESS]
        assert units_of(made.start("vmap").hidden) == [u.mV, u.UNITLESS]

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("reduction", ["sum", "none"])
    def test_gradients_have_the_units_of_their_weights(self, strategy: str, reduction: str, seed: int) -> None:
        made = bench("tutorial", seed)
        result = made.result(Request(strategy, reduction))
        assert units_of(result.gradients) == units_of(made.params)
        assert units_of(result.aux.carry.hidden) == units_of(made.start(strategy).hidden)

    def test_outputs(self, seed: int) -> None:
        outputs = bench("trees", seed).result(Request()).aux.outputs
        assert units_of(outputs["potential"]) == [u.mV]
        assert_close(outputs["potential"].to_decimal(u.mV), outputs["parts"][0])


class TestForward:
    """The program computes what the module computes."""

    @pytest.mark.parametrize(
        "name",
        [
            *("tutorial", "LSTMCell", "LRUCell", "alif", "conv_spikes", "trees", "group_state", "delayed", "counting"),
            *("normalized", "normalized_fixed"),
        ],
    )
    def test_outputs_and_states_of_each_sample(self, name: str, seed: int) -> None:
        made = bench(name, seed)
        result = made.result(Request())
        assert_alive(made, Request(), result)
        inputs = made.data(STEPS, SAMPLES)[0]
        for i in range(SAMPLES):
            outputs, hidden = ran(made.model, seed, sample(inputs, i, axis=1))
            assert_close(sample(result.aux.outputs, i, axis=1), outputs)
            assert_close(sample(result.aux.carry.hidden, i), hidden)

    @pytest.mark.parametrize("name", ["noisy", "random_start"])
    def test_random_numbers_of_one_key(self, name: str, seed: int) -> None:
        """A learner draws from its key what the module draws when BrainState's generator starts from it."""
        made, key = bench(name, seed), jax.random.key(seed + 5)
        inputs = made.data(STEPS)[0]
        with _Generator(key):
            outputs, hidden = ran(made.model, seed, inputs)
        carry = made.learner.init(key)
        carry, got = jax.lax.scan(lambda carry, given: made.learner.step(made.params, carry, *given), carry, inputs)
        assert_moving(hidden)
        assert_close(got, outputs)
        assert_close(carry.hidden, hidden)


def ran(model: Model, seed: int, inputs: Tree) -> tuple[Tree, Tree]:
    """A sequence of one sample through the module itself: its outputs, and its hidden states at the end."""
    net = model.build(seed)
    with brainstate.environ.context(**model.settings):
        brainstate.nn.init_all_states(net)
        outputs = brainstate.transform.for_loop(net.update, *jax.tree.map(jnp.asarray, inputs))
    states = {path_of(net, path): state for path, state in states_of(net).items()}
    hidden = {path: states[path].value for path in sorted(states) if isinstance(states[path], brainstate.HiddenState)}
    return outputs, hidden


class _Generator:
    """BrainState's generator with a given key, and afterwards as it was."""

    def __init__(self, key: jax.Array) -> None:
        old = brainstate.random.DEFAULT.value
        is_typed = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        self.old, self.key = old, key if is_typed else jax.random.key_data(key)

    def __enter__(self) -> None:
        brainstate.random.DEFAULT.value = self.key

    def __exit__(self, *_: object) -> None:
        brainstate.random.DEFAULT.value = self.old


class TestModuleUntouched:
    @pytest.mark.parametrize("is_initialised", [False, True], ids=["new", "initialised"])
    @pytest.mark.parametrize("name", ["tutorial", "LRUCell", "readouts", "delayed", "noisy", "random_start"])
    def test_by_capture_and_strategies(self, name: str, seed: int, *, is_initialised: bool) -> None:
        model = MODELS[name]
        net = model.build(seed)
        if is_initialised:
            with brainstate.environ.context(**model.settings):
                brainstate.nn.init_all_states(net)
                net.update(*jax.tree.map(jnp.asarray, model.inputs(seed)))
        before = everything(net)
        learner, params = pb.capture(net, *model.inputs(seed), algorithm=pb.ES_D_RTRL(0.9), environ=model.settings)
        for strategy in model.strategies:
            batched = STRATEGIES[strategy](learner, SAMPLES)
            batched.step(params, batched.init(), *model.inputs(seed, SAMPLES))
        after = everything(net)
        assert {key: after[key] for key in before} == before
        assert set(after) == set(before)

    def test_a_state_that_belongs_to_two_modules(self, seed: int) -> None:
        """Shared modules stay shared in the capture's copy: one set of weights, used twice."""
        model = Model("shared", lambda: Shared(N_REC))
        learner, params = pb.capture(
            model.build(seed), jnp.ones(N_REC), algorithm=pb.ES_D_RTRL(0.9), environ=model.settings
        )
        assert len(params) == 1
        assert len(learner.program.relations) == 2


class TestBatchAxes:
    def test_one_state_without_a_batch_size_hides_no_other(self, seed: int) -> None:
        """The delay keeps its batch axis behind the time axis, whatever its neighbour's `init_state` does."""
        model = MODELS["delayed"]
        net = model.build(seed)
        net.neighbour = Stubborn()
        learner, params = pb.capture(net, *model.inputs(seed), algorithm=pb.ES_D_RTRL(0.9), environ=model.settings)
        results = [
            pb.sequence_grad(strategy(learner, SAMPLES), model.loss)(params, None, inputs, targets)
            for strategy in (pb.vmap, pb.manual)
            for inputs, targets in [(model.inputs(seed, STEPS, SAMPLES), model.targets(seed, STEPS, SAMPLES))]
        ]
        assert_close(results[1][0], results[0][0])


class Stubborn(brainstate.nn.Module):
    """A module whose states know no batch size."""

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        if batch_size is not None:
            raise RuntimeError("one sample only")
        self.count = brainstate.ShortTermState(jnp.zeros(()))


class Shared(brainstate.nn.Module):
    """Two leaky layers around one linear layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        linear = Linear(size, size)
        self.first = Leaky(linear, (size,), is_recurrent=False)
        self.second = Leaky(linear, (size,), is_recurrent=False)

    def update(self, x: jax.Array) -> jax.Array:
        return self.second(self.first(x))


def everything(net: brainstate.nn.Module) -> dict[Any, Any]:
    """All that a capture could change: states, their values and flags, attributes, and BrainState's globals."""
    found: dict[Any, Any] = {"environ": dict(brainstate.environ.all())}
    found["generator"] = np.asarray(jax.random.key_data(brainstate.random.DEFAULT.value)).tobytes()
    for path, state in states_of(net).items():
        found[path, "identity"] = id(state)
        found[path, "values"] = [id(leaf) for leaf in jax.tree.leaves(state.value)]
        found[path, "bytes"] = [leaf.tobytes() for _, leaf in named(state.value)]
        found[path, "flags"] = getattr(state, "is_etrace", None)
    for module in modules_of(net):
        found[id(module)] = [(name, id(value)) for name, value in vars(module).items()]
    return found


class TestModuleForgotten:
    """Whatever becomes of the module, its learner and every strategy give what they gave."""

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("name", ["tutorial", "delayed"])
    def test_poisoned_stripped_and_deleted(self, name: str, strategy: str, seed: int) -> None:
        model = MODELS[name]
        net = model.build(seed)
        with brainstate.environ.context(**model.settings):
            brainstate.nn.init_all_states(net)
        learner, params = pb.capture(net, *model.inputs(seed), algorithm=pb.ES_D_RTRL(0.9), environ=model.settings)
        poison(net)
        strip(net)
        del net
        gc.collect()
        made, request = bench(name, seed), Request(strategy)
        want = made.result(request)
        assert_alive(made, request, want)
        grad_fn = pb.sequence_grad(
            STRATEGIES[strategy](learner, SAMPLES), model.loss, reduction="none", window=WINDOW, outputs=True
        )
        gradients, aux = grad_fn(params, None, *made.data(STEPS, SAMPLES))
        assert_identical(gradients, want.gradients)
        assert_identical(aux, want.aux)

    @pytest.mark.parametrize("name", ["tutorial", "readouts", "delayed"])
    def test_nothing_of_it_is_kept_alive(self, name: str, seed: int) -> None:
        model = MODELS[name]
        net = model.build(seed)
        learner, params = pb.capture(net, *model.inputs(seed), algorithm=pb.ES_D_RTRL(0.9), environ=model.settings)
        kept = [weakref.ref(thing) for thing in (*states_of(net).values(), *modules_of(net))]
        assert len(kept) > 3
        del net
        gc.collect()
        batched = pb.manual(learner, SAMPLES)
        batched.step(params, batched.init(), *model.inputs(seed, SAMPLES))
        assert [type(ref()).__name__ for ref in kept if ref() is not None] == []

    def test_later_params_of_the_module_do_not_reach_the_learner(self, seed: int) -> None:
        model = MODELS["tutorial"]
        net = model.build(seed)
        _, params = pb.capture(net, *model.inputs(seed), algorithm=pb.ES_D_RTRL(0.9), environ=model.settings)
        before = copy.deepcopy(params)
        poison(net)
        assert_identical(params, before)


def poison(net: brainstate.nn.Module) -> None:
    """Every state of another shape, and not a number."""
    for state in states_of(net).values():
        state._value = jax.tree.map(lambda _: jnp.full((11, 13), jnp.nan), state.value)


def strip(net: brainstate.nn.Module) -> None:
    """Every module without its attributes."""
    for module in modules_of(net):
        vars(module).clear()


class TestEnvironment:
    """The settings in force at capture stay in force for the learner."""

    def gradient(self, learner: pb.Learner, params: Tree, seed: int) -> Tree:
        made = bench("tutorial", seed)
        grad_fn = pb.sequence_grad(pb.manual(learner, SAMPLES), made.model.loss, reduction="none", window=WINDOW)
        return grad_fn(params, None, *made.data(STEPS, SAMPLES))[0]

    def usual(self, seed: int) -> Tree:
        return bench("tutorial", seed).result(Request("manual")).gradients

    def captured(self, net: brainstate.nn.Module, seed: int, environ: dict[str, Any] | None) -> Any:
        return pb.capture(net, *MODELS["tutorial"].inputs(seed), algorithm=pb.ES_D_RTRL(0.9), environ=environ)

    def test_read_at_capture(self, seed: int) -> None:
        net = MODELS["tutorial"].build(seed)
        with brainstate.environ.context(dt=1.0 * u.ms):
            learner, params = self.captured(net, seed, None)
        assert_identical(self.gradient(learner, params, seed), self.usual(seed))

    def test_argument_wins_and_later_changes_do_not_matter(self, seed: int) -> None:
        net = MODELS["tutorial"].build(seed)
        with brainstate.environ.context(dt=5.0 * u.ms):
            learner, params = self.captured(net, seed, {"dt": 1.0 * u.ms})
        with brainstate.environ.context(dt=7.0 * u.ms):
            got = self.gradient(learner, params, seed)
        assert_identical(got, self.usual(seed))

    def test_it_matters(self, seed: int) -> None:
        learner, params = self.captured(MODELS["tutorial"].build(seed), seed, {"dt": 0.5 * u.ms})
        assert_not_identical(self.gradient(learner, params, seed), self.usual(seed))

    def test_the_callers_dictionary_is_copied(self, seed: int) -> None:
        settings = {"dt": 1.0 * u.ms}
        learner, params = self.captured(MODELS["tutorial"].build(seed), seed, settings)
        settings["dt"] = 9.0 * u.ms
        assert_identical(self.gradient(learner, params, seed), self.usual(seed))

    def test_nothing_is_left_behind(self, seed: int) -> None:
        before = dict(brainstate.environ.all())
        self.captured(MODELS["tutorial"].build(seed), seed, {"dt": 1.0 * u.ms, "fit": True})
        assert dict(brainstate.environ.all()) == before

    @pytest.mark.parametrize(("precision", "is_x64"), [(32, False), (32, True), (64, True)])
    def test_jax_stays_in_its_precision(self, precision: int, seed: int, *, is_x64: bool) -> None:
        """BrainState ties JAX's precision to its own, which is 32 where a user has set JAX's alone."""
        with brainstate.environ.context(precision=precision):
            net, inputs = MODELS["MinimalRNNCell"].build(seed), np.ones(N_IN, np.float32)
            jax.config.update("jax_enable_x64", is_x64)
            pb.capture(net, inputs, algorithm=pb.ES_D_RTRL(0.9))
            assert jax.config.jax_enable_x64 == is_x64

    @pytest.mark.parametrize("fit", [False, True])
    def test_fit(self, seed: int, *, fit: bool) -> None:
        model = MODELS["noisy"]
        learner, _ = pb.capture(
            model.build(seed), *model.inputs(seed), algorithm=pb.ES_D_RTRL(0.9), environ={**model.settings, "fit": fit}
        )
        assert list(learner.init().keys) == ([RANDOM] if fit else [])


@pytest.mark.filterwarnings("ignore:(jax.core|core.Jaxpr).*:DeprecationWarning")
def test_a_weight_that_brainscale_relates_to_no_hidden_state() -> None:
    """Its output has another shape than the state that it feeds, so that the weight has no trace there, and here."""
    learner, _ = pb.capture(GroupState(N_IN, N_REC), np.zeros(N_IN), algorithm=pb.ES_D_RTRL(0.9))
    assert learner.program.relations == ()
    assert learner.program.direct == ("inp.weight_op",)
    assert "does not fit" in pb.explain(learner).rows[0].reason


class AroundLeaky(brainstate.nn.Module):
    """One hidden state inside, whose numbers a test changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Leaky(Linear(N_IN, N_REC), (N_REC,), is_recurrent=False)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.inner.init_state(batch_size)


class WithConstant(AroundLeaky):
    """Computes something from numbers alone in each of its methods, and notes in `COMPUTED` when it really does."""

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        super().init_state(batch_size)
        self.inner.h.value = self.inner.h.value + one_noted()

    def update(self, x: jax.Array) -> jax.Array:
        return self.inner(x) + one_noted()


COMPUTED: list[None] = []


def one_noted() -> jax.Array:
    one = jnp.ones(())
    return jax.pure_callback(noted, jax.ShapeDtypeStruct((), one.dtype), one)


def noted(number: np.ndarray) -> np.ndarray:
    COMPUTED.append(None)
    return np.asarray(number)


class WithArrayOutsideStates(AroundLeaky):
    """Its `init_state` leaves an array in an attribute that is no state, in a container that JAX does not know."""

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        super().init_state(batch_size)
        self.kept = SimpleNamespace(scale=jnp.full(N_REC, 3.0))

    def update(self, x: jax.Array) -> jax.Array:
        return self.inner(x) * self.kept.scale


class TestConstants:
    """What a step or `init_state` computes from numbers alone is traced: at capture, it would have to be compiled."""

    @pytest.mark.parametrize("strategy", ["one", "vmap", "manual"])
    @pytest.mark.parametrize("is_inside_jit", [False, True])
    def test_are_not_computed_at_capture(self, strategy: str, *, is_inside_jit: bool) -> None:
        COMPUTED.clear()
        net, x = WithConstant(), jnp.ones(N_IN)

        def capture() -> jax.Array:
            learner, _ = pb.capture(net, x, algorithm=pb.ES_D_RTRL(0.9))
            if strategy != "one":
                getattr(pb, strategy)(learner, SAMPLES)
            return jnp.zeros(())

        (jax.jit(capture) if is_inside_jit else capture)().block_until_ready()
        assert not COMPUTED

    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    def test_an_array_outside_of_the_states_is_a_constant(self, strategy: str) -> None:
        learner, params = pb.capture(WithArrayOutsideStates(), np.ones(N_IN), algorithm=pb.ES_D_RTRL(0.9))
        batched = getattr(pb, strategy)(learner, SAMPLES)
        after, output = batched.step(params, batched.init(), np.ones((SAMPLES, N_IN)))
        assert_moving(output)
        assert_identical(output, 3.0 * after.hidden["inner.h"])


class TestDerivatives:
    def test_of_a_step_are_traced_once(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
        """By the check of `pb.manual` for coupled samples, and then by no gradient."""
        calls: list[None] = []

        def counted(*args: Any) -> Any:
            calls.append(None)
            return jacobians(*args)

        monkeypatch.setattr(executing, "jacobians", counted)
        made = MODELS["tutorial"]
        net, given = made.build(seed), made.inputs(seed)
        learner, params = pb.capture(net, *given, algorithm=pb.ES_D_RTRL(0.9), environ=made.settings)
        batched = pb.manual(learner, SAMPLES)
        steps = jax.tree.map(lambda x: np.broadcast_to(x, (STEPS, SAMPLES, *x.shape)), given)
        grad_fn = pb.sequence_grad(batched, made.loss)
        grad_fn(params, None, steps, np.zeros((STEPS, SAMPLES), int))
        assert len(calls) == 1


class TestDeterminism:
    def test_the_same_program_in_every_process(self) -> None:
        """BrainScale collects groups and states in sets, whose order follows the hash seed of the process."""
        processes = [start_lowering(str(hash_seed)) for hash_seed in (1, 2)]
        first, second = (process.communicate(timeout=600) for process in processes)
        assert [process.returncode for process in processes] == [0, 0], first[1] + second[1]
        assert first[0].count("func.func public @main") == 4
        pairs = zip(first[0].splitlines(), second[0].splitlines(), strict=False)
        assert [pair for pair in pairs if pair[0] != pair[1]][:1] == []
        assert first[0] == second[0]


def start_lowering(hash_seed: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "tests.lowering"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


class TestRefusals:
    """A module that cannot be captured: the text names it and quotes the reason, and the module stays as it was."""

    def check(self, net: brainstate.nn.Module, text: str, *inputs: Any, **settings: Any) -> CaptureError:
        before = everything(net)
        with pytest.raises(CaptureError, match=text) as caught:
            pb.capture(net, *inputs, algorithm=pb.ES_D_RTRL(0.9), environ=settings)
        assert everything(net) == before
        return caught.value

    def test_missing_dt(self, seed: int) -> None:
        model = MODELS["tutorial"]
        text = r"LIFNet: got .*dt.*, expected a module .* settings such as dt and fit go into capture\(\.\.\., environ="
        self.check(model.build(seed), text, *model.inputs(seed))

    def test_what_does_not_run(self, seed: int) -> None:
        model = MODELS["tutorial"]
        error = self.check(model.build(seed), r"LIFNet: got TypeError: .*", jnp.ones(N_IN + 1), **model.settings)
        assert isinstance(error.__cause__, TypeError)

    def test_a_state_that_changes_its_shape(self) -> None:
        text = r"Growing: .*h: got shape \(2, 7\) after one step, expected \(7,\), the shape before\. Initialise"
        self.check(Growing(N_IN, N_REC), text, jnp.ones(N_IN))
