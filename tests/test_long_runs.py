"""Runs that last: twenty thousand steps compile nothing after the first calls, keep nothing, and learn."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.monitoring
import jax.numpy as jnp
import optax
import pytest

import pure_batching as pb

from . import around
from .around import SAMPLES
from .bench import RULES

Tree = Any
CALLS, STEPS, WINDOW = 20, 1000, 10
KEY = jax.random.key(2)


def by_sequence_grad(learner: pb.Learner, optimizer: optax.GradientTransformation) -> Callable[..., Tree]:
    """An update after each call: a gradient in windows, as a user's own training loop has it."""
    grad_fn = pb.sequence_grad(learner, around.loss, window=WINDOW)

    def train(params: Tree, memory: Tree, carry: pb.Carry, inputs: jax.Array, targets: jax.Array) -> Tree:
        gradients, aux = grad_fn(params, carry, inputs, targets)
        updates, memory = optimizer.update(gradients, memory)
        return optax.apply_updates(params, updates), memory, aux

    return train


def by_online(learner: pb.Learner, optimizer: optax.GradientTransformation) -> Callable[..., Tree]:
    """An update after each window."""
    return pb.online(learner, around.loss, optimizer, every=WINDOW)


WAYS = {"sequence_grad": by_sequence_grad, "online": by_online}
RATES = {"sequence_grad": 0.05, "online": 0.01}


def begun(name: str, rule: str) -> tuple[Callable[..., Tree], Tree]:
    """A training, and its state."""
    learner, params = around.captured(RULES[rule])
    batched, optimizer = pb.vmap(learner, SAMPLES), optax.adam(RATES[name])
    return WAYS[name](batched, optimizer), (params, optimizer.init(params), batched.init(KEY))


@contextmanager
def compiled() -> Iterator[list[str]]:
    """The names of the programs that are compiled inside the block."""
    found: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith("backend_compile_duration"):
            found.append(f"{kwargs}, {duration_secs} s")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def alive() -> tuple[int, int]:
    """How many arrays there are, and their bytes."""
    gc.collect()
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays)


@pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published"])
@pytest.mark.parametrize("name", WAYS)
def test_twenty_thousand_steps(name: str, rule: str) -> None:
    train, state = begun(name, rule)
    data = [around.data(STEPS, seed=i) for i in range(2)]
    losses, arrays = [], []
    with compiled() as programs:
        for i in range(CALLS):
            params, memory, aux = train(*state, *data[i % 2])
            state = params, memory, aux.carry
            losses.append(float(aux.losses.mean()))
            del params, memory, aux
            if i == 1:
                assert programs  # or nothing was listened to
                programs.clear()
            arrays.append(alive())
    assert programs == []
    assert set(arrays[1:]) == {arrays[1]}
    pb.check_finite(state)
    assert state[2].update_count.tolist() == [CALLS * STEPS] * SAMPLES
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", WAYS)
def test_memory_does_not_grow_with_time(name: str) -> None:
    """A compiled training of four times as many steps needs no more beside its arguments and its losses."""
    train, state = begun(name, "D_RTRL published")

    def temporary(steps: int) -> int:
        specs = jax.eval_shape(lambda: around.data(steps))
        memory: Any = jax.jit(train).lower(*state, *specs).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert 0 < temporary(4 * STEPS) <= temporary(STEPS) + 2 * 3 * STEPS * SAMPLES * jnp.zeros(()).nbytes
