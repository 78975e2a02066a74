"""What JAX, and Python, offer around a pure function: it holds for a step and for the gradient of a sequence."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.sharding import AxisType, PartitionSpec as P

import pure_batching as pb
from pure_batching.errors import DeviceError, PickleError

from . import around
from .around import FEATURES, SAMPLES, STEPS, flattened, in_another_process, specs
from .bench import PLAIN, RULES, SAMPLES as BENCH_SAMPLES, STEPS as BENCH_STEPS, STRATEGIES, Request, bench
from .trees import assert_close, assert_differ, assert_identical, largest, sample

Tree = Any
RULE = "D_RTRL published"
KEY = jax.random.key(7)


def size_of(tree: Tree) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


class TestManyTrainings:
    def test_seeds_and_hyperparameters_in_one_vmap(self) -> None:
        """Whole trainings, each with weights, noise, a decay and a rate of its own, equal those run apart."""
        traced: list[int] = []

        def train(key: jax.Array, decay: Any, rate: Any) -> Tree:
            traced.append(1)
            learner, params = around.captured(pb.ES_D_RTRL(decay), around.weights(key))
            optimizer = optax.sgd(rate)
            fit = pb.online(pb.vmap(learner, SAMPLES), around.loss, optimizer, every=2)

            def epoch(state: Tree, key: jax.Array) -> Tree:
                params, memory, aux = fit(state[0], state[1], None, *around.data(), key=key)
                return (params, memory), aux.losses.mean()

            return jax.lax.scan(epoch, (params, optimizer.init(params)), jax.random.split(key, 10))

        keys, decays, rates = jax.random.split(KEY, 3), jnp.array([0.5, 0.5, 0.9]), jnp.array([0.01, 0.02, 0.02])
        together = jax.jit(jax.vmap(train))(keys, decays, rates)
        assert len(traced) == 1
        apart = [train(*row) for row in zip(keys, decays, rates, strict=True)]
        for i, one in enumerate(apart):
            assert_close(sample(together, i), one)
        assert_differ(apart[0], apart[1])
        assert (together[1][:, -1] < together[1][:, 0] / 2).all()


# `pb.sharded` is a shard_map itself.
ON_ONE_DEVICE = [*PLAIN, "chunked"]


class TestTransforms:
    @pytest.mark.parametrize("strategy", ON_ONE_DEVICE)
    def test_shard_map_of_a_step(self, strategy: str) -> None:
        """Two devices with half of the samples each, and a carry that stays where it is."""
        made = bench("MinimalRNNCell", 0, RULES[RULE])
        mesh = jax.make_mesh((2,), ("b",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
        whole, half = (STRATEGIES[strategy](made.learner, size) for size in (4, 2))
        carry = jax.tree.map(lambda axis: P() if axis is None else P("b"), pb.Carry.sample_axes(), is_leaf=_is_none)
        run = jax.shard_map(
            half.step, mesh=mesh, in_specs=(P(), carry, P("b")), out_specs=(carry, P("b")), check_vma=False
        )
        got, want = whole.init(), whole.init()
        for x in made.data(3, 4).inputs[0]:
            got, output = jax.jit(run)(made.params, got, x)
            want, expected = whole.step(made.params, want, x)
            assert_close(jax.device_get(output), jax.device_get(expected))
        assert_close(jax.device_get(got), jax.device_get(want))

    def test_checkpoint_of_a_sequence(self) -> None:
        """It computes the forward pass again, and credit is what it was."""
        made = bench("MinimalRNNCell", 0, RULES["BPTT"])
        grad_fn, data = made.grad_fn(Request()), made.data(BENCH_STEPS, BENCH_SAMPLES)
        want = made.result(Request())

        @jax.checkpoint
        def gradient(params: Tree) -> Tree:
            return grad_fn(params, None, *data)[0]

        assert_close(jax.jit(gradient)(made.params), want.gradients)

        def size(of: Callable[[Tree], Tree]) -> Callable[[Tree], Any]:
            return lambda params: sum((leaf**2).sum() for leaf in jax.tree.leaves(of(params)))

        plain = jax.jit(jax.grad(size(lambda params: grad_fn(params, None, *data)[0])))(made.params)
        assert_close(jax.jit(jax.grad(size(gradient)))(made.params), plain)
        assert all(largest(leaf) > 0 for leaf in jax.tree.leaves(plain))


def _is_none(leaf: Any) -> bool:
    return leaf is None


READER = """
import pathlib, pickle, sys
import jax, numpy as np
from jax import export

given, result = map(pathlib.Path, sys.argv[1:])
calls = pickle.loads(given.read_bytes())
found = []
for exported, arguments in calls:
    results = export.deserialize(exported).call(*arguments)
    found.append([np.asarray(leaf) for leaf in jax.tree.leaves(results)])
known = [name for name in sys.modules if name.split(".")[0] in ("pure_batching", "brainstate", "brainscale")]
assert not known, known
result.write_bytes(pickle.dumps(found))
"""


class TestExport:
    def test_without_the_library(self, tmp_path: Path) -> None:
        """A step and a gradient of a function with keys and of a module with units, in a process of JAX and numpy."""
        learner, params = around.captured(RULES[RULE])
        batched, net = pb.vmap(learner, SAMPLES), bench("tutorial", 0, RULES["ES_D_RTRL"])
        grad_fn = pb.sequence_grad(batched, around.loss, window=3)
        of_net, start = net.grad_fn(Request("manual")), net.start("manual")
        given = net.data(BENCH_STEPS, BENCH_SAMPLES)
        calls = (
            flattened(batched.step, params, batched.init(KEY), around.data()[0][0]),
            flattened(grad_fn, params, batched.init(KEY), *around.data()),
            flattened(net.batched("manual").step, net.params, start, *sample(given.inputs, 0)),
            flattened(of_net, net.params, start, *given),
        )
        files = tmp_path / "calls", tmp_path / "results"
        sent = [
            (bytes(export.export(jax.jit(run))(*specs(arrays)).serialize()), tuple(arrays)) for run, arrays in calls
        ]
        files[0].write_bytes(pickle.dumps(sent))
        in_another_process(READER, *files)
        got = pickle.loads(files[1].read_bytes())
        want = [[np.asarray(leaf) for leaf in jax.jit(run)(*arrays)] for run, arrays in calls]
        assert_identical(got, want)
        assert all(any(largest(leaf) > 0 for leaf in one) for one in got)

    def test_with_its_own_types(self) -> None:
        """Where the package is at hand, a carry goes in and comes out as it is, once JAX knows the name of its type."""
        learner, params = around.captured(RULES[RULE])
        batched = pb.vmap(learner, SAMPLES)
        carry, x = batched.init(KEY), around.data()[0][0]
        for kind in {type(carry), type(carry.trace)}:
            export.register_namedtuple_serialization(kind, serialized_name=f"tests.{kind.__name__}")
        exported = export.export(jax.jit(batched.step))(*specs((params, carry, x)))
        got = export.deserialize(exported.serialize()).call(params, carry, x)
        assert_identical(got, jax.jit(batched.step)(params, carry, x))


class TestDonation:
    """Where the carry is donated, the next one takes its place in memory: there is no copy."""

    @pytest.mark.parametrize("strategy", ["vmap", "loop"])
    def test_of_a_step(self, strategy: str) -> None:
        learner, params = around.captured(RULES[RULE])
        batched, x = STRATEGIES[strategy](learner, SAMPLES), around.data()[0]
        run = jax.jit(batched.step, donate_argnums=1)
        carry = batched.init(KEY)
        assert aliased(run, params, carry, x[0]) >= size_of(carry) > 0
        want, _ = batched.step(params, carry, x[0])
        got, _ = run(params, carry, x[0])
        assert_identical(got, want)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(carry))
        run(params, got, x[1])

    def test_of_a_module(self) -> None:
        made = bench("tutorial", 0, RULES["D_RTRL"])
        run, carry = jax.jit(made.batched("manual").step, donate_argnums=1), made.batched("manual").init()
        inputs = sample(made.data(BENCH_STEPS, BENCH_SAMPLES).inputs, 0)
        assert aliased(run, made.params, carry, *inputs) >= size_of(carry) > 0
        run(made.params, run(made.params, carry, *inputs)[0], *inputs)

    def test_of_a_sequence(self) -> None:
        learner, params = around.captured(RULES[RULE])
        batched = pb.vmap(learner, SAMPLES)
        run = jax.jit(pb.sequence_grad(batched, around.loss, window=2), donate_argnums=1)
        carry = batched.init(KEY)
        assert aliased(run, params, carry, *around.data()) >= size_of(carry)

    def test_of_a_training(self) -> None:
        """Params and the state of the optimizer too."""
        learner, params = around.captured(RULES[RULE])
        batched, optimizer = pb.vmap(learner, SAMPLES), optax.adam(1e-2)
        run = jax.jit(pb.online(batched, around.loss, optimizer, every=2), donate_argnums=(0, 1, 2))
        state = params, optimizer.init(params), batched.init(KEY)
        assert aliased(run, *state, *around.data()) >= size_of(state)
        losses = []
        for _ in range(5):
            trained, memory, aux = run(*state, *around.data())
            state = trained, memory, aux.carry
            losses.append(aux.losses.mean())
        assert losses[-1] < losses[0]


def aliased(function: Any, *arguments: Tree) -> int:
    """How many bytes of the results lie where arguments lay."""
    return function.lower(*arguments).compile().memory_analysis().alias_size_in_bytes


class TestDebugNans:
    @pytest.mark.parametrize("rule", ["D_RTRL published", "D_RTRL", "ES_D_RTRL", "D_RTRL multi-step"])
    def test_alarms(self, rule: str) -> None:
        """None for NaN in what is masked, one for NaN in what counts."""
        learner, params = around.captured(RULES[rule])
        grad_fn = pb.sequence_grad(pb.vmap(learner, SAMPLES), around.loss, window=3)
        (inputs, targets), mask = around.data(), np.ones((STEPS, SAMPLES), bool)
        mask[3:, 2] = mask[:, 0] = False
        padded = jnp.where(mask[..., None], inputs, jnp.nan)
        want = grad_fn(params, None, inputs, targets, mask=mask, key=KEY)
        broken = inputs.at[4, 1].set(jnp.nan)
        with jax.debug_nans(new_val=True):
            assert_close(grad_fn(params, None, padded, targets, mask=mask, key=KEY), want)
            with pytest.raises(FloatingPointError, match="nan"):
                grad_fn(params, None, broken, targets, mask=mask, key=KEY)

    def test_of_a_step(self) -> None:
        learner, params = around.captured(RULES[RULE])
        batched, x = pb.vmap(learner, SAMPLES), around.data()[0][0]
        with jax.debug_nans(new_val=True):
            carry, _ = batched.step(params, batched.init(KEY), x)
            pb.check_finite(carry)
        broken = x.at[0].set(jnp.nan)
        with jax.debug_nans(new_val=True), pytest.raises(FloatingPointError, match="nan"):
            batched.step(params, carry, broken)


class TestWithoutJit:
    @pytest.mark.parametrize("strategy", ON_ONE_DEVICE)
    def test_the_same_numbers(self, strategy: str) -> None:
        made = bench("MinimalRNNCell", 0, RULES[RULE])
        batched, data = made.batched(strategy, 2), made.data(2, 2)
        grad_fn, x = pb.sequence_grad(batched, made.model.loss, window=1), sample(data.inputs, 0)
        want = grad_fn(made.params, None, *data), batched.step(made.params, batched.init(), *x)
        assert all(largest(leaf) > 0 for leaf in jax.tree.leaves(want[0][0]))
        with jax.disable_jit():
            got = grad_fn(made.params, None, *data), batched.step(made.params, batched.init(), *x)
        assert_close(got, want)

    def test_from_the_capture_on(self) -> None:
        params, data = around.weights(jax.random.key(0)), around.data(3)

        def gradient() -> Tree:
            learner, held = around.captured(RULES[RULE], params)
            return pb.sequence_grad(pb.vmap(learner, SAMPLES), around.loss)(held, None, *data, key=KEY)

        want = gradient()
        with jax.disable_jit():
            assert_close(gradient(), want)


class TestThreads:
    def test_one_gradient_function_for_all(self) -> None:
        """The first calls come at once, before anything was traced."""

        def made() -> tuple[Any, Any]:
            learner, params = around.captured(RULES[RULE])
            return pb.sequence_grad(pb.vmap(learner, SAMPLES), around.loss, window=2), params

        (shared, params), (other, _) = made(), made()
        sets = [around.data(seed=i) for i in range(8)]
        want = [other(params, None, *data, key=KEY) for data in sets]
        with ThreadPoolExecutor(len(sets)) as pool:
            got = list(pool.map(lambda data: shared(params, None, *data, key=KEY), sets))
        assert_identical(got, want)
        assert_differ(got[0][0], got[1][0])


UNPICKLED = """
import pathlib, pickle, sys

given, result = map(pathlib.Path, sys.argv[1:])
grad_fn, arguments, key = pickle.loads(given.read_bytes())
result.write_bytes(pickle.dumps(grad_fn(*arguments, key=key)))
"""


class TestPickle:
    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    def test_a_function_goes_to_another_process(self, strategy: str, tmp_path: Path) -> None:
        """A local one by cloudpickle, with what was compiled left behind; there its step is captured again."""
        leak = 0.9

        def step(params: Tree, h: jax.Array, x: jax.Array) -> Tree:
            h = leak * h + jnp.tanh(x @ params["w"])
            return h, h @ params["out"]

        given = {name: around.weights(KEY)[name] for name in ("w", "out")}
        state, x = jnp.zeros(around.SIZE), jnp.zeros(FEATURES)
        learner, params = pb.capture_function(step, given, state, x, algorithm=RULES[RULE])
        batched = STRATEGIES[strategy](learner, SAMPLES)
        grad_fn = pb.sequence_grad(batched, lambda output, target: ((output - target) ** 2).sum(), window=3)
        want = grad_fn(params, None, *around.data())
        files = tmp_path / "sent", tmp_path / "back"
        files[0].write_bytes(cloudpickle.dumps((grad_fn, (params, None, *around.data()), KEY)))
        in_another_process(UNPICKLED, *files)
        assert_close(pickle.loads(files[1].read_bytes()), want)
        assert largest(want[0]["w"]) > 0

    def test_by_name(self) -> None:
        """`pickle` itself takes functions that can be imported."""
        batched, x = pb.vmap(around.captured(RULES["ES_D_RTRL"])[0], SAMPLES), around.data()[0][0]
        again = pickle.loads(pickle.dumps(batched))
        assert (again.algorithm, again.strategy) == (batched.algorithm, batched.strategy)
        given = around.weights(KEY), batched.init(KEY), x
        assert_identical(again.step(*given), batched.step(*given))

    @pytest.mark.parametrize("is_x64", [False, True], ids=["float32", "float64"])
    def test_in_another_precision(self, *, is_x64: bool) -> None:
        """A learner keeps the precision of its capture, wherever it is unpickled."""
        with jax.enable_x64(new_val=is_x64):
            learner, params = around.captured(RULES[RULE])
            sent, want = pickle.dumps(learner), learner.program.params
        with jax.enable_x64(new_val=not is_x64):
            again = pickle.loads(sent)
            carry, _ = again.step(params, again.init(KEY), np.zeros(FEATURES, np.float32))
        assert again.program.params == want
        assert carry.hidden["state.h"].dtype == (np.float64 if is_x64 else np.float32)

    def test_which_weights_learn_by_a_trace(self) -> None:
        state = {"h": jnp.zeros(around.SIZE), "key": KEY}
        learner, _ = pb.capture_function(
            around.step, around.weights(KEY), state, jnp.zeros(FEATURES), algorithm=RULES[RULE], trace=_no_loop
        )
        again = pickle.loads(pickle.dumps(learner))
        assert str(pb.explain(again)) == str(pb.explain(learner))
        assert "trace= asks for no trace of it" in str(pb.explain(again))

    @pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
    def test_a_module_says_what_to_send(self, dumps: Callable[[Any], bytes]) -> None:
        made = bench("tutorial", 0)
        for value in (made.learner, made.grad_fn(Request())):
            with pytest.raises(
                PickleError, match=r"LIFNet: got a learner of a module.*Pickle params and carry, and call"
            ):
                dumps(value)
        carry = made.result(Request()).aux.carry
        assert_identical(pickle.loads(dumps((made.params, carry))), (made.params, carry))

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_a_copy_is_the_same(self, copied: Callable[[Any], Any]) -> None:
        learner = bench("tutorial", 0).learner
        assert copied(learner) is learner


def _no_loop(path: str) -> bool:
    return path != "params.u"


class TestAnotherDevice:
    """Arrays that were put on a device run there; two devices in one call are an error before anything runs."""

    def test_inputs_take_the_params_along(self) -> None:
        learner, params = around.captured(RULES[RULE])
        grad_fn = pb.sequence_grad(pb.vmap(learner, SAMPLES), around.loss)
        device = jax.devices()[1]
        inputs, targets = jax.device_put(around.data(), device)
        got = grad_fn(params, None, inputs, targets, key=KEY)
        assert {leaf.device for leaf in jax.tree.leaves(got)} == {device}
        assert_identical(jax.device_get(got[0]), jax.device_get(grad_fn(params, None, *around.data(), key=KEY)[0]))
        carry, _ = pb.vmap(learner, SAMPLES).step(params, got[1].carry, inputs[0])
        assert {leaf.device for leaf in jax.tree.leaves(carry)} == {device}
        assert pb.check_finite(got) is got

    def test_two_devices_at_once(self) -> None:
        learner, params = around.captured(RULES[RULE])
        batched, (one, other) = pb.vmap(learner, SAMPLES), jax.devices()[:2]
        params, carry = jax.device_put((params, batched.init(KEY)), one)
        inputs, targets = jax.device_put(around.data(), other)
        with pytest.raises(DeviceError, match=r"^inputs\[0\]: got an array on cpu:1, .* on cpu:0, where params"):
            batched.step(params, carry, inputs[0])
        optimizer = optax.sgd(0.1)
        for call in (
            lambda: pb.sequence_grad(batched, around.loss)(params, carry, inputs, targets),
            lambda: pb.sample_norms(batched, around.loss)(params, carry, inputs, targets),
            lambda: pb.clipped_grad(batched, around.loss, 0.1)(params, carry, inputs, targets),
            lambda: pb.online(batched, around.loss, optimizer)(params, optimizer.init(params), carry, inputs, targets),
        ):
            with pytest.raises(DeviceError, match=r"^inputs\[0\]: got an array on cpu:1, .* on cpu:0, where params"):
                call()
