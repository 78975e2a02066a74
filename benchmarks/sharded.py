"""The bytes that cross devices: one gradient tree for each gradient, whatever the batch, the time and the devices.

    python benchmarks/sharded.py

The tutorial's network, by `pb.sharded` on virtual devices of the CPU. The bytes are read from what XLA compiled: those
of the results of its collective operations on one device. The exit code is 1 where they are not those of the params.
"""

import math
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=16"

import brainstate
import jax
import jax.numpy as jnp
import optax
from _tables import CONSOLE
from rich.table import Table

import pure_batching as pb
from pure_batching._tutorial.net import DT, make_dataset, make_net

WIDTHS = {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8}
COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<name>all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"(?P<type>[a-z]\d+)\[(?P<shape>[\d,]*)\]")


def loss(output: Any, label: Any) -> Any:
    """Of one sample at one step."""
    return optax.softmax_cross_entropy_with_integer_labels(output, label)


def crossing(compiled: Any) -> Iterator[tuple[str, int]]:
    """The name and the bytes of each collective operation of a compiled function, those in loops counted once."""
    for found in COLLECTIVE.finditer(compiled.as_text()):
        arrays = ARRAY.finditer(found["result"])
        yield found["name"], sum(WIDTHS[one["type"]] * math.prod(_numbers(one["shape"])) for one in arrays)


def _numbers(shape: str) -> list[int]:
    return [int(size) for size in shape.split(",") if size]


def measured(
    learner: pb.Learner, params: Any, devices: int, batch: int, steps: int
) -> dict[str, list[tuple[str, int]]]:
    """What crosses devices in a gradient of a sequence, in an update of `pb.online`, and in a step."""
    mesh = jax.make_mesh((devices,), ("batch",), devices=jax.devices()[:devices])
    batched, optimizer = pb.sharded(learner, batch, mesh=mesh), optax.adam(1e-3)
    (spec,) = learner.program.inputs
    inputs, labels = jnp.zeros((steps, batch, *spec.shape), spec.dtype), jnp.zeros((steps, batch), jnp.int32)
    grad_fn, train = pb.sequence_grad(batched, loss), pb.online(batched, loss, optimizer, every=steps)
    functions = {
        "gradient": (lambda params, *data: grad_fn(params, None, *data), (params, inputs, labels)),
        "online, an update": (
            lambda params, state, *data: train(params, state, None, *data),
            (params, optimizer.init(params), inputs, labels),
        ),
        "step": (batched.step, (params, batched.init(), inputs[0])),
    }
    return {name: [*crossing(jax.jit(fun).lower(*given).compile())] for name, (fun, given) in functions.items()}


def main() -> int:
    """Print a row for each number of devices, samples and steps."""
    brainstate.environ.set(dt=DT)
    data = make_dataset(2, 2)
    learner, params = pb.capture(make_net(200), data.inputs[0, 0], algorithm=pb.ES_D_RTRL(0.95))
    tree = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    table = Table("devices", "samples", "steps", "function", "collectives", "bytes", "bytes / params", title="crossing")
    holds = True
    for devices, batch, steps in ((2, 128, 16), (4, 128, 16), (16, 128, 16), (16, 1024, 16), (16, 128, 256)):
        for name, found in measured(learner, params, devices, batch, steps).items():
            size = sum(nbytes for _, nbytes in found)
            holds &= size == (0 if name == "step" else tree)
            names = ", ".join(name for name, _ in found) or "none"
            table.add_row(f"{devices}", f"{batch}", f"{steps}", name, names, f"{size:,}", f"{size / tree:.2f}")
    CONSOLE.print(table)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
