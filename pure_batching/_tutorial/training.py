"""The tutorial's training as pure functions, for any strategy, and what two strategies are compared by."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import brainscale
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pure_batching as pb

from .net import Dataset

Builder = Callable[[], pb.Learner]
Params = Any
Step = Callable[[Params, Any, Dataset], tuple[Params, Any, jax.Array]]


class Training(NamedTuple):
    """What the training with one strategy gave.

    Attributes:
      strategy: its name.
      params: after the last update.
      losses: the mean over the steps of all samples, before each update.
      compile_seconds: from the learner of one sample to the compiled training step.
      samples_per_second: sequences per second of a compiled training step, the median epoch.
    """

    strategy: str
    params: Params
    losses: list[float]
    compile_seconds: float
    samples_per_second: float


def loss(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross entropy of one sample at one step."""
    return braintools.metric.softmax_cross_entropy_with_integer_labels(logits, label)


def make_optimizer() -> optax.GradientTransformation:
    """Clipping, then Adam, as in the tutorial; quantities are trees, of which optax sees the mantissas."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def make_step(batched: pb.Learner, optimizer: optax.GradientTransformation) -> Step:
    """`(params, optimizer state, dataset) -> (params, optimizer state, loss)`: one epoch."""
    grad_fn = pb.sequence_grad(batched, loss)

    def step(params: Params, state: Any, data: Dataset) -> tuple[Params, Any, jax.Array]:
        gradients, aux = grad_fn(params, None, *_arguments(data), mask=data.mask)
        updates, state = optimizer.update(gradients, state)
        trained: Any = optax.apply_updates(params, updates)
        return trained, state, aux.losses.sum() / (aux.losses.size if data.mask is None else data.mask.sum())

    return step


def train(
    name: str, build: Builder, params: Params, data: Dataset, *, epochs: int, tick: Callable[[], None]
) -> Training:
    """Train from `params` for some epochs.

    Args:
      name: the strategy's name.
      build: makes the batched learner.
      params: where the training starts.
      data: the whole batch, used once in each epoch.
      epochs: how many updates.
      tick: called after compiling and after each epoch.
    """
    optimizer = make_optimizer()
    state = optimizer.init(params)
    start = time.perf_counter()
    step = jax.jit(make_step(build(), optimizer)).lower(params, state, data).compile()
    compile_seconds = time.perf_counter() - start
    tick()
    losses, seconds = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        params, state, value = step(params, state, data)
        losses.append(float(value))  # waits for the epoch to end
        seconds.append(time.perf_counter() - start)
        tick()
    return Training(name, params, losses, compile_seconds, len(data.labels) / float(np.median(seconds)))


def sample_gradients(batched: pb.Learner, params: Params, data: Dataset) -> Params:
    """Each sample's own gradient, `[B, *param.shape]` by path."""
    grad_fn = pb.sequence_grad(batched, loss, reduction="none")
    gradients, _ = grad_fn(params, None, *_arguments(data), mask=data.mask)
    return gradients


def accuracy(batched: pb.Learner, params: Params, data: Dataset) -> float:
    """The share of sequences, with a mask, whose class has the largest logit, summed over the sequence's own steps."""

    @jax.jit
    def said(params: Params, data: Dataset) -> jax.Array:
        def one(carry: pb.Carry, now: Any) -> tuple[pb.Carry, jax.Array]:
            x, has_step = now
            carry, logits = batched.step(params, carry, x)
            return carry, jnp.where(has_step[:, None], logits, 0)

        return jax.lax.scan(one, batched.init(), (data.inputs, data.mask))[1].sum(0).argmax(-1)

    return float((said(jax.device_get(params), data) == data.labels).mean())


def _arguments(data: Dataset) -> tuple[jax.Array, Any]:
    """Inputs, and targets that are the same at every step."""
    return data.inputs, brainscale.SingleStepData(data.labels)


def first_potentials(alone: pb.Learner, params: Params, data: Dataset, path: str) -> Any:
    """The first sample's potentials after each of its steps, `[steps, neurons]`.

    Args:
      alone: the learner of a batch of one sample.
      params: in use.
      data: of all samples; they may lie on several devices.
      path: of the potentials in `carry.hidden`.
    """
    params, inputs, mask = jax.device_get((params, data.inputs, data.mask))

    def one(carry: pb.Carry, x: jax.Array) -> tuple[pb.Carry, Any]:
        carry, _ = alone.step(params, carry, x)
        return carry, carry.hidden[path][0]

    steps = inputs[:, :1] if mask is None else inputs[mask[:, 0], :1]
    return jax.lax.scan(one, alone.init(), steps)[1]


def sample_differences(first: Params, second: Params) -> np.ndarray:
    """How far two strategies' gradients of each sample lie apart, `[B]`.

    The largest difference over all entries, each relative to the largest entry that any sample has in the same weight.
    """
    pairs = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return np.max([_relative(np.asarray(a), np.asarray(b)) for a, b in pairs], axis=0)


def _relative(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    largest = max(np.abs(first).max(), np.finfo(first.dtype).tiny)  # a weight without any gradient differs by 0
    return np.abs(first - second).reshape(len(first), -1).max(axis=1) / largest
