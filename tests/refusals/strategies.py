"""Learners that a strategy refuses."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import pure_batching as pb
from pure_batching.errors import (
    BatchSizeError,
    DeviceError,
    LossError,
    OptionError,
    PickleError,
    RandomnessError,
    SampleCouplingError,
    StrategyError,
    StructureError,
)

from ..bench import PLAIN, SAMPLES, bench
from ..models import squared
from .provoke import SETTINGS, Flattened, Refusal, Remembering, Summed, Thinned, captured, one_input, tutorial


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2])


def on_another_mesh(seed: int) -> jax.Array:
    """The inputs of a step, whose type names four devices."""
    others = jax.make_mesh((4,), ("batch",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4])
    (inputs,) = jax.tree.leaves(bench("tutorial", seed).data(8).inputs)
    return jax.device_put(inputs, NamedSharding(others, PartitionSpec("batch")))


def leaky(params: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = 0.5 * h + params * x
    return h, h


def scaled(params: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Divides by the root of its features, or of its samples where a batch leads."""
    return leaky(params, h, x / jnp.sqrt(x.shape[0]))


def clamped(params: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sets the first neuron, or the first sample where a batch leads."""
    h, _ = leaky(params, h, x)
    return h.at[0].set(0.0), h


def telling(params: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    jax.debug.print("{}", x[0], ordered=True)
    return leaky(params, h, x)


def asking(params: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    answer = io_callback(lambda: 1.0, jax.ShapeDtypeStruct((), float), ordered=True)
    return leaky(params, h, answer * x)


def counting(params: jax.Array, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    h, steps = state
    io_callback(lambda: None, None, ordered=True)
    h, output = leaky(params, h, x + steps)
    return (h, steps + 1), output


def apart_by_manual(step: Any) -> Any:
    """A gradient whose samples no longer share their counter."""
    start = jnp.ones(3), jnp.zeros((), int)
    learner, params = pb.capture_function(step, start[0], start, start[0], algorithm=pb.BPTT())
    data = jnp.ones((2, 2, 3))
    return pb.sequence_grad(pb.manual(learner, 2), squared)(params, None, data, data, mask=jnp.ones((2, 2), bool))


def plain(step: Any = leaky) -> pb.Learner:
    return pb.capture_function(step, jnp.ones(3), jnp.zeros(3), jnp.zeros(3), algorithm=pb.BPTT())[0]


def sharded(learner: pb.Learner, size: int) -> pb.Learner:
    return pb.sharded(learner, size, mesh=mesh())


def told(output: jax.Array, target: jax.Array) -> jax.Array:
    jax.debug.print("{}", target[0], ordered=True)
    return squared(output, target)


def noted(output: jax.Array, target: jax.Array) -> jax.Array:
    io_callback(lambda: None, None, ordered=True)
    return squared(output, target)


def with_loss(make: Any, loss: Any) -> Any:
    data = jnp.ones((2, 2, 3))
    return pb.sequence_grad(make(plain(), 2), loss)(jnp.ones(3), None, data, data)


def on_devices(params: Any, inputs: Any) -> Any:
    """A gradient whose params and inputs were put on devices."""
    given, data = jax.device_put(jnp.ones(3), params), jax.device_put(jnp.ones((2, 2, 3)), inputs)
    return pb.sequence_grad(pb.vmap(plain(), 2), squared)(given, None, data, jnp.ones((2, 2, 3)))


def along_an_axis() -> pb.Learner:
    return pb.capture(tutorial(), one_input(), algorithm=pb.BPTT(), environ=SETTINGS, axis_name="batch")[0]


MAKERS = {**PLAIN, "chunked": functools.partial(pb.chunked, chunk=1), "sharded": sharded}

STRATEGY = (
    *(
        Refusal(
            f"{name} of {size!r}",
            lambda seed, name=name, size=size: MAKERS[name](bench("tutorial", seed).learner, size),
            BatchSizeError,
            f"pb.{name}: got batch size {size!r}, expected an integer >= 1. Give the number of samples.",
        )
        for name in MAKERS
        for size in (0, -1, True, 2.5)
    ),
    *(
        Refusal(
            f"{name} of all that capture returns",
            lambda _, call=call: call((captured(tutorial(), one_input()), {})),
            StructureError,
            f"pb.{name}: got tuple, expected a Learner. ~ pass the first.",
        )
        for name, call in {
            "sequence_grad": lambda both: pb.sequence_grad(both, squared),
            "sample_norms": lambda both: pb.sample_norms(both, squared),
            "clipped_grad": lambda both: pb.clipped_grad(both, squared, 1.0),
        }.items()
    ),
    Refusal(
        "a strategy on all that capture returns",
        lambda _: pb.vmap((captured(tutorial(), one_input()), {}), SAMPLES),
        StructureError,
        "pb.vmap: got tuple, expected a Learner. ~ pass the first.",
    ),
    *(
        Refusal(
            f"chunks of {chunk!r}",
            lambda seed, chunk=chunk: pb.chunked(bench("tutorial", seed).learner, SAMPLES, chunk=chunk),
            OptionError,
            f"chunk: got {chunk!r}, expected an integer from 1 to the batch size {SAMPLES}. Give the number of samples",
        )
        for chunk in (0, -1, SAMPLES + 1, 1.5, None)
    ),
    Refusal(
        "chunks of a batch",
        lambda seed: pb.chunked(bench("tutorial", seed).batched("vmap"), SAMPLES, chunk=2),
        StrategyError,
        "pb.chunked: got a learner batched by pb.vmap, expected a learner of one sample. Apply one strategy to",
    ),
    Refusal(
        "chunks of another size",
        lambda seed: pb.chunked(bench("tutorial", seed).learner, 8, chunk=4, by=lambda one, _: pb.vmap(one, 8)),
        OptionError,
        "by: got a function that gives the learner of 8 samples, expected a strategy: by(learner, 4) is the learner of "
        "4 samples. Pass pb.vmap, pb.manual, pb.loop or pb.chunked",
    ),
    Refusal(
        "chunks by a name",
        lambda seed: pb.chunked(bench("tutorial", seed).learner, 8, chunk=4, by="vmap"),
        OptionError,
        "by: got 'vmap', expected a strategy: by(learner, 4) is the learner of 4 samples. ~ functools.partial.",
    ),
    Refusal(
        "chunks by JAX's own function",
        lambda seed: pb.chunked(bench("tutorial", seed).learner, 8, chunk=4, by=jax.vmap),
        OptionError,
        "by: got a function that raises TypeError: ~ expected a strategy: by(learner, 4) is the learner of 4 samples.",
    ),
    Refusal(
        "one axis of devices twice",
        lambda seed: pb.sharded(bench("tutorial", seed).learner, 8, mesh=mesh(), axis=("batch", "batch")),
        OptionError,
        "axis: got ('batch', 'batch'), expected one of 'batch', or a tuple of some.",
    ),
    Refusal(
        "data on another mesh inside jax.jit",
        lambda seed: jax.jit(sharded(bench("tutorial", seed).learner, 8).step)(
            bench("tutorial", seed).params, pb.vmap(bench("tutorial", seed).learner, 8).init(), on_another_mesh(seed)
        ),
        StrategyError,
        "pb.sharded: got a mesh of {'batch': 4}, which the arguments name or jax.set_mesh has set, expected the mesh "
        "of the strategy, {'batch': 2}. Put the arguments on the mesh",
    ),
    Refusal(
        "chunks of samples that reach each other",
        lambda _: pb.chunked(along_an_axis(), 8, chunk=4),
        StrategyError,
        "pb.chunked: got a learner whose samples reach each other along the axis 'batch', expected samples that can be "
        "run one chunk after the other. Use pb.vmap or pb.manual.",
    ),
    Refusal(
        "chunks on every device",
        lambda seed: pb.chunked(bench("tutorial", seed).learner, 8, chunk=4, by=sharded),
        StrategyError,
        "pb.chunked: got chunks by pb.sharded, expected chunks on each device: ~ Nest them the other way",
    ),
    Refusal(
        "devices on devices",
        lambda seed: pb.sharded(bench("tutorial", seed).learner, 8, mesh=mesh(), by=sharded),
        StrategyError,
        "pb.sharded: got shares by pb.sharded, expected one strategy that shards. Name all axes of the mesh",
    ),
    Refusal(
        "devices that do not divide the batch",
        lambda seed: pb.sharded(bench("tutorial", seed).learner, 7, mesh=mesh()),
        BatchSizeError,
        "pb.sharded: got batch size 7 on 2 devices, expected a multiple of 2. Add 1 sample that mask= leaves out; they",
    ),
    Refusal(
        "a mesh without the axis",
        lambda seed: pb.sharded(bench("tutorial", seed).learner, 8, mesh=mesh(), axis="data"),
        OptionError,
        "axis: got 'data', expected one of 'batch', or a tuple of some. Give the axis of the mesh along which",
    ),
    Refusal(
        "devices without a mesh",
        lambda seed: pb.sharded(bench("tutorial", seed).learner, 8, mesh=jax.devices()),
        OptionError,
        "mesh: got list, expected a jax.sharding.Mesh. Pass jax.make_mesh(",
    ),
    *(
        Refusal(
            f"{name} of a callback that keeps its order",
            lambda _, call=call: call(plain(asking), 2),
            StrategyError,
            f"pb.{by}: got a step with a callback that keeps its order, io_callback(ordered=True) at strategies.py: ~ "
            "(asking), expected a step that JAX maps over samples. Take the callback out, leave out ordered=True, or",
        )
        for name, by, call in (
            ("vmap", "vmap", pb.vmap),
            ("loop", "loop", pb.loop),
            ("chunks", "vmap", MAKERS["chunked"]),
            ("devices", "vmap", sharded),
        )
    ),
    Refusal(
        "manual of a callback that keeps its order, and samples that a mask moves apart",
        lambda _: apart_by_manual(counting),
        StrategyError,
        "pb.manual: got a step with a callback that keeps its order, io_callback(ordered=True) at strategies.py: ~ "
        "(counting), expected a step that JAX maps over samples. Take the callback out",
    ),
    Refusal(
        "devices for a callback that keeps its order",
        lambda _: sharded(plain(telling), 8),
        StrategyError,
        "pb.sharded: got a step with a callback that keeps its order, debug_print(ordered=True) at "
        "strategies.py: ~ (telling), expected a step that JAX runs on several devices. ~ pb.chunked runs it.",
    ),
    Refusal(
        "devices for a loss whose callback keeps its order",
        lambda _: with_loss(sharded, told),
        LossError,
        "loss: got a callback that keeps its order, debug_print(ordered=True) at strategies.py: ~ (told), expected a "
        "loss that JAX runs on several devices, under pb.sharded. Take the callback out, or leave out ordered=True.",
    ),
    *(
        Refusal(
            f"{name} of a loss whose io_callback keeps its order",
            lambda _, make=make: with_loss(make, noted),
            LossError,
            "loss: got a callback that keeps its order, io_callback(ordered=True) at strategies.py: ~ (noted), "
            f"expected a loss that JAX maps over samples, under pb.{name}. Take the callback out, or leave out ordered",
        )
        for name, make in MAKERS.items()
        if name != "sharded"
    ),
    Refusal(
        "params on another device than the inputs",
        lambda _: on_devices(params=jax.devices()[1], inputs=jax.devices()[2]),
        DeviceError,
        "inputs[0]: got an array on cpu:2, expected one on cpu:1, where params['params'] lies. Put both on the same",
    ),
    Refusal(
        "params on one device, and inputs on those of a mesh",
        lambda _: on_devices(params=jax.devices()[0], inputs=NamedSharding(mesh(), PartitionSpec(None, "batch"))),
        DeviceError,
        "inputs[0]: got an array on cpu:0, cpu:1, expected one on cpu:0, where params['params'] lies. Put both on",
    ),
    Refusal(
        "devices in a pickle",
        lambda _: pickle.dumps(sharded(plain(), 8)),
        PickleError,
        "pb.sharded: got a strategy with the devices of this process, expected what another process can make sense of. "
        "Send the learner of one sample",
    ),
    Refusal(
        "devices of samples that reach each other",
        lambda _: pb.sharded(along_an_axis(), 8, mesh=mesh()),
        StrategyError,
        "pb.sharded: got a learner whose samples reach each other along the axis 'batch', expected samples that the "
        "devices can run each for itself. Use pb.vmap or pb.manual.",
    ),
    Refusal(
        "a strategy on a strategy",
        lambda seed: pb.vmap(bench("tutorial", seed).batched("loop"), SAMPLES),
        StrategyError,
        "pb.vmap: got a learner batched by pb.loop, expected a learner of one sample. Apply one strategy to",
    ),
    Refusal(
        "manual with random numbers that the samples share",
        lambda _: pb.manual(captured(Thinned(), one_input()), SAMPLES),
        RandomnessError,
        "pb.manual: got a draw that the samples share, until gather at provoke.py: ~ (Thinned.update) brings it "
        "together with the samples, expected ~ the batch axis in front ~ Use pb.vmap, which",
    ),
    Refusal(
        "manual with an output that forgets the batch axis",
        lambda _: pb.manual(captured(Summed(), one_input()), SAMPLES),
        StrategyError,
        "Summed: output: got shape () when traced with 3 samples, expected (3,). ~ use pb.vmap.",
    ),
    Refusal(
        "manual with a state that is summed over the batch",
        lambda _: pb.manual(captured(Remembering(), one_input()), SAMPLES),
        SampleCouplingError,
        "pb.manual: other['memory']: got samples coupled by reduce_sum at provoke.py: ~ (Remembering.update), "
        "expected samples that do not reach each other. Use pb.vmap, ~ or pass allow_coupling=True",
    ),
    Refusal(
        "manual with a number that is made of the number of samples",
        lambda _: pb.manual(plain(scaled), SAMPLES),
        StrategyError,
        "scaled: got a number made of the number of samples at strategies.py: ~ (scaled): 3 for 3, 4 for 4, expected "
        "the numbers that the step of one sample has. Take a size from ~ x.shape[-1], or use pb.vmap.",
    ),
    Refusal(
        "manual with what is written to one sample",
        lambda _: pb.manual(plain(clamped), SAMPLES),
        SampleCouplingError,
        "pb.manual: hidden['state']: got samples coupled by scatter at strategies.py: ~ (clamped) ~ expected samples "
        "that do not reach each other. Use pb.vmap, ~",
    ),
    Refusal(
        "manual with code that knows no batch axis",
        lambda _: pb.manual(captured(Flattened(), one_input()), SAMPLES),
        StrategyError,
        "Flattened: got TypeError with a batch axis: cannot reshape ~ (3, 5) ~ expected ~ carries a batch axis. Use "
        "pb.vmap",
    ),
)
