"""Native states as trees, and what cannot be carried over."""

import functools
from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import pytest

import pure_batching as pb
from pure_batching.errors import (
    CarryError,
    DtypeError,
    NativeError,
    ShapeError,
    StructureError,
    UnitError,
)

from .bench import SAMPLES, bench
from .models import MODELS, N_REC
from .trees import assert_identical, assert_not_identical, units_of
from .versions import needs_its_compiler

MADE = ("tutorial", "lif", "trees", "delayed", "counting", "LRUCell", "group_state")


def started(name: str, seed: int, samples: int | None = None) -> Any:
    """A module of the registry with fresh states."""
    model = MODELS[name]
    net = model.build(seed)
    with brainstate.environ.context(**model.settings):
        brainstate.nn.init_all_states(net, **({} if samples is None else {"batch_size": samples}))
    return net


def es_d_rtrl(net: Any) -> Any:
    """BrainScale's counterpart of `pb.ES_D_RTRL(0.9)`."""
    return brainscale.ES_D_RTRL(net, decay_or_rank=0.9)


def compiled(name: str, seed: int, make: Callable[..., Any] = es_d_rtrl) -> Any:
    """A compiled algorithm on one sample."""
    model = MODELS[name]
    algorithm = make(started(name, seed))
    with brainstate.environ.context(**model.settings):
        algorithm.compile_graph(*model.inputs(seed))
    return algorithm


@functools.cache
def shared_algorithm(name: str, seed: int) -> Any:
    """One for the tests that change nothing."""
    return compiled(name, seed)


def doubled(tree: Any) -> Any:
    """Other values of the same kinds."""
    return jax.tree.map(lambda x: x + x + jnp.ones_like(x), tree)


class TestStates:
    @pytest.mark.parametrize("name", MADE)
    def test_every_state_by_path(self, name: str, seed: int) -> None:
        net, made = started(name, seed), bench(name, seed)
        read = pb.read_states(net)
        assert list(read) == sorted(read)
        assert set(made.params) | set(made.learner.init().hidden) <= set(read)
        assert_identical({path: read[path] for path in made.params}, made.params)
        assert_identical({path: read[path] for path in made.learner.init().hidden}, made.learner.init().hidden)

    @pytest.mark.parametrize("samples", [None, SAMPLES])
    @pytest.mark.parametrize("name", MADE)
    def test_round_trip(self, name: str, samples: int | None, seed: int) -> None:
        net = started(name, seed, samples)
        before = pb.read_states(net)
        other = doubled(before)
        pb.write_states(net, other)
        assert_identical(pb.read_states(net), other)
        assert_not_identical(other, before)
        pb.write_states(net, before)
        assert_identical(pb.read_states(net), before)
        assert list(map(str, units_of(pb.read_states(net)))) == list(map(str, units_of(before)))

    def test_some_of_them(self, seed: int) -> None:
        net = started("tutorial", seed)
        before = pb.read_states(net)
        voltage = {"neu.V": before["neu.V"] + 1.0 * u.mV}
        pb.write_states(net, voltage)
        assert_identical(pb.read_states(net), before | voltage)

    def test_units_are_converted(self, seed: int) -> None:
        net = started("tutorial", seed)
        pb.write_states(net, {"neu.V": u.Quantity(jnp.full(N_REC, 0.5), unit=u.volt)})
        assert_identical(pb.read_states(net)["neu.V"], u.Quantity(jnp.full(N_REC, 500.0), unit=u.mV))


class TestRefusedStates:
    """A value that does not fit is named, and nothing is written."""

    def test_unknown_path(self, seed: int) -> None:
        text = r"tree: got the path 'neu\.W', expected one of .*\. Use the paths that read_states gives\."
        self.check(seed, {"neu.W": jnp.zeros(N_REC)}, StructureError, text)

    def test_shape(self, seed: int) -> None:
        self.check(seed, {"neu.V": jnp.zeros(N_REC + 1) * u.mV}, ShapeError, r"neu\.V: got shape \(8,\), expected .*7")

    def test_unit(self, seed: int) -> None:
        self.check(seed, {"neu.V": jnp.zeros(N_REC) * u.mA}, UnitError, r"neu\.V: got .*mA.*, expected .*mV")

    def test_dtype(self, seed: int) -> None:
        wrong = jnp.zeros(N_REC, complex) * u.mV
        self.check(seed, {"neu.V": wrong}, DtypeError, r"neu\.V: got .*complex128.*, expected .*float64")

    @staticmethod
    def check(seed: int, wrong: dict[str, Any], error: type[Exception], text: str) -> None:
        net = started("tutorial", seed)
        before = pb.read_states(net)
        fitting = {path: doubled(value) for path, value in before.items() if path not in wrong}
        with pytest.raises(error, match=text):
            pb.write_states(net, fitting | wrong)
        assert_identical(pb.read_states(net), before)


@needs_its_compiler
class TestCompiledAlgorithm:
    @pytest.mark.parametrize("name", MADE)
    def test_fresh_on_both_sides(self, name: str, seed: int) -> None:
        learner = bench(name, seed).learner
        assert_identical(pb.from_native(learner, shared_algorithm(name, seed)), learner.init())

    @pytest.mark.parametrize("name", MADE)
    def test_written_and_read(self, name: str, seed: int) -> None:
        learner, algorithm = bench(name, seed).learner, compiled(name, seed)
        carry = doubled(learner.init())
        pb.to_native(learner, carry, algorithm)
        assert_identical(pb.from_native(learner, algorithm), carry)
        assert algorithm.running_index.value == carry.update_count


@needs_its_compiler
class TestRefusedAlgorithms:
    def test_not_compiled(self, seed: int) -> None:
        algorithm = brainscale.ES_D_RTRL(started("LSTMCell", seed), decay_or_rank=0.9)
        text = r"algorithm: got \w+, expected a compiled brainscale algorithm\. Call algorithm\.compile_graph"
        self.check("LSTMCell", algorithm, text, seed)

    def test_no_algorithm(self, seed: int) -> None:
        text = r"algorithm: got int, expected a compiled brainscale algorithm"
        self.check("LSTMCell", 3, text, seed)

    def test_another_module(self, seed: int) -> None:
        text = (
            r"algorithm: got a module with the traced weights .*'Wi\.weight_op'.*, expected the traced weights .*'W_u"
        )
        self.check("MinimalRNNCell", shared_algorithm("LSTMCell", seed), text, seed)

    @staticmethod
    def check(name: str, algorithm: Any, text: str, seed: int) -> None:
        learner = bench(name, seed).learner
        with pytest.raises(NativeError, match=text):
            pb.from_native(learner, algorithm)
        with pytest.raises(NativeError, match=text):
            pb.to_native(learner, learner.init(), algorithm)

    @pytest.mark.parametrize(("rule", "make"), [(pb.D_RTRL(), es_d_rtrl), (pb.ES_D_RTRL(0.9), brainscale.D_RTRL)])
    def test_another_rule(self, rule: pb.Algorithm, make: Any, seed: int) -> None:
        learner, algorithm = bench("MinimalRNNCell", seed, rule).learner, compiled("MinimalRNNCell", seed, make)
        before = {path: state.value for path, state in algorithm.path_to_states.items()}
        text = rf"algorithm: got \w+, expected the native counterpart of {type(rule).__name__}"
        with pytest.raises(NativeError, match=text):
            pb.from_native(learner, algorithm)
        with pytest.raises(NativeError, match=text):
            pb.to_native(learner, doubled(learner.init()), algorithm)
        assert_identical({path: state.value for path, state in algorithm.path_to_states.items()}, before)

    def test_samples_of_different_length(self, seed: int) -> None:
        learner = bench("tutorial", seed).batched("vmap")
        carry = learner.init()._replace(update_count=jnp.array([4, 4, 2], jnp.int32))
        net, algorithm = batched_algorithm("tutorial", seed)
        before = pb.read_states(net)
        text = r"carry\.update_count: got samples after 2, 4 steps, expected one number of steps\. .*equal length"
        with pytest.raises(NativeError, match=text):
            pb.to_native(learner, carry, algorithm)
        assert_identical(pb.read_states(net), before)

    def test_random_keys_of_a_batch(self, seed: int) -> None:
        learner = bench("noisy", seed).batched("vmap")
        algorithm = compiled("noisy", seed)
        text = r"algorithm: got a batch with the random key .*, expected a module without random numbers"
        with pytest.raises(NativeError, match=text):
            pb.from_native(learner, algorithm)
        with pytest.raises(NativeError, match=text):
            pb.to_native(learner, learner.init(), algorithm)

    def test_another_learner_s_carry(self, seed: int) -> None:
        learner, algorithm = bench("LSTMCell", seed).learner, shared_algorithm("LSTMCell", seed)
        with pytest.raises(CarryError, match=r"carry\.trace\..*got .*, expected no such leaf"):
            pb.to_native(learner, bench("MinimalRNNCell", seed).learner.init(), algorithm)

    def test_another_decay(self, seed: int) -> None:
        made, algorithm = bench("LSTMCell", seed, pb.ES_D_RTRL(0.7)), shared_algorithm("LSTMCell", seed)
        with pytest.raises(NativeError, match=r"^algorithm: got traces that decay by 0\.9, expected 0\.7"):
            pb.from_native(made.learner, algorithm)

    def test_samples_that_were_moved_apart(self, seed: int) -> None:
        learner, algorithm = bench("delayed", seed).learner, shared_algorithm("delayed", seed)
        with pytest.raises(CarryError, match=r"^carry: got samples with a past\.write_ptr each, expected one for all"):
            pb.to_native(learner, pb.apart(learner.init()), algorithm)

    @pytest.mark.parametrize("size", [None, 1, SAMPLES + 1])
    def test_another_batch_size(self, size: int | None, seed: int) -> None:
        """One sample is no batch of one; what BrainScale holds stays as it was."""
        learner = bench("tutorial", seed).learner if size is None else pb.manual(bench("tutorial", seed).learner, size)
        net, algorithm = batched_algorithm("tutorial", seed)
        before = pb.read_states(net)
        text = rf"^algorithm: got 3 samples in a batch, .* expected {size or 'one'} samples? .* Compile the algorithm"
        with pytest.raises(NativeError, match=text):
            pb.from_native(learner, algorithm)
        with pytest.raises(NativeError, match=text):
            pb.to_native(learner, learner.init(), algorithm)
        assert_identical(pb.read_states(net), before)

    def test_a_batch_for_one_sample(self, seed: int) -> None:
        learner, algorithm = bench("tutorial", seed).batched("vmap"), shared_algorithm("tutorial", seed)
        with pytest.raises(NativeError, match=r"^algorithm: got one sample without .*, expected 3 samples in a batch"):
            pb.to_native(learner, learner.init(), algorithm)


def batched_algorithm(name: str, seed: int) -> tuple[Any, Any]:
    """A module, and an algorithm compiled on it with `SAMPLES` samples in its manual mode."""
    model, net = MODELS[name], started(name, seed, SAMPLES)
    algorithm = brainscale.ES_D_RTRL(net, decay_or_rank=0.9, mode=brainstate.mixin.Batching())
    with brainstate.environ.context(**model.settings):
        algorithm.compile_graph(*model.inputs(seed, SAMPLES))
    return net, algorithm
