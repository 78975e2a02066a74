"""The published D_RTRL equals backpropagation, whatever stands in a group and whatever the output reads.

No neuron reaches another from one step to the next here; within a neuron every hidden state reaches every other one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import brainscale
import brainstate
import braintrace
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb

from .alive import assert_gradients_alive
from .bench import RULES
from .trees import distance, named

STEPS, SAMPLES, N_IN, N_REC = 6, 3, 3, 4
EXACT = 1e-9

States = Sequence[Any]


def drawn(*shape: int) -> Any:
    return np.random.default_rng(shape).standard_normal(shape)


def advanced(states: States, y: Any) -> list[Any]:
    """The new states of a group, each made of all old ones and of the product."""
    mix = 0.7 * drawn(len(states), len(states))
    return [
        jnp.tanh(sum(weight * jnp.sin(old) for weight, old in zip(row, states, strict=True)) + (0.3 * y**2, y)[n % 2])
        + 0.5 * states[n]
        for n, row in enumerate(mix)
    ]


# What the output is made of: the product `y`, the states before and after the step, and the input.
READS: Mapping[str, Callable[[Any, States, States, Any], Any]] = {
    "new states": lambda y, old, new, x: sum(new),
    "old states": lambda y, old, new, x: 1.3 * sum(old),
    "the product": lambda y, old, new, x: new[-1] + jnp.sin(y),
    "the input": lambda y, old, new, x: new[0] * x.sum(-1, keepdims=True),
    "everything": lambda y, old, new, x: (
        new[-1] * (1 - old[0]) * jnp.cos(y) + old[-1] * y + new[0] * x.sum(-1, keepdims=True)
    ),
}


class Group(brainstate.nn.Module):
    """A group of hidden states behind a layer of one package or the other."""

    def __init__(self, layer: Any, number: int, read: Any) -> None:
        super().__init__()
        with brainstate.random.seed_context(0):
            self.layer = layer(N_IN, N_REC)
        self.number, self.read = number, read

    def init_state(self, *_: Any, **__: Any) -> None:
        self.states_of_group = [brainstate.HiddenState(jnp.zeros(N_REC)) for _ in range(self.number)]

    def update(self, x: Any) -> Any:
        y, old = self.layer(x), [state.value for state in self.states_of_group]
        new = advanced(old, y)
        for state, value in zip(self.states_of_group, new, strict=True):
            state.value = value
        return self.read(y, old, new, x)


def of_module(layer: Any) -> Any:
    return lambda number, read, rule: pb.capture(Group(layer, number, read), jnp.zeros(N_IN), algorithm=rule)


def of_function(number: int, read: Any, rule: pb.Algorithm) -> Any:
    def step(params: Any, states: Any, x: Any) -> Any:
        y = x @ params["weight"] + params["bias"]
        new = advanced(states, y)
        return new, read(y, states, new, x)

    params = {"weight": drawn(N_IN, N_REC), "bias": drawn(N_REC)}
    return pb.capture_function(step, params, [jnp.zeros(N_REC)] * number, jnp.zeros(N_IN), algorithm=rule)


SOURCES = {
    "BrainScale": of_module(brainscale.nn.Linear),
    "BrainTrace": of_module(braintrace.nn.Linear),
    "function": of_function,
}


def squared(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).sum()


@pytest.mark.parametrize("window", [2, None])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_equals_backpropagation(number: int, read: str, source: str, window: int | None) -> None:
    (learner, params), (exact, _) = (
        SOURCES[source](number, READS[read], RULES[rule]) for rule in ("D_RTRL published", "BPTT")
    )
    (shapes, *_) = [row.traces for row in pb.explain(learner).rows if row.traces]
    assert {shape[-1] for shape in shapes.values()} == {number}
    data = drawn(STEPS, SAMPLES, N_IN), drawn(STEPS, SAMPLES, N_REC)
    got, want = (
        pb.sequence_grad(pb.vmap(one, SAMPLES), squared, reduction="none", window=length)(params, None, *data)[0]
        for one, length in ((learner, window), (exact, None))
    )
    assert_gradients_alive(got)
    assert max(distance(one, other) for (_, one), (_, other) in zip(named(got), named(want), strict=True)) < EXACT
