"""A small recurrent function with noise, as a user of plain JAX has it, and how it is taken to other processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pure_batching as pb

Tree = Any

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


def in_another_process(code: str, *arguments: Path) -> str:
    """What a program prints that knows nothing of this process but its numbers of 64 bits."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environ = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environ, cwd=Path(__file__).parents[1], timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def specs(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def flattened(function: Callable[..., Tree], *arguments: Tree) -> tuple[Callable[..., Any], list[np.ndarray]]:
    """A function of arrays without units, names or key types, and the arguments as such arrays."""
    leaves, structure = jax.tree.flatten(arguments)
    are_keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]

    def raw(leaf: jax.Array) -> jax.Array:
        return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    def run(*arrays: jax.Array) -> list[jax.Array]:
        typed = [jax.random.wrap_key_data(a) if key else a for a, key in zip(arrays, are_keys, strict=True)]
        return [raw(leaf) for leaf in jax.tree.leaves(function(*jax.tree.unflatten(structure, typed)))]

    return run, [np.asarray(raw(leaf)) for leaf in leaves]
