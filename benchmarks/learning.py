"""Do the online rules learn, in every strategy, and how near is their gradient to that of BPTT?

    python benchmarks/learning.py

Two tasks: to copy a sequence of symbols after a pause (GRU), and the tutorial's classes (recurrent spiking neurons).
A line for each task, algorithm and strategy: the loss before the first and the last update, and the cosine of the first
gradient to the exact one. The exit code is 1 where a loss does not fall.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _tables import CONSOLE
from rich.table import Table

import pure_batching as pb
from pure_batching._tutorial.net import DT, make_dataset, make_net
from pure_batching._tutorial.training import loss as cross_entropy

ALGORITHMS: dict[str, pb.Algorithm] = {
    "ES_D_RTRL": pb.ES_D_RTRL(0.9),
    "ES_D_RTRL, published": pb.ES_D_RTRL(0.9, rule="published"),
    "D_RTRL": pb.D_RTRL(),
    "D_RTRL, published": pb.D_RTRL(rule="published"),
    "Hybrid": pb.Hybrid(0.9),
}
STRATEGIES = {"loop": pb.loop, "vmap": pb.vmap, "manual": pb.manual}

SYMBOLS, COPIED, PAUSE = 4, 3, 3


class Task(NamedTuple):
    """A module and its data, `[T, B, ...]`."""

    net: brainstate.nn.Module
    inputs: jax.Array
    targets: Any
    loss: Callable[[Any, Any], jax.Array]
    learning_rate: float


class Copier(brainstate.nn.Module):
    """A GRU and a linear readout."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.cell = brainscale.nn.GRUCell(features, size)
        self.readout = brainscale.nn.Linear(size, SYMBOLS)

    def update(self, x: jax.Array) -> jax.Array:
        """The logits of the symbol to say now."""
        return self.readout(self.cell(x))


def copying(samples: int) -> Task:
    """Symbols, a pause, then the same symbols: a cue marks each step at which one is to be said."""
    symbols = np.random.default_rng(0).integers(0, SYMBOLS, (COPIED, samples))
    steps = 2 * COPIED + PAUSE
    inputs = np.zeros((steps, samples, SYMBOLS + 1), np.float32)
    inputs[:COPIED, :, :SYMBOLS] = np.eye(SYMBOLS)[symbols]
    inputs[-COPIED:, :, SYMBOLS] = 1
    wanted = np.zeros((steps, samples), np.int32)
    wanted[-COPIED:] = symbols
    counts = inputs[..., SYMBOLS]
    return Task(Copier(SYMBOLS + 1, 32), jnp.asarray(inputs), (wanted, counts), recalled, 1e-2)


def recalled(logits: jax.Array, target: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross entropy where a symbol is to be said."""
    return cross_entropy(logits, target[0]) * target[1]


def tutorial(samples: int) -> Task:
    """The tutorial's network, smaller."""
    data = make_dataset(16, samples)
    return Task(make_net(50), data.inputs, brainscale.SingleStepData(data.labels), cross_entropy, 1e-3)


TASKS = {"copying, GRU": copying, "tutorial, LIF": tutorial}


def train(task: Task, learner: pb.Learner, params: Any, updates: int) -> tuple[float, float]:
    """The loss before the first and before the last update."""
    grad_fn, optimizer = pb.sequence_grad(learner, task.loss), optax.adam(task.learning_rate)

    def update(state: Any, _: None) -> Any:
        params, memory = state
        gradients, aux = grad_fn(params, None, task.inputs, task.targets)
        steps, memory = optimizer.update(gradients, memory)
        return (optax.apply_updates(params, steps), memory), aux.losses.mean()

    _, losses = jax.jit(lambda start: jax.lax.scan(update, start, None, length=updates))(
        (params, optimizer.init(params))
    )
    return float(losses[0]), float(losses[-1])


def gradient(task: Task, learner: pb.Learner, params: Any) -> np.ndarray:
    """The first gradient, as one vector."""
    gradients, _ = pb.sequence_grad(learner, task.loss)(params, None, task.inputs, task.targets)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradients)])


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of the angle between two gradients."""
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def main() -> int:
    """Print the table; 1 where a loss does not fall."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=[*ALGORITHMS])
    options = parser.parse_args()
    brainstate.environ.set(dt=DT)
    table, falls = Table("task", "algorithm", "strategy", "first loss", "last loss", "cosine to BPTT"), True
    for name, make in TASKS.items():
        brainstate.random.seed(0)
        task = make(options.samples)
        example = np.asarray(task.inputs)[0, 0]
        exact, params = pb.capture(task.net, example, algorithm=pb.BPTT())
        exactly = gradient(task, pb.vmap(exact, options.samples), params)
        for rule in options.algorithms:
            learner, _ = pb.capture(task.net, example, algorithm=ALGORITHMS[rule])
            for strategy, batch in STRATEGIES.items():
                batched = batch(learner, options.samples)
                first, last = train(task, batched, params, options.updates)
                near = cosine(gradient(task, batched, params), exactly)
                falls = falls and last < first
                table.add_row(name, rule, strategy, f"{first:.3f}", f"{last:.3f}", f"{near:.3f}")
    CONSOLE.print(table)
    return 0 if falls else 1


if __name__ == "__main__":
    sys.exit(main())
