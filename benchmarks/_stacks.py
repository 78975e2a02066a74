"""The tutorial's network as a plain function, with any number of layers and of states of a neuron."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _cases import Strategy
from _floors import LEAK, spike
from _measuring import Run, compiled
from _problem import Sizes

import pure_batching as pb
from pure_batching._tutorial.net import CLASSES, FEATURES
from pure_batching._tutorial.training import loss


def step(params: Any, state: Any, x: jax.Array) -> Any:
    """Layers of leaky neurons; what drives a neuron goes through the currents in front of its voltage, one by one.

    Args:
      params: `{"layers": [[F + H, H], ...], "out": [H, C]}`.
      state: `{"layers": [[H, ...], ...], "rate": [C]}`: for each layer the currents, then the voltage.
      x: features.
    """
    layers = []
    for weight, (*currents, before) in zip(params["layers"], state["layers"], strict=True):
        given = jnp.concatenate([x, spike(before)], -1) @ weight
        new = []
        for current in currents:
            given = LEAK * current + given
            new.append(given)
        voltage = LEAK * (before - spike(before)) + given
        layers.append([*new, voltage])
        x = spike(voltage)
    rate = LEAK * state["rate"] + x @ params["out"]
    return {"layers": layers, "rate": rate}, rate


class Stack:
    """Weights, data and a gradient at one size.

    Attributes:
      sizes: of the problem.
      layers, states: how many of them.
    """

    def __init__(self, sizes: Sizes, layers: int = 1, states: int = 1) -> None:
        self.sizes, self.layers, self.states = sizes, layers, states

    @property
    def work(self) -> float:
        """Multiplications of numbers of a gradient, those of its matrices: forward, and for the weights."""
        steps, samples, hidden = self.sizes
        widths = [FEATURES, *(hidden for _ in range(self.layers - 1))]
        return 2.0 * steps * samples * (sum((width + hidden) * hidden for width in widths) + hidden * CLASSES)

    def gradient(self, strategy: Strategy, algorithm: pb.Algorithm, window: int | None = None) -> Run:
        """The gradient of a sequence."""
        params, state = self._made()
        learner, params = pb.capture_function(step, params, state, jnp.zeros(FEATURES), algorithm=algorithm)
        grad_fn = pb.sequence_grad(strategy(learner, self.sizes.samples), loss, window=window)
        return compiled(lambda params, *data: grad_fn(params, None, *data)[0], params, *self._data())

    def _made(self) -> tuple[Any, Any]:
        rng, hidden = np.random.default_rng(0), self.sizes.hidden
        widths = [FEATURES, *(hidden for _ in range(self.layers - 1))]

        def weight(rows: int, columns: int) -> jax.Array:
            return jnp.asarray(rng.normal(0.0, rows**-0.5, (rows, columns)).astype(np.float32))

        params = {"layers": [weight(width + hidden, hidden) for width in widths], "out": weight(hidden, CLASSES)}
        rest = [[jnp.zeros(hidden) for _ in range(self.states)] for _ in range(self.layers)]
        return params, {"layers": rest, "rate": jnp.zeros(CLASSES)}

    def _data(self) -> tuple[jax.Array, jax.Array]:
        rng, lead = np.random.default_rng(1), self.sizes[:2]
        inputs = rng.uniform(0.0, 1.0, (*lead, FEATURES)).astype(np.float32)
        return jnp.asarray(inputs), jnp.asarray(rng.integers(0, CLASSES, lead))
