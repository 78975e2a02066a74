"""Models of the field: the online rules against backpropagation through time, and both strategies.

    python benchmarks/models.py

Results go to `build/benchmarks/`; `--help` lists the options.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import brainpy.state
import brainscale
import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from _bars import alike, ratio
from _cases import Strategy
from _command import Section, main
from _measuring import Run, compiled
from _rules import RULES, STRATEGIES

import pure_batching as pb
from pure_batching._tutorial.net import DT
from pure_batching._tutorial.training import loss as cross_entropy
from pure_batching.testing.modules import Cell, Net, Readout, Spiking, squared

STEPS, SAMPLES = 32, 64

# Of the copying task.
SYMBOLS, COPIED = 8, 12

IMAGE, CHANNELS = (16, 16, 2), 8


@dataclass(frozen=True)
class Task:
    """A module and its data.

    Attributes:
      title: what it is.
      make: a new module.
      inputs, targets: `[T, B, ...]`.
      loss: of one sample at one step.
    """

    title: str
    make: Callable[[], brainstate.nn.Module]
    inputs: Any
    targets: Any
    loss: Callable[[Any, Any], jax.Array] = squared


def of_net(title: str, net: Net) -> Task:
    """A network of the testing modules on its own data."""
    data = net.data(0, STEPS, SAMPLES)
    return Task(title, net, data.inputs[0], data.targets)


def copying() -> Task:
    """Symbols, then as many cues: each asks for the next of the symbols."""
    symbols = np.random.default_rng(0).integers(0, SYMBOLS, (COPIED, SAMPLES))
    inputs = np.zeros((2 * COPIED, SAMPLES, SYMBOLS + 1), np.float32)
    inputs[:COPIED, :, :SYMBOLS] = np.eye(SYMBOLS)[symbols]
    inputs[COPIED:, :, SYMBOLS] = 1
    wanted = np.concatenate([np.zeros_like(symbols), symbols]).astype(np.int32)
    net = Net((Cell("GRUCell", 128), Readout("linear", SYMBOLS)), n_in=SYMBOLS + 1)
    title = f"GRU of 128 on copying, T={2 * COPIED}, B={SAMPLES}"
    return Task(title, net, jnp.asarray(inputs), (wanted, inputs[..., SYMBOLS]), _recalled)


def _recalled(logits: jax.Array, target: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Cross entropy where a symbol is asked for."""
    return cross_entropy(logits, target[0]) * target[1]


class ConvolvedSpikes(brainstate.nn.Module):
    """A convolution onto spiking neurons of the same shape, and a leaky readout."""

    def __init__(self) -> None:
        super().__init__()
        weights, zeros = braintools.init.KaimingNormal(scale=4.0, unit=u.mV), braintools.init.ZeroInit(unit=u.mV)
        comm = brainscale.nn.Conv2d(IMAGE, CHANNELS, (3, 3), w_init=weights, b_init=zeros)
        self.neurons = brainpy.state.LIF(comm.out_size)
        self.synapses = brainpy.state.DeltaProj(comm=comm, post=self.neurons)
        self.readout = brainscale.nn.LeakyRateReadout(int(np.prod(comm.out_size)), 10)

    def update(self, x: jax.Array) -> jax.Array:
        """The rates of one step."""
        self.synapses(x)
        spikes = self.neurons()
        return self.readout(spikes.reshape(*spikes.shape[: x.ndim - len(IMAGE)], -1))


def convolution() -> Task:
    """Random images."""
    steps, samples = 8, 16
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0.0, 1.5, (steps, samples, *IMAGE)).astype(np.float32)
    targets = rng.uniform(0.5, 1.5, (steps, samples)).astype(np.float32)

    def make() -> brainstate.nn.Module:
        with brainstate.random.seed_context(0):
            return ConvolvedSpikes()

    title = f"convolution of {IMAGE} to {CHANNELS} channels of LIF, T={steps}, B={samples}"
    return Task(title, make, jnp.asarray(inputs), targets)


def lif() -> Task:
    """Spiking neurons that reach each other."""
    net = Net((Spiking("LIF", "delta", 200, is_recurrent=True), Readout("leaky", 10)), n_in=100)
    return of_net(f"100 -> 200 LIF -> 10, T={STEPS}, B={SAMPLES}", net)


def alif() -> Task:
    """Adaptive neurons behind exponential synapses: three states each."""
    net = Net((Spiking("ALIF", "expon", 200, is_recurrent=True), Readout("leaky", 10)), n_in=100)
    return of_net(f"100 -> 200 ALIF with synapses -> 10, T={STEPS}, B={SAMPLES}", net)


def lru() -> Task:
    """A linear recurrent unit."""
    net = Net((Cell("LRUCell", 128), Readout("linear", 10)), n_in=64)
    return of_net(f"LRU of 128, 64 features, T={STEPS}, B={SAMPLES}", net)


def compared(make: Callable[[], Task]) -> Section:
    """Every rule by both strategies."""
    brainstate.environ.set(dt=DT)
    task = make()
    cases = {
        f"{rule}, {how}": gradient(task, by, algorithm)
        for rule, algorithm in RULES.items()
        for how, by in STRATEGIES.items()
    }
    online = [rule for rule in RULES if rule != "BPTT"]
    bars = [
        *(ratio(f"{rule}, vmap", "BPTT, vmap") for rule in online),
        *(alike(f"{rule}, vmap", f"{rule}, manual") for rule in RULES),
    ]
    return Section(task.title, cases, bars, [[f"{rule}, {how}" for how in STRATEGIES] for rule in RULES])


def gradient(task: Task, strategy: Strategy, algorithm: pb.Algorithm) -> Run:
    """The gradient of a sequence."""
    samples = task.inputs.shape[1]
    learner, params = pb.capture(task.make(), task.inputs[0, 0], algorithm=algorithm)
    grad_fn = pb.sequence_grad(strategy(learner, samples), task.loss)
    return compiled(lambda params, *data: grad_fn(params, None, *data)[0], params, task.inputs, task.targets)


TASKS = {"LIF": lif, "ALIF": alif, "GRU": copying, "conv": convolution, "LRU": lru}
SECTIONS = {name: partial(compared, make) for name, make in TASKS.items()}

if __name__ == "__main__":
    main(SECTIONS)
