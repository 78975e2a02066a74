"""An update of optax at every step of a stream, by `pb.online`: the weights learn while the sequence runs."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import pure_batching as pb

TIME, BATCH, HIDDEN = 2000, 8, 32


def step(params: Any, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A leaky network of one sample that predicts the next value of its input."""
    new = 0.7 * hidden + 0.3 * jnp.tanh(x @ params["in"] + hidden @ params["recurrent"] + params["bias"])
    return new, new @ params["out"]


def loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Of one sample at one step."""
    return ((prediction - target) ** 2).sum()


# Each sample is a sum of two waves with phases of its own; the target is the value five steps ahead.
clock = jnp.arange(TIME + 5)[:, None]
phases = jax.random.uniform(jax.random.key(0), (2, BATCH), maxval=2 * jnp.pi)
waves = (jnp.sin(0.2 * clock + phases[0]) + 0.5 * jnp.sin(0.53 * clock + phases[1]))[..., None]
inputs, targets = waves[:-5], waves[5:]

keys = jax.random.split(jax.random.key(1), 3)
weights = {
    "in": jax.random.normal(keys[0], (1, HIDDEN)),
    "recurrent": jax.random.normal(keys[1], (HIDDEN, HIDDEN)) / HIDDEN**0.5,
    "bias": jnp.zeros(HIDDEN),
    "out": 0.1 * jax.random.normal(keys[2], (HIDDEN, 1)),
}
learner, weights = pb.capture_function(
    step, weights, jnp.zeros(HIDDEN), inputs[0, 0], algorithm=pb.D_RTRL(rule="published")
)
# Any optimizer of optax will do: here clipping, a schedule that counts steps, and Adam.
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(3e-3, TIME)))

losses = {}
for name, strategy in {"vmap": pb.vmap, "manual": pb.manual}.items():
    train = pb.online(strategy(learner, BATCH), loss, optimizer, every=1)
    params, memory, carry, parts = weights, optimizer.init(weights), None, []
    for start in range(0, TIME, 500):  # the stream comes in parts: params, memory and carry go on
        part = slice(start, start + 500)
        params, memory, aux = train(params, memory, carry, inputs[part], targets[part])
        carry = aux.carry
        parts.append(aux.losses.mean())
    losses[name] = jnp.array(parts)
    print(f"{name:7s} mean loss of each 500 steps: {losses[name].round(4)}")

assert losses["vmap"][-1] < losses["vmap"][0] / 4
assert jnp.allclose(losses["vmap"], losses["manual"], rtol=1e-2)
