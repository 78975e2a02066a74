"""Batches that are shared out: in chunks, on devices, in processes; what holds beside the laws of every strategy."""

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import pure_batching as pb

from .alive import assert_gradients_alive
from .bench import MAKERS, RULES, RUNS, SHARED_OUT, Bench, bench, shared_out
from .models import MODELS
from .trees import assert_close, assert_identical, assert_not_identical, sample

NAME = "MinimalRNNCell"
STEPS, SAMPLES, DEVICES = 5, 8, 4

chunks = functools.partial(pb.chunked, chunk=3)


def mesh_of(*sizes: int, names: tuple[str, ...] = ("batch",), kind: AxisType = AxisType.Explicit) -> jax.sharding.Mesh:
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(sizes), devices=devices)


def on_devices(by: Any = pb.vmap, **options: Any) -> Callable[[pb.Learner, int], pb.Learner]:
    return functools.partial(pb.sharded, **{"mesh": mesh_of(DEVICES), **options}, by=by)


# Chunks that divide the batch, that leave a rest, of one sample, of all; devices; and one inside the other.
WAYS: Mapping[str, Callable[[pb.Learner, int], pb.Learner]] = {
    "chunks of 2": functools.partial(pb.chunked, chunk=2, by=pb.manual),
    "chunks of 3": chunks,
    "chunks of 1": functools.partial(pb.chunked, chunk=1, by=pb.loop),
    "one chunk": functools.partial(pb.chunked, chunk=SAMPLES),
    "chunks of chunks": functools.partial(pb.chunked, chunk=5, by=functools.partial(pb.chunked, chunk=2, by=pb.manual)),
    "devices": on_devices(),
    "devices by hand": on_devices(pb.manual),
    "two axes": on_devices(mesh=mesh_of(2, 2, names=("host", "core")), axis=("host", "core")),
    "one axis of two": on_devices(mesh=mesh_of(2, 4, names=("batch", "model"), kind=AxisType.Auto)),
    "chunks on devices": on_devices(functools.partial(pb.chunked, chunk=1, by=pb.manual)),
}
every_kind = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
every_way = pytest.mark.parametrize("way", WAYS)


def flags(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {"mask": rng.random((STEPS, SAMPLES)) < 0.8, "reset": rng.random((STEPS, SAMPLES)) < 0.2}


def fetched(tree: Any) -> Any:
    return jax.device_get(tree)


class TestDrivers:
    """Every driver gives what `pb.vmap` gives."""

    @every_way
    @pytest.mark.parametrize("rule", RULES)
    def test_gradients(self, way: str, rule: str, seed: int) -> None:
        made = bench(NAME, seed, RULES[rule])
        learners = (pb.vmap(made.learner, SAMPLES), WAYS[way](made.learner, SAMPLES))
        for options in ({"reduction": "mean"}, {"reduction": "none", "window": 2, "outputs": True}):
            want, got = (self.twice(made, learner, options, seed) for learner in learners)
            assert_gradients_alive(want[0][0])
            assert_close(got, want)

    def twice(self, made: Bench, learner: pb.Learner, options: dict[str, Any], seed: int) -> Any:
        """From a fresh start, and then with masks and resets."""
        grad_fn = pb.sequence_grad(learner, made.model.loss, **options)
        first = grad_fn(made.params, None, *made.data(STEPS, SAMPLES))
        return fetched((first, grad_fn(made.params, first[1].carry, *made.data(STEPS, SAMPLES), **flags(seed))))

    @every_way
    def test_norms_and_clipping(self, way: str, seed: int) -> None:
        made = bench(NAME, seed)
        want, got = (
            fetched(
                [
                    pb.sample_norms(learner, made.model.loss)(made.params, None, *made.data(STEPS, SAMPLES)),
                    pb.clipped_grad(learner, made.model.loss, 0.1)(made.params, None, *made.data(STEPS, SAMPLES)),
                ]
            )
            for learner in (pb.vmap(made.learner, SAMPLES), WAYS[way](made.learner, SAMPLES))
        )
        assert want[1][1].clipped > 0
        assert_close(got, want)

    @every_way
    def test_online(self, way: str, seed: int) -> None:
        made, optimizer = bench(NAME, seed), optax.adam(1e-2)
        want, got = (
            fetched(
                pb.online(learner, made.model.loss, optimizer, every=2)(
                    made.params, optimizer.init(made.params), None, *made.data(STEPS, SAMPLES), **flags(seed)
                )
            )
            for learner in (pb.vmap(made.learner, SAMPLES), WAYS[way](made.learner, SAMPLES))
        )
        assert_close(got, want)

    @every_way
    def test_a_traced_decay(self, way: str, seed: int) -> None:
        made = bench(NAME, seed)

        def gradient(decay: Any, make: Any) -> Any:
            learner = make(made.learner, SAMPLES)
            learner = pb.Learner(learner.source, learner.program, pb.ES_D_RTRL(decay), learner.strategy)
            return pb.sequence_grad(learner, made.model.loss)(made.params, None, *made.data(STEPS, SAMPLES))[0]

        want, got = (fetched(jax.jit(functools.partial(gradient, make=make))(0.7)) for make in (pb.vmap, WAYS[way]))
        assert_close(got, want)

    @pytest.mark.parametrize("way", ["chunks of 3", "devices"])
    def test_random_numbers(self, way: str, seed: int) -> None:
        made, by = bench("random_start", seed), WAYS[way]
        want, got = (
            learner.init(jax.random.key(seed))
            for learner in (pb.vmap(made.learner, SAMPLES), by(made.learner, SAMPLES))
        )
        assert_identical(fetched(got), fetched(want))


EVERY_RUN = [(name, strategy) for name, strategy in RUNS if strategy in SHARED_OUT]


@functools.cache
def by_every_driver(name: str, strategy: str, seed: int) -> Any:
    """A step, and then each driver from where it ended or from a fresh start, with masks and resets."""
    made, samples, key = bench(name, seed), 6, jax.random.key(seed)
    rng, shape = np.random.default_rng(seed), (2, samples)
    options = {"mask": rng.random(shape) < 0.8, "reset": rng.random(shape) < 0.2, "key": key}
    learner, loss, data = MAKERS[strategy](made.learner, samples), made.model.loss, made.data(*shape)
    begun, output = learner.step(made.params, learner.init(key), *sample(data.inputs, 0))
    optimizer = optax.sgd(1e-3)
    found = {
        "step": (begun, output),
        "sequence_grad": pb.sequence_grad(learner, loss)(made.params, begun, *data, **options),
        "sample_norms": pb.sample_norms(learner, loss)(made.params, None, *data, **options),
        "clipped_grad": pb.clipped_grad(learner, loss, 0.1)(made.params, begun, *data, **options),
        "online": pb.online(learner, loss, optimizer)(
            made.params, optimizer.init(made.params), begun, *data, **options
        ),
    }
    return fetched(found)


@pytest.fixture
def _programs_of_one_model(name: str, strategy: str) -> Generator[None, Any, Any]:
    """Frees them after its last strategy: those of all models are more than a process may hold."""
    yield
    if strategy == shared_out(MODELS[name])[-1]:
        by_every_driver.cache_clear()
        jax.clear_caches()


class TestEveryModel:
    """Every driver, on every model that can be shared out."""

    @pytest.mark.usefixtures("_programs_of_one_model")
    @pytest.mark.parametrize(("name", "strategy"), EVERY_RUN)
    def test_every_driver(self, name: str, strategy: str, seed: int) -> None:
        want, got = by_every_driver(name, "vmap", seed), by_every_driver(name, strategy, seed)
        assert_gradients_alive(want["sequence_grad"][0])
        assert_not_identical(want["online"][0], fetched(bench(name, seed).params))
        assert_close(got, want)


class TestMemory:
    """What is held for each sample is held for those of a chunk."""

    def test_of_one_chunk(self) -> None:
        made = bench(NAME, 0, RULES["D_RTRL published"])
        few, whole, chunked = (
            self.temporaries(made, learner)
            for learner in (
                pb.vmap(made.learner, 16),
                pb.vmap(made.learner, 128),
                pb.chunked(made.learner, 128, chunk=16),
            )
        )
        assert chunked < 2 * few < 0.5 * whole

    def temporaries(self, made: Bench, learner: pb.Learner) -> int:
        data = made.data(64, learner.lead[0])
        grad_fn = pb.sequence_grad(learner, made.model.loss, window=64)
        compiled = jax.jit(lambda p, x, y: grad_fn(p, None, x, y)).lower(made.params, *data).compile()
        memory: Any = compiled.memory_analysis()
        return memory.temp_size_in_bytes

    def test_a_window_is_chosen_for_one_chunk(self) -> None:
        made = bench(NAME, 0)
        whole, chunked = (
            pb.cost(learner, 10**6) for learner in (pb.vmap(made.learner, 64), pb.chunked(made.learner, 64, chunk=4))
        )
        assert chunked.window > 8 * whole.window

    def test_the_cost_of_a_device_is_that_of_its_samples(self) -> None:
        made = bench(NAME, 0)
        assert (
            pb.cost(on_devices()(made.learner, SAMPLES), STEPS).parts == pb.cost(pb.vmap(made.learner, 2), STEPS).parts
        )


class TestAudit:
    @every_way
    def test_samples_are_proved_independent(self, way: str) -> None:
        found = pb.audit(WAYS[way](bench(NAME, 0).learner, SAMPLES))
        assert {verdict.how for verdict in found.leaves.values()} == {"proved"}
        assert found.is_independent

    def test_coupled_samples_of_a_chunk_are_found(self) -> None:
        coupled = functools.partial(pb.manual, allow_coupling=True)
        learner = bench("normalized", 0).learner
        assert not pb.audit(pb.chunked(learner, 6, chunk=3, by=coupled)).is_independent


COUNTED = """
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import functools, re
import brainscale, jax, jax.numpy as jnp, optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import pure_batching as pb

inputs, targets = jnp.ones((6, 16, 3)), jnp.ones((6, 16, 6))
MOVES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


def loss(output, target):
    return ((output - target) ** 2).sum()


def count(name, fun, *args):
    text = jax.jit(fun).lower(*args).compile().as_text()
    print(name, len(re.findall(r" all-reduce(?:-start)?[(]", text)), sum(text.count(f" {move}") for move in MOVES))


def over(fun):
    return lambda *given: fun(*given[:-2], None, *given[-2:])


in_chunks = functools.partial(pb.chunked, chunk=1, by=pb.manual)
for kind, algorithm, by in (
    (AxisType.Auto, pb.ES_D_RTRL(0.9), pb.vmap),
    (AxisType.Explicit, pb.D_RTRL("published"), in_chunks),
    (AxisType.Auto, pb.D_RTRL("published", "multi-step"), pb.manual),
    (AxisType.Explicit, pb.BPTT(), in_chunks),
):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(kind,))
    data = [jax.device_put(x, NamedSharding(mesh, P(None, "batch"))) for x in (inputs, targets)]
    learner, params = pb.capture(brainscale.nn.MinimalRNNCell(3, 6), inputs[0, 0], algorithm=algorithm)
    params = jax.device_put(params, NamedSharding(mesh, P()))
    batched = pb.sharded(learner, 16, mesh=mesh, by=by)
    carry, optimizer = batched.init(), optax.adam(1e-3)
    count("gradient", over(pb.sequence_grad(batched, loss)), params, *data)
    count("gradient", pb.sequence_grad(batched, loss, window=4), params, carry, *data)
    count("per sample", over(pb.sequence_grad(batched, loss, reduction="none", outputs=True)), params, *data)
    count("norms", over(pb.sample_norms(batched, loss)), params, *data)
    count("clipped", over(pb.clipped_grad(batched, loss, 0.1)), params, *data)
    count("step", batched.step, params, carry, data[0][0])
    count("online", over(pb.online(batched, loss, optimizer, every=2)), params, optimizer.init(params), *data)

jax.config.update("jax_enable_x64", True)


def of_two_types(params, h, x):
    h = jnp.tanh(x @ params["single"].astype(float) + h @ params["double"])
    return h, h


params = {"single": jnp.ones((3, 6), jnp.float32), "double": jnp.eye(6)}
data = [jax.device_put(jnp.ones(x.shape), x.sharding) for x in data]
learner, _ = pb.capture_function(of_two_types, params, jnp.zeros(6), jnp.zeros(3), algorithm=pb.ES_D_RTRL(0.9))
params = jax.device_put(params, NamedSharding(mesh, P()))
count("two types", over(pb.clipped_grad(pb.sharded(learner, 16, mesh=mesh), loss, 0.1)), params, *data)
count("beside", over(pb.clipped_grad(pb.vmap(learner, 16), loss, 0.1)), params, *data)
"""


def clean_environment() -> dict[str, str]:
    """That of a process whose XLA runs the passes that are off in these tests."""
    names = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    return {name: value for name, value in os.environ.items() if name not in names}


def test_nothing_else_crosses_devices() -> None:
    """One all-reduce for each gradient tree, of several types of numbers too; a count of samples goes with it."""
    command = [sys.executable, "-c", COUNTED]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_environment(), cwd=root)
    one = [*["gradient 1 0"] * 2, "per sample 0 0", "norms 0 0", "clipped 1 0", "step 0 0", "online 1 0"]
    assert done.stdout.splitlines() == [*one * 4, "two types 1 0", "beside 1 0"]


@every_kind
def test_results_stay_where_their_samples_are(kind: AxisType) -> None:
    made, mesh = bench(NAME, 0), mesh_of(DEVICES, kind=kind)
    batched = pb.sharded(made.learner, SAMPLES, mesh=mesh)
    inputs, targets = jax.device_put(tuple(made.data(STEPS, SAMPLES)), NamedSharding(mesh, P(None, "batch")))
    params = jax.device_put(made.params, NamedSharding(mesh, P()))
    grad_fn = pb.sequence_grad(batched, made.model.loss, reduction="none", outputs=True)
    gradients, aux = grad_fn(params, batched.init(), inputs, targets)
    assert all(leaf.sharding.spec[0] == "batch" for leaf in jax.tree.leaves((gradients, aux.carry)))
    assert all(leaf.sharding.spec[1] == "batch" for leaf in jax.tree.leaves((aux.losses, aux.outputs)))
    summed, _ = pb.sequence_grad(batched, made.model.loss)(params, None, inputs, targets)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(summed))


def test_params_may_be_sharded_by_the_caller() -> None:
    """Along another axis of the mesh."""
    made = bench(NAME, 0)
    mesh = mesh_of(2, 2, names=("batch", "model"), kind=AxisType.Auto)
    batched = pb.sharded(made.learner, SAMPLES, mesh=mesh)
    grad_fn = jax.jit(lambda params, data: pb.sequence_grad(batched, made.model.loss)(params, None, *data)[0])
    want = grad_fn(made.params, made.data(STEPS, SAMPLES))
    layouts = jax.tree.map(
        lambda leaf: NamedSharding(mesh, P("model") if leaf.ndim and leaf.shape[0] % 2 == 0 else P()), made.params
    )
    got = grad_fn(jax.device_put(made.params, layouts), made.data(STEPS, SAMPLES))
    assert_close(fetched(got), fetched(want))


PROCESS = """
import json, sys
import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
place, count, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if count > 1:
    jax.distributed.initialize(address, num_processes=count, process_id=place)
import jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
import pure_batching as pb


def step(params, h, x):
    h = jnp.tanh(x @ params["w"] + h @ params["r"])
    return h, h @ params["out"]


rng = np.random.default_rng(0)
sizes = {"w": (3, 5), "r": (5, 5), "out": (5, 2)}
params = {name: rng.normal(size=size) for name, size in sizes.items()}
inputs, targets = rng.normal(size=(6, 8, 3)), rng.normal(size=(6, 8, 2))
mesh = jax.make_mesh((jax.device_count(),), ("batch",))


def placed(array, *spec):
    layout = NamedSharding(mesh, P(*spec))
    return jax.make_array_from_callback(array.shape, layout, lambda index: array[index])


learner, _ = pb.capture_function(step, params, jnp.zeros(5), inputs[0, 0], algorithm=pb.D_RTRL("published"))
batched = pb.sharded(learner, 8, mesh=mesh)
held = jax.tree.map(placed, params)
data = placed(inputs, None, "batch"), placed(targets, None, "batch")
grad_fn = pb.sequence_grad(batched, lambda y, t: ((y - t) ** 2).sum(), window=4)
gradients, aux = grad_fn(held, batched.init(), *data)
gradients, aux = grad_fn(held, aux.carry, *data)
own = {str(shard.index): shard.data.tolist() for shard in aux.losses.addressable_shards}
print(json.dumps([jax.tree.map(lambda x: np.asarray(x.addressable_data(0)).tolist(), gradients), own]))
"""


def in_processes(count: int) -> list[Any]:
    """What each of some processes prints, which are one program on two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    root = Path(__file__).parents[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(place), str(count), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
            cwd=root,
        )
        for place in range(count)
    ]
    outputs = [process.communicate(timeout=240) for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def test_two_processes_equal_one() -> None:
    ((want, of_one),) = in_processes(1)
    found = in_processes(2)
    for gradients, own in found:
        assert len(own) == 2
        for name, value in gradients.items():
            assert np.abs(want[name]).max() > 0
            np.testing.assert_allclose(value, want[name], rtol=1e-12, atol=1e-12)
    shares = [np.concatenate([*own.values()], 1) for own in (of_one, {**found[0][1], **found[1][1]})]
    np.testing.assert_allclose(shares[1], shares[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", ["D_RTRL", "D_RTRL published", "ES_D_RTRL", "BPTT"])
def test_a_grouped_convolution(rule: str) -> None:
    """On a mesh, JAX does not map the derivative by its kernel over the states of a neuron, so that none is taken."""
    images, kernel = jax.random.normal(jax.random.key(0), (3, 8, 5, 4)), np.ones((3, 2, 4))

    def step(kernel: Any, h: Any, image: Any) -> Any:
        options: dict[str, Any] = {"dimension_numbers": ("NWC", "WIO", "NWC"), "feature_group_count": 2}
        h = 0.5 * h + jax.lax.conv_general_dilated(image[None], kernel, (1,), "SAME", **options)[0]
        return h, h

    def squared(output: Any, target: Any) -> Any:
        return ((output - target) ** 2).sum()

    learner, params = pb.capture_function(step, kernel, images[0, 0], images[0, 0], algorithm=RULES[rule])
    got, want = (
        pb.sequence_grad(strategy(learner, 8), squared)(params, None, images, images)[0]
        for strategy in (on_devices(), pb.vmap)
    )
    assert_gradients_alive({"kernel": want})
    assert_close(fetched(got), want)


class TestElsewhere:
    """Arguments of `pb.sharded` that were put on other devices than its own are copied to them, whatever the driver."""

    @every_kind
    @pytest.mark.parametrize("part", ["params", "carry", "everything", "another mesh"])
    def test_a_gradient(self, part: str, kind: AxisType) -> None:
        made, mesh = bench(NAME, 0), mesh_of(DEVICES, kind=kind)
        batched = pb.sharded(made.learner, SAMPLES, mesh=mesh)
        grad_fn = pb.sequence_grad(batched, made.model.loss, window=3)
        data, given = tuple(made.data(STEPS, SAMPLES)), flags(0)
        carry = grad_fn(made.params, None, *data)[1].carry
        want = grad_fn(made.params, carry, *data, **given)
        assert_gradients_alive(want[0])
        home, others = jax.devices()[0], jax.make_mesh((4,), ("other",), axis_types=(kind,), devices=jax.devices()[4:])
        moved: dict[str, Any] = {
            "params": (jax.device_put(made.params, home), carry, *data, given),
            "carry": (made.params, jax.device_put(fetched(carry), home), *data, given),
            "everything": jax.device_put((made.params, fetched(carry), *data, given), home),
            "another mesh": (
                jax.device_put(made.params, NamedSharding(others, P())),
                carry,
                *jax.device_put(data, NamedSharding(others, P(None, "other"))),
                given,
            ),
        }
        params, start, inputs, targets, options = moved[part]
        got = grad_fn(params, start, inputs, targets, **options)
        assert_identical(fetched(got), fetched(want))
        assert all(leaf.sharding.device_set == {*mesh.devices.flat} for leaf in jax.tree.leaves(got))

    def test_a_step_and_a_training(self) -> None:
        """And the state of an optimizer. What comes back is put on one device, where `pb.vmap` goes on with it."""
        made, home, optimizer = bench(NAME, 0), jax.devices()[0], optax.adam(1e-2)
        batched, data = on_devices()(made.learner, SAMPLES), tuple(made.data(STEPS, SAMPLES))
        alone = pb.vmap(made.learner, SAMPLES)

        def run(learner: pb.Learner, put: Any) -> Any:
            params, carry, held = (put(tree) for tree in (made.params, fetched(alone.init()), data))
            fit = pb.online(learner, made.model.loss, optimizer)
            return (
                learner.step(params, carry, *sample(held[0], 0)),
                fit(params, put(optimizer.init(made.params)), carry, *held),
            )

        got = run(batched, lambda tree: jax.device_put(tree, home))
        assert_close(fetched(got), fetched(run(alone, lambda tree: tree)))
        trained, carry = jax.device_put((got[1][0], got[1][2].carry), home)
        gradients, _ = pb.sequence_grad(alone, made.model.loss)(trained, carry, *data)
        assert {leaf.device for leaf in jax.tree.leaves(gradients)} == {home}


class TestExplicitAxes:
    """A mesh of explicit axes, JAX's default: inside `jax.jit`, types of results name the places of the samples."""

    def test_a_scan_of_steps(self, seed: int) -> None:
        """Inside `jax.jit`, from a carry that is made there."""
        made, mesh = bench(NAME, seed), mesh_of(DEVICES)
        inputs = made.data(STEPS, SAMPLES).inputs
        placed = jax.device_put(inputs, NamedSharding(mesh, P(None, "batch")))

        def run(make: Any, params: Any, inputs: Any) -> Any:
            learner = make(made.learner, SAMPLES)
            return jax.lax.scan(lambda carry, x: learner.step(params, carry, *x), learner.init(), inputs)

        want = fetched(jax.jit(functools.partial(run, pb.vmap))(made.params, inputs))
        sharded = jax.jit(functools.partial(run, on_devices()))
        for given in (placed, inputs):
            assert_close(fetched(sharded(made.params, given)), want)
            with jax.set_mesh(mesh):
                assert_close(fetched(sharded(made.params, given)), want)

    def test_a_derivative_outside_of_jit(self, seed: int) -> None:
        """There JAX takes none of arrays whose types name places, so that a fresh carry names none."""
        made = bench(NAME, seed)
        inputs = made.data(SAMPLES).inputs

        def loss(params: Any, learner: pb.Learner) -> Any:
            return (learner.step(params, learner.init(), *inputs)[1] ** 2).sum()

        got, want = (
            fetched(jax.grad(loss)(made.params, make(made.learner, SAMPLES))) for make in (on_devices(), pb.vmap)
        )
        assert_gradients_alive(want)
        assert_close(got, want)

    def test_batch_algebra(self, seed: int) -> None:
        """Samples are regrouped wherever they lie."""
        made, order = bench(NAME, seed), np.arange(SAMPLES)[::-1]
        data = tuple(made.data(STEPS, SAMPLES))
        placed = jax.device_put(data, NamedSharding(mesh_of(DEVICES), P(None, "batch")))
        shared, plain = (
            pb.sequence_grad(make(made.learner, SAMPLES), made.model.loss)(made.params, None, *given)[1].carry
            for make, given in ((on_devices(), placed), (pb.vmap, data))
        )
        assert jax.typeof(shared.update_count).sharding.spec == P("batch")
        for regroup in (
            lambda carry: pb.gather(carry, [1, 2]),
            lambda carry: pb.permute(carry, order),
            lambda carry: pb.stack(pb.unstack(carry)[:3]),
            lambda carry: pb.concat(pb.split(carry, [3, 5])),
        ):
            assert_close(fetched(regroup(shared)), fetched(regroup(plain)))
