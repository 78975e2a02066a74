"""A flax.nnx model of one step, trained online by either strategy, and given back to flax."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import pure_batching as pb

TIME, BATCH, FEATURES, HIDDEN, UPDATES = 20, 16, 3, 32, 150


class Model(nnx.Module):
    """A GRU with a linear readout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.cell = nnx.GRUCell(FEATURES, HIDDEN, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN, 1, rngs=rngs)

    def __call__(self, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One step: hidden state and features in, the next hidden state and a prediction out."""
        hidden, output = self.cell(hidden, x)
        return hidden, self.readout(output)


graph, weights, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)


def step(params: Any, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The model as a function of its weights, a dict of arrays."""
    return nnx.merge(graph, nnx.State(params), rest)(hidden, x)


# The target is a leaky sum of the inputs.
inputs = jax.random.normal(jax.random.key(1), (TIME, BATCH, FEATURES))
weigh = jnp.array([0.6, -0.3, 0.2])
targets = jax.lax.scan(lambda y, x: (0.8 * y + x, 0.8 * y + x), jnp.zeros(BATCH), inputs @ weigh)[1][..., None]


def loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Of one sample at one step."""
    return ((prediction - target) ** 2).sum()


learner, start = pb.capture_function(
    step, nnx.to_pure_dict(weights), jnp.zeros(HIDDEN), inputs[0, 0], algorithm=pb.D_RTRL(rule="published")
)
print(pb.explain(learner))


def train(strategy: Any) -> tuple[Any, jax.Array]:
    """The weights after all updates, and the loss of each."""
    grad_fn, optimizer = pb.sequence_grad(strategy(learner, BATCH), loss), optax.adam(3e-3)

    def update(state: Any, _: None) -> tuple[Any, jax.Array]:
        gradients, aux = grad_fn(state[0], None, inputs, targets)
        updates, memory = optimizer.update(gradients, state[1])
        return (optax.apply_updates(state[0], updates), memory), aux.losses.mean()

    (params, _), losses = jax.lax.scan(update, (start, optimizer.init(start)), None, length=UPDATES)
    return params, losses


params, losses = train(pb.vmap)
_, by_manual = train(pb.manual)
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}; by pb.manual {by_manual[0]:.4f} -> {by_manual[-1]:.4f}")
assert losses[-1] < losses[0] / 4
assert jnp.allclose(losses, by_manual, rtol=1e-2)

model = nnx.merge(graph, nnx.State(params), rest)  # a flax model again
_, predicted = jax.lax.scan(model, jnp.zeros((BATCH, HIDDEN)), inputs)
error = ((predicted - targets) ** 2).mean()
print(f"the mean squared error of the flax model: {error:.4f}")
assert error < 1.1 * losses[-1]
