"""The meaning of every strategy, as a program that anyone can read: `step` and `jax.grad` in Python loops."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import pure_batching as pb

from .bench import Bench, Data, Result
from .trees import Tree, joined, joined_carries, sample, sample_of_carry


@functools.cache
def step_gradient(bench: Bench) -> Callable[..., Any]:
    """`(params, carry, inputs, target) -> ((loss, (carry, output)), gradient)` of one sample and one step."""

    def value(params: Tree, carry: pb.Carry, inputs: tuple[Tree, ...], target: Tree) -> Any:
        carry, output = bench.learner.step(params, carry, *inputs)
        return bench.model.loss(output, target), (carry, output)

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def one_sample(bench: Bench, carry: pb.Carry, data: Data) -> Result:
    """A sequence `[T, ...]` of one sample, step by step."""
    steps = jax.tree.leaves(data)[0].shape[0]
    total, losses, outputs = jax.tree.map(jnp.zeros_like, bench.params), [], []
    for t in range(steps):
        inputs, target = sample(data, t)
        (loss, (carry, output)), gradient = step_gradient(bench)(bench.params, carry, inputs, target)
        total = jax.tree.map(jnp.add, total, gradient)
        losses.append(loss)
        outputs.append(output)
    return Result(total, pb.Aux(carry, jnp.stack(losses), joined(outputs)))


def by_hand(bench: Bench, carry: pb.Carry, data: Data) -> Result:
    """A batch `[T, B, ...]`, sample by sample."""
    samples = jax.tree.leaves(data)[0].shape[1]
    results = [one_sample(bench, sample_of_carry(carry, i), sample(data, i, axis=1)) for i in range(samples)]
    carry = joined_carries([result.aux.carry for result in results])
    losses = joined([result.aux.losses for result in results], axis=1)
    outputs = joined([result.aux.outputs for result in results], axis=1)
    return Result(joined([result.gradients for result in results]), pb.Aux(carry, losses, outputs))


@functools.cache
def expected(bench: Bench, samples: int, steps: int) -> Result:
    """What every strategy must give for the model's own data, from a fresh start; made once."""
    return by_hand(bench, fresh(bench, samples), bench.data(steps, samples))


@functools.cache
def fresh(bench: Bench, samples: int) -> pb.Carry:
    """A fresh carry, sample by sample."""
    return fresh_with(bench, samples, jax.random.key(0))


def fresh_with(bench: Bench, samples: int, key: jax.Array) -> pb.Carry:
    """A fresh carry whose sample `i` begins with the key folded with `i`."""
    return joined_carries([bench.learner.init(jax.random.fold_in(key, i)) for i in range(samples)])
