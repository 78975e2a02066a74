"""A run that lasts: does a million online steps compile anything anew, or keep anything?

    python benchmarks/long_run.py

A small recurrent network learns a stream that never ends, by `pb.sequence_grad` in windows (an update after each chunk)
and by `pb.online` (an update after each window). A line for each tenth of the run: time, resident memory of the
process, arrays that JAX holds, programs that were compiled so far, and the loss; before them one for the first chunk.
The exit code is 1 where, after the first tenth, a program is compiled, an array is added or the memory grows by more
than `--growth`, or where the loss is not finite, or at the end not lower than in the first chunk.
"""

import argparse
import gc
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from _tables import CONSOLE
from rich.table import Table

import pure_batching as pb

FEATURES, CLASSES, PARTS = 4, 2, 10
RULES = {"ES_D_RTRL": pb.ES_D_RTRL(0.9), "D_RTRL, published": pb.D_RTRL(rule="published")}

# Of Adam: an update after each window is a hundred times as many as one after each chunk.
RATES = {"pb.sequence_grad": 1e-3, "pb.online": 1e-4}

Train = Callable[..., Any]


class Sample(NamedTuple):
    """The process at one moment of a run.

    Attributes:
      steps: that were made so far.
      microseconds: of a step, since the last moment.
      resident: memory of the process, MiB.
      arrays: that JAX holds, and their bytes.
      programs: that were compiled so far.
      loss: the mean since the last moment.
    """

    steps: int
    microseconds: float
    resident: float
    arrays: tuple[int, int]
    programs: int
    loss: float


def step(params: Any, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Leaky neurons that reach each other."""
    h = 0.8 * h + 0.2 * jnp.tanh(x @ params["w"] + h @ params["u"])
    return h, h @ params["out"]


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Of one sample at one step."""
    return ((output - target) ** 2).mean()


def chunk(number: jax.Array, length: int, samples: int) -> tuple[jax.Array, jax.Array]:
    """Inputs, and what they were three steps before, `[T, B, ...]`; drawn where they are used."""
    inputs = jax.random.normal(jax.random.fold_in(jax.random.key(1), number), (length, samples, FEATURES))
    return inputs, jnp.roll(inputs, 3, 0)[..., :CLASSES]


def by_sequence_grad(learner: pb.Learner, optimizer: Any, window: int) -> Train:
    """An update after each chunk."""
    grad_fn = pb.sequence_grad(learner, loss, window=window)

    def train(params: Any, memory: Any, carry: pb.Carry, *data: jax.Array) -> Any:
        gradients, aux = grad_fn(params, carry, *data)
        updates, memory = optimizer.update(jax.tree.map(lambda g: g / len(data[0]), gradients), memory)
        return optax.apply_updates(params, updates), memory, aux

    return train


def by_online(learner: pb.Learner, optimizer: Any, window: int) -> Train:
    """An update after each window."""
    return pb.online(learner, loss, optimizer, every=window)


WAYS = {"pb.sequence_grad": by_sequence_grad, "pb.online": by_online}


def run(way: str, rule: str, options: argparse.Namespace, programs: list[str]) -> Iterator[Sample]:
    """Train, and look at the process after the first chunk and after each tenth."""
    keys, sizes = jax.random.split(jax.random.key(0), 3), {"w": FEATURES, "u": options.hidden, "out": options.hidden}
    shapes = {name: (size, CLASSES if name == "out" else options.hidden) for name, size in sizes.items()}
    params = {name: jax.random.normal(key, shapes[name]) / 4 for name, key in zip(shapes, keys, strict=True)}
    start = jnp.zeros(options.hidden), jnp.zeros(FEATURES)
    learner, params = pb.capture_function(step, params, *start, algorithm=RULES[rule])
    batched, optimizer = pb.vmap(learner, options.samples), optax.adam(RATES[way])
    train = WAYS[way](batched, optimizer, options.window)

    def part(state: Any, number: jax.Array) -> Any:
        params, memory, aux = train(*state, *chunk(number, options.chunk, options.samples))
        return (params, memory, aux.carry), aux.losses.mean()

    advance = jax.jit(part, donate_argnums=0)
    state = params, optimizer.init(params), batched.init()
    del params
    chunks = options.steps // options.chunk
    ends = [1, *(chunks * (i + 1) // PARTS for i in range(PARTS))]
    programs.clear()
    for first, end in itertools.pairwise([0, *ends]):
        begun, total = time.perf_counter(), jnp.zeros(())
        for number in range(first, end):
            state, losses = advance(state, jnp.asarray(number))
            total = total + losses
        mean = float(total) / (end - first)
        elapsed = 1e6 * (time.perf_counter() - begun) / ((end - first) * options.chunk)
        del total, losses
        pb.check_finite(state)
        yield Sample(int(state[2].update_count[0]), elapsed, resident(), held(), len(programs), mean)


def resident() -> float:
    """The resident memory of this process in MiB, as Linux tells it."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096 / 2**20


def held() -> tuple[int, int]:
    """How many arrays JAX holds, and their bytes."""
    gc.collect()
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays)


def holds(samples: list[Sample], growth: float) -> bool:
    """Whether nothing grew after the first tenth, and the network learned."""
    start, first, *later = samples
    is_kept = all((one.arrays, one.programs) == (first.arrays, first.programs) for one in later)
    is_flat = max(one.resident for one in later) <= first.resident + growth
    return is_kept and is_flat and later[-1].loss < start.loss


def main() -> int:
    """Print a table for each way and rule; 1 where something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=1000, help="steps of one call")
    parser.add_argument("--window", type=int, default=10, help="steps of one window, and between two online updates")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=[*RULES])
    parser.add_argument("--growth", type=float, default=16.0, help="MiB that may be added after the first tenth")
    options, programs, all_hold = parser.parse_args(), list[str](), True
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: programs.append(event) if event.endswith("backend_compile_duration") else None
    )
    for rule in options.rules:
        for way in WAYS:
            table = Table("steps", "us a step", "resident, MiB", "arrays", "their KiB", "programs", "loss")
            table.title = f"{way}, {rule}: {options.samples} samples, {options.hidden} neurons, {jax.devices()[0]}"
            samples = []
            for one in run(way, rule, options, programs):
                samples.append(one)
                numbers = f"{one.microseconds:.1f}", f"{one.resident:.1f}", f"{one.arrays[0]}"
                table.add_row(
                    f"{one.steps:,}", *numbers, f"{one.arrays[1] / 1024:.1f}", f"{one.programs}", f"{one.loss:.4f}"
                )
            CONSOLE.print(table)
            all_hold = all_hold and holds(samples, options.growth)
    CONSOLE.print(f"nothing grows, and the loss falls: {'yes' if all_hold else 'NO'}")
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
