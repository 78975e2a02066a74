"""Modules whose products are mixed before they reach the states: a complete rule promises no trace that is wrong."""

from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Linear
from brainstate import HiddenGroupState, HiddenState

import pure_batching as pb
from pure_batching.testing._alive import assert_gradients_alive

from .bench import RULES
from .test_function import normal, squared
from .trees import assert_close

STEPS, INPUTS, NEURONS = 5, 3, 4
FIXED = np.asarray(normal(NEURONS, NEURONS, seed=5))
D, EXACT = RULES["D_RTRL published"], RULES["BPTT"]
COMPLETE = [
    name for name, rule in RULES.items() if rule.is_complete and name not in ("BPTT", "RTRL", "D_RTRL published")
]


class Mixed(brainstate.nn.Module):
    """`h = h / 2 + change(W x)`."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        with brainstate.random.seed_context(0):
            self.inp, self.change = Linear(INPUTS, NEURONS), change

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(jnp.zeros((NEURONS,) if batch_size is None else (batch_size, NEURONS)))

    def update(self, x: jax.Array) -> jax.Array:
        h: Any = 0.5 * self.h.value + self.change(self.inp(x))
        self.h.value = h
        return jnp.tanh(h)


# Each element of the product reaches several neurons.
MIXING: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "a layer's norm": lambda: brainscale.nn.LayerNorm((NEURONS,)),
    "a norm without weights": lambda: jax.nn.standardize,
    "softmax": lambda: jax.nn.softmax,
    "a running sum": lambda: lambda y: jnp.cumsum(y, -1),
    "a fixed matrix": lambda: lambda y: y @ FIXED,
}

# Each element of the product reaches one neuron.
MOVING: dict[str, Callable[[], Callable[[Any], Any]]] = {
    "turned round": lambda: lambda y: y[..., ::-1],
    "rolled": lambda: lambda y: jnp.roll(y, 1, -1),
    "a norm with kept statistics": lambda: brainscale.nn.BatchNorm0d((NEURONS,)),
}


def captured(change: Callable[[], Any], rule: pb.Algorithm) -> tuple[pb.Learner, Any]:
    return pb.capture(Mixed(change()), jnp.zeros(INPUTS), algorithm=rule, environ={"fit": False})


def gradient(change: Callable[[], Any], rule: pb.Algorithm, steps: int, **options: Any) -> Any:
    learner, params = captured(change, rule)
    return pb.sequence_grad(learner, squared, **options)(
        params, None, 2 * normal(steps, INPUTS, seed=1), np.ones(steps)
    )[0]


def way(learner: pb.Learner) -> Any:
    """How the product in front learns."""
    (row,) = [row for row in pb.explain(learner).rows if row.weight == "inp.weight_op"]
    return row


@pytest.mark.parametrize("name", MIXING)
def test_one_step_equals_backpropagation(name: str) -> None:
    row = way(captured(MIXING[name], D)[0])
    assert (row.way, row.traces, row.incomplete) == ("gradient of the step", {}, "")
    assert row.reason.startswith("its output is mixed or copied at ")
    assert row.reason.endswith(" before it reaches h")
    got = gradient(MIXING[name], D, 1)
    assert_gradients_alive(got)
    assert_close(got, gradient(MIXING[name], EXACT, 1))


@pytest.mark.parametrize("rule", COMPLETE)
def test_so_it_does_with_every_complete_rule(rule: str) -> None:
    change = MIXING["a layer's norm"]
    got = gradient(change, RULES[rule], 1)
    assert_gradients_alive(got)
    assert_close(got, gradient(change, EXACT, 1))


@pytest.mark.parametrize("name", MOVING)
def test_a_sequence_of_what_is_moved_equals_backpropagation(name: str) -> None:
    assert way(captured(MOVING[name], D)[0]).way == "trace"
    got = gradient(MOVING[name], D, STEPS, window=2)
    assert_gradients_alive(got)
    assert_close(got, gradient(MOVING[name], EXACT, STEPS))


@pytest.mark.parametrize("name", ["a layer's norm", "turned round"])
def test_strategies_are_interchangeable(name: str) -> None:
    learner, params = captured({**MIXING, **MOVING}[name], D)
    inputs, targets = 2 * normal(STEPS, 2, INPUTS, seed=1), np.ones((STEPS, 2, NEURONS))
    one, other = (
        pb.sequence_grad(by(learner, 2), squared, window=2, reduction="none")(params, None, inputs, targets)[0]
        for by in (pb.loop, pb.manual)
    )
    assert_gradients_alive(one)
    assert_close(one, other)


class Pair(brainstate.nn.Module):
    """Two states in one array, of which the product reaches one."""

    def __init__(self) -> None:
        super().__init__()
        with brainstate.random.seed_context(0):
            self.inp = Linear(INPUTS, NEURONS)

    def init_state(self, *_: Any, **__: Any) -> None:
        self.pair = HiddenGroupState(jnp.zeros((NEURONS, 2)))

    def update(self, x: jax.Array) -> Any:
        slow, fast = self.pair.get_value(0), self.pair.get_value(1)
        self.pair.set_value([0.9 * slow + 0.2 * fast, 0.5 * fast - 0.1 * slow + jnp.tanh(self.inp(x))])
        return self.pair.get_value(0)


def test_states_in_one_array_are_followed() -> None:
    inputs, found = 2 * normal(STEPS, INPUTS, seed=1), []
    for rule, window in ((D, 2), (EXACT, None)):
        learner, params = pb.capture(Pair(), inputs[0], algorithm=rule)
        assert (way(learner).way, way(learner).groups) == ("trace", ("pair",))
        found.append(pb.sequence_grad(learner, squared, window=window)(params, None, inputs, np.ones(STEPS))[0])
    assert_gradients_alive(found[0])
    assert_close(*found)


class TestDefaultRule:
    """It has BrainScale's numbers, and says what is wrong with them."""

    @pytest.mark.parametrize("name", MIXING)
    def test_says_where_it_is_mixed(self, name: str) -> None:
        row = way(captured(MIXING[name], RULES["D_RTRL"])[0])
        assert row.way == "trace"
        start = "takes each element of its output for one that stays in its place, although its output "
        assert row.incomplete.startswith(f"{start}is mixed or copied at ")
        assert row.incomplete.endswith(" before it reaches h")

    @pytest.mark.parametrize("name", ["turned round", "rolled"])
    def test_says_that_it_is_moved(self, name: str) -> None:
        row = way(captured(MOVING[name], RULES["D_RTRL"])[0])
        assert row.way == "trace"
        assert row.incomplete.endswith("although its output reaches h in another order")

    def test_says_nothing_of_what_stays_in_place(self) -> None:
        for change in (MOVING["a norm with kept statistics"], lambda: jnp.tanh):
            row = way(captured(change, RULES["D_RTRL"])[0])
            assert (row.way, row.incomplete) == ("trace", "")
