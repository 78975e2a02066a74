"""The meaning of every strategy, `step` and `jax.grad` in Python loops, for the models of the registry."""

import functools

import jax

import pure_batching as pb
from pure_batching.testing import _stepped as stepped

from .bench import Bench, Data, Result
from .trees import joined_carries


def one_sample(bench: Bench, carry: pb.Carry, data: Data) -> Result:
    """A sequence `[T, ...]` of one sample, step by step."""
    done = stepped.one_sample(bench.case(data), 0, carry, data, stepped.every_step(data.steps))
    return Result(done.gradients, pb.Aux(done.carry, done.losses, done.outputs))


def by_hand(bench: Bench, carry: pb.Carry, data: Data) -> Result:
    """A batch `[T, B, ...]`, sample by sample."""
    done = stepped.stepped(bench.case(data), carry, data, {})
    return Result(done.gradients, pb.Aux(done.carry, done.losses, done.outputs))


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
