"""The private copy of a module: every container that can hold a module is copied, or refused."""

import collections
import dataclasses
import functools
import gc
import re
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Linear
from brainstate.nn import Module
from brainstate.util import DotDict, FrozenDict, NestedDict, PrettyList

import pure_batching as pb
from pure_batching._sources.copying import copy_module
from pure_batching.errors import CaptureError

from .models import N_IN, N_REC
from .modules import Leaky
from .test_capture import everything, modules_of, states_of
from .trees import assert_identical

Hold = Callable[[Module], Any]
Pick = Callable[[Any], Callable[[jax.Array], jax.Array]]


class Pair(NamedTuple):
    layer: Any
    size: int


@dataclasses.dataclass
class Plain:
    layer: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Registered:
    layer: Any
    size: int = dataclasses.field(default=3, metadata={"static": True})


@jax.tree_util.register_pytree_node_class
class Node:
    __slots__ = ("layer",)

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def tree_flatten(self) -> Any:
        return (self.layer,), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Node":
        return cls(*children)


class Own(Mapping[str, Any]):
    """A mapping that JAX does not know."""

    def __init__(self, **items: Any) -> None:
        self.items_of = items

    def __getitem__(self, name: str) -> Any:
        return self.items_of[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_of)

    def __len__(self) -> int:
        return len(self.items_of)


class Items(list):
    """A list of a user's own."""


def call(layer: Any, x: jax.Array) -> jax.Array:
    return layer(x)


def closing_over(layer: Any) -> Callable[[jax.Array], jax.Array]:
    def run(x: jax.Array) -> jax.Array:
        return layer(x)

    return run


def by_default(layer: Any) -> Callable[[jax.Array], jax.Array]:
    def run(x: jax.Array, layer: Any = layer) -> jax.Array:
        return layer(x)

    return run


# How to hold a layer, and how to find it there again.
WALKED: dict[str, tuple[Hold, Pick]] = {
    "list": (lambda layer: [layer], lambda held: held[0]),
    "tuple": (lambda layer: (layer, 3), lambda held: held[0]),
    "dict": (lambda layer: {"layer": layer}, lambda held: held["layer"]),
    "OrderedDict": (lambda layer: collections.OrderedDict(layer=layer), lambda held: held["layer"]),
    "defaultdict": (lambda layer: collections.defaultdict(list, layer=layer), lambda held: held["layer"]),
    "NamedTuple": (lambda layer: Pair(layer, 3), lambda held: held.layer),
    "registered dataclass": (Registered, lambda held: held.layer),
    "registered pytree": (Node, lambda held: held.layer),
    "Partial": (lambda layer: jax.tree_util.Partial(call, layer), lambda held: held),
    "PrettyList": (lambda layer: PrettyList([layer]), lambda held: held[0]),
    "DotDict": (lambda layer: DotDict(layer=layer), lambda held: held["layer"]),
    "FrozenDict": (lambda layer: FrozenDict({"layer": layer}), lambda held: held["layer"]),
    "NestedDict": (lambda layer: NestedDict({"layer": layer}), lambda held: held["layer"]),
    "in each other": (lambda layer: {"a": [Pair(Registered((layer,)), 3)]}, lambda held: held["a"][0].layer.layer[0]),
}

# BrainState does not look into these, so the layer is also an attribute of the module.
NOT_WALKED: dict[str, tuple[Hold, Pick]] = {
    "list of a user's own": (lambda layer: Items([layer]), lambda held: held[0]),
    "dataclass": (Plain, lambda held: held.layer),
    "mapping of a user's own": (lambda layer: Own(layer=layer), lambda held: held["layer"]),
    "partial": (lambda layer: functools.partial(call, layer), lambda held: held),
    "partial with a keyword": (lambda layer: functools.partial(lambda x, f: f(x), f=layer), lambda held: held),
    "method": (lambda layer: layer.update, lambda held: held),
    "closure": (closing_over, lambda held: held),
    "default of an argument": (by_default, lambda held: held),
    "set": (lambda layer: {layer}, lambda held: next(iter(held))),
    "deque": (lambda layer: collections.deque([layer], maxlen=2), lambda held: held[0]),
    "key of a dictionary": (lambda layer: {layer: 1}, lambda held: next(iter(held))),
    "weak reference": (weakref.ref, lambda held: held()),
    "namespace": (lambda layer: types.SimpleNamespace(layer=layer), lambda held: held.layer),
}
EVERY = {**WALKED, **NOT_WALKED}


class Holder(Module):
    """A layer in a container, and the same layer as an attribute where BrainState does not look into the container."""

    def __init__(self, name: str) -> None:
        super().__init__()
        with brainstate.random.seed_context(0):
            layer = Leaky(Linear(N_IN, N_REC), (N_REC,), is_recurrent=False)
        self.pick = name
        hold, _ = EVERY[name]
        self.held = hold(layer)
        if name in NOT_WALKED:
            self.layer = layer

    def update(self, x: jax.Array) -> jax.Array:
        _, pick = EVERY[self.pick]
        return pick(self.held)(x)


def captured(net: Module) -> tuple[pb.Learner, Any]:
    return pb.capture(net, jnp.ones(N_IN), algorithm=pb.ES_D_RTRL(0.9))


def after_some_steps(learner: pb.Learner, params: Any) -> Any:
    carry = learner.init(jax.random.key(0))
    for _ in range(2):
        carry, output = learner.step(params, carry, jnp.ones(N_IN))
    return output


@functools.cache
def of_a_list() -> Any:
    return after_some_steps(*captured(Holder("list")))


every_container = pytest.mark.parametrize("name", EVERY)


class TestContainers:
    """Whatever holds a layer, the layer of the learner is another one than the caller's."""

    @every_container
    def test_the_module_is_left_and_forgotten(self, name: str) -> None:
        """Capture and steps change nothing of it and keep nothing of it alive, and the step is that of the layer."""
        net = Holder(name)
        before = everything(net)
        learner, params = captured(net)
        got = after_some_steps(learner, params)
        assert everything(net) == before
        kept = [weakref.ref(thing) for thing in (*states_of(net).values(), *modules_of(net))]
        assert len(kept) > 2
        del net
        gc.collect()
        assert [type(ref()).__name__ for ref in kept if ref() is not None] == []
        assert len(learner.program.states.hidden) == 1
        assert_identical(after_some_steps(learner, params), got)
        assert_identical(got, of_a_list())

    @pytest.mark.parametrize("name", ["NamedTuple", "registered dataclass", "dataclass", "partial"])
    def test_of_an_initialised_module(self, name: str) -> None:
        net = Holder(name)
        brainstate.nn.init_all_states(net)
        net(jnp.ones(N_IN))
        before = everything(net)
        learner, params = captured(net)
        batched = pb.manual(learner, 2)
        batched.step(params, batched.init(), jnp.ones((2, N_IN)))
        assert everything(net) == before

    @every_container
    def test_types_stay(self, name: str) -> None:
        net = Holder(name)
        made: Any = copy_module(net)
        assert type(made.held) is type(net.held)
        assert made.held is not net.held
        assert not {id(module) for module in modules_of(made)} & {id(module) for module in modules_of(net)}

    def test_one_object_stays_one(self) -> None:
        net: Any = Holder("dataclass")
        net.again, net.pair = net.held, Pair(net.held, 3)
        made: Any = copy_module(net)
        assert made.again is made.held is made.pair.layer
        assert made.held.layer is made.layer

    def test_a_circle(self) -> None:
        net: Any = Holder("dataclass")
        net.held.owner, net.ring = net, [net]
        net.ring.append(net.ring)
        made: Any = copy_module(net)
        assert made.held.owner is made
        assert made.ring[0] is made
        assert made.ring[1] is made.ring

    def test_what_holds_no_module_is_shared(self) -> None:
        net: Any = Holder("list")
        net.array, net.plain = np.ones(3), Plain(np.ones(3))
        made: Any = copy_module(net)
        assert made.array is net.array
        assert made.plain is net.plain

    def test_a_list_without_modules_is_not_shared(self) -> None:
        net: Any = Holder("list")
        net.log = []
        assert copy_module(net).log is not net.log


REFUSED: dict[str, tuple[Hold, str]] = {
    "jitted function": (lambda layer: jax.jit(closing_over(layer)), "PjitFunction"),
    "iterator": (lambda layer: iter([layer]), "list_iterator"),
    "view": (lambda layer: types.MappingProxyType({"layer": layer}), "mappingproxy"),
    "array of objects": (lambda layer: np.array([layer, None], dtype=object), "ndarray"),
}


class TestRefusals:
    """What cannot be copied is refused with its place."""

    @pytest.mark.parametrize("name", REFUSED)
    def test_by_name(self, name: str) -> None:
        hold, kind = REFUSED[name]
        net: Any = Holder("dataclass")
        net.held.more = [hold(net.layer)]
        expected = (
            f"Holder.held.more[0]: got a {kind} that holds a module or a state, expected an object that can be copied"
        )
        with pytest.raises(CaptureError, match=re.escape(expected) + r".* belongs inside update\(\)\."):
            captured(net)

    @pytest.mark.parametrize("name", REFUSED)
    def test_not_where_there_is_no_module(self, name: str) -> None:
        hold, _ = REFUSED[name]
        net: Any = Holder("list")
        net.more = hold(jnp.tanh)
        assert copy_module(net).more is net.more
