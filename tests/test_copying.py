"""A capture copies whatever holds a part of a module, and refuses what it cannot copy."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import brainstate
import jax
import numpy as np
import pytest
from brainscale.nn import Linear, MinimalRNNCell
from brainstate.nn import Module

import pure_batching as pb
from pure_batching.errors import CaptureError

from .alive import assert_gradients_alive
from .models import N_IN, N_REC, squared

STEPS = 4


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Plain:
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Frozen:
    first: Any
    second: Any


@jax.tree_util.register_pytree_node_class
class Registered:
    """A container that JAX knows."""

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second

    def tree_flatten(self) -> Any:
        return (self.first, self.second), None

    @classmethod
    def tree_unflatten(cls, _: Any, children: Any) -> Any:
        return cls(*children)


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("first", "second")

    def __init__(self, first: Any, second: Any) -> None:
        self.first, self.second = first, second


def both(first: Module, second: Module, x: Any) -> Any:
    return second(first(x))


def in_turn(holder: Any, x: Any) -> Any:
    return both(holder.first, holder.second, x)


# What holds the two layers, and how it is called.
CONTAINERS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "NamedTuple": (Pair, in_turn),
    "dataclass": (Plain, in_turn),
    "frozen dataclass": (Frozen, in_turn),
    "registered pytree": (Registered, in_turn),
    "slots": (Slotted, in_turn),
    "partial": (lambda a, b: functools.partial(both, a, second=b), lambda f, x: f(x=x)),
    "default argument": (lambda a, b: lambda x, a=a, b=b: both(a, b, x), lambda f, x: f(x)),
    "closure": (lambda a, b: lambda x: both(a, b, x), lambda f, x: f(x)),
    "bound method": (lambda a, b: Plain(a.update, b.update), in_turn),
    "deque": (lambda a, b: collections.deque([a, b]), lambda d, x: both(d[0], d[1], x)),
    "nested": (lambda a, b: {"x": [Pair((a,), {"y": b})]}, lambda d, x: both(d["x"][0][0][0], d["x"][0][1]["y"], x)),
    "ordered dict": (lambda a, b: collections.OrderedDict(a=a, b=b), lambda d, x: both(d["a"], d["b"], x)),
}


class Holding(Module):
    """Two layers in a container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        make, self.call = CONTAINERS[kind]
        self.layer, self.cell = Linear(N_IN, N_IN), MinimalRNNCell(N_IN, N_REC)
        self.held = make(self.layer, self.cell)

    def update(self, x: Any) -> Any:
        return self.call(self.held, x)


class OnlyHolding(Holding):
    """Two layers that are nowhere but in the container."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        del self.layer, self.cell


# What BrainState finds modules in; of any other holder it initialises nothing.
FOUND = ("NamedTuple", "registered pytree", "nested", "ordered dict")


def state_of(module: Module) -> list[Any]:
    """All that a capture could change in a layer."""
    states = brainstate.graph.states(module).items()
    return [
        sorted(vars(module)),
        *((path, id(s), [id(x) for x in jax.tree.leaves(s.value)], getattr(s, "is_etrace", 0)) for path, s in states),
    ]


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("holding", [Holding, OnlyHolding])
def test_the_module_is_left_alone(kind: str, holding: type[Holding], seed: int) -> None:
    make, _ = CONTAINERS[kind]
    with brainstate.random.seed_context(seed):
        layers = Linear(N_IN, N_IN), MinimalRNNCell(N_IN, N_REC)
        net = holding(kind)
        net.held = make(*layers)
        if holding is Holding:
            net.layer, net.cell = layers
    before = [state_of(layer) for layer in layers]
    assert not hasattr(layers[1], "h")
    try:
        learner, params = pb.capture(net, np.ones(N_IN), algorithm=pb.ES_D_RTRL(0.9))
    except CaptureError:
        assert holding is OnlyHolding
        assert kind not in FOUND
    else:
        assert holding is Holding or kind in FOUND
        xs = np.random.default_rng(seed).uniform(0, 3, (STEPS, 2, N_IN))
        gradients, _ = pb.sequence_grad(pb.vmap(learner, 2), squared)(params, None, xs, np.ones((STEPS, 2)))
        assert_gradients_alive({path: gradients[path] for path in gradients if path.startswith(("cell", "held"))})
    assert [state_of(layer) for layer in layers] == before
    assert not hasattr(layers[1], "h")


class Sealed(Module):
    """A compiled function that closes over a layer, which nothing can copy."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = MinimalRNNCell(N_IN, N_REC)
        self.compiled = jax.jit(self.cell)

    def update(self, x: Any) -> Any:
        return self.compiled(x)


def test_what_cannot_be_copied_is_refused() -> None:
    net = Sealed()
    text = r"Sealed\.compiled: got a PjitFunction that holds a module or a state, expected an object that can be copied"
    with pytest.raises(CaptureError, match=text):
        pb.capture(net, np.ones(N_IN), algorithm=pb.ES_D_RTRL(0.9))
    assert not hasattr(net.cell, "h")
