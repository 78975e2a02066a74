"""A small recurrent function with noise, as a user of plain JAX has it: what the rest of JAX is put around."""

from typing import Any

import jax
import jax.numpy as jnp

import pure_batching as pb

FEATURES, SIZE, CLASSES = 3, 6, 2
STEPS, SAMPLES = 8, 4


def step(params: Any, state: Any, x: jax.Array) -> Any:
    """Leaky neurons with noise of their own; the state holds the random key."""
    key, now = jax.random.split(state["key"])
    noise = 0.1 * jax.random.normal(now, (SIZE,), x.dtype)
    h = 0.8 * state["h"] + jnp.tanh(x @ params["w"] + state["h"] @ params["u"] + noise)
    return {"h": h, "key": key}, h @ params["out"]


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Of one sample at one step."""
    return ((output - target) ** 2).sum()


def weights(key: jax.Array) -> Any:
    """Params of the step."""
    keys, shapes = jax.random.split(key, 3), {"w": (FEATURES, SIZE), "u": (SIZE, SIZE), "out": (SIZE, CLASSES)}
    return {name: 0.5 * jax.random.normal(one, shapes[name]) for name, one in zip(shapes, keys, strict=True)}


def captured(algorithm: pb.Algorithm, params: Any = None) -> tuple[pb.Learner, Any]:
    """The learner of one sample, and its params."""
    given = weights(jax.random.key(0)) if params is None else params
    state = {"h": jnp.zeros(SIZE), "key": jax.random.key(0)}
    return pb.capture_function(step, given, state, jnp.zeros(FEATURES), algorithm=algorithm)


def data(steps: int = STEPS, samples: int = SAMPLES, seed: int = 1) -> tuple[jax.Array, jax.Array]:
    """Inputs and what they were shortly before, `[T, B, ...]`: it can be learned."""
    inputs = jax.random.normal(jax.random.key(seed), (steps, samples, FEATURES))
    return inputs, (inputs + jnp.roll(inputs, 1, 0))[..., :CLASSES]
