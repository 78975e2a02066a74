"""The tutorial's network as a plain JAX function of one step, in mV and ms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

THRESHOLD = 1.0
TIME_CONSTANT = 5.0  # of the neurons and of the readout; a step is 1

Params = dict[str, jax.Array]
State = tuple[jax.Array, jax.Array]


@jax.custom_jvp
def spike(x: jax.Array) -> jax.Array:
    """A step, whose derivative is that of `brainpy.state.LIF`."""
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return spike(x), 0.3 * jax.nn.relu(1 - jnp.abs(x)) * dx


def step(params: Params, state: State, x: jax.Array) -> tuple[State, jax.Array]:
    """One step.

    Args:
      params: `weight` `[features + hidden, hidden]`, `bias` `[hidden]` and `out` `[hidden, classes]`.
      state: potentials `[hidden]` and rates `[classes]`.
      x: `[features]`.

    Returns:
      the next state, and the logits, `[classes]`, which are the rates.
    """
    potential, rates = state
    decay = np.exp(-1 / TIME_CONSTANT).astype(potential.dtype)
    before = spike(potential - THRESHOLD)
    given = jnp.concatenate([x, before], -1) @ params["weight"] + params["bias"]
    potential = decay * (potential - before) + given
    rates = decay * rates + spike(potential - THRESHOLD) @ params["out"]
    return (potential, rates), rates
