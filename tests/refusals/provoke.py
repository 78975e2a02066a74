"""What a wrong call needs: arguments that are changed, modules that are refused, and what an error must say."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from brainscale.nn import Linear
from brainstate import HiddenState, ShortTermState
from brainstate.nn import Module

import pure_batching as pb
from pure_batching.errors import PureBatchingError

from ..bench import SAMPLES, STEPS, Request, bench
from ..models import MODELS, N_IN, N_REC
from ..modules import Leaky

Tree = Any

Change = Callable[[Any], Any]

ES = pb.ES_D_RTRL(0.9)
SETTINGS = {"dt": 1.0 * u.ms}
FLAGS = np.ones((STEPS, SAMPLES), bool)


def same(value: Any) -> Any:
    return value


def first(change: Change) -> Change:
    """A change of the only argument."""
    return lambda inputs: (change(inputs[0]),)


def gradient(
    seed: int,
    name: str = "tutorial",
    *,
    inputs: Change = same,
    targets: Change = same,
    params: Change = same,
    carry: Any = None,
    precision: int = 64,
    **flags: Any,
) -> Any:
    """The gradient of a model whose arguments are changed."""
    made = bench(name, seed, precision=precision)
    given, wanted = made.data(STEPS, SAMPLES)
    return made.grad_fn(Request("vmap"))(params(made.params), carry, inputs(given), targets(wanted), **flags)


def fractions_for_whole_numbers() -> Any:
    """The step of a module that was captured with integers, given numbers between them."""
    net = Leaky(Linear(N_IN, N_REC), (N_REC,), is_recurrent=False)
    learner, params = pb.capture(net, np.zeros(N_IN, np.int64), algorithm=pb.ES_D_RTRL(0.9))
    return learner.step(params, learner.init(), np.full(N_IN, 0.5))


def step(
    seed: int,
    name: str = "tutorial",
    *,
    strategy: str | None = "vmap",
    inputs: Change = same,
    params: Change = same,
    carry: Change = same,
) -> Any:
    """A step of a model whose arguments are changed."""
    made = bench(name, seed)
    given, _ = made.data(*() if strategy is None else (SAMPLES,))
    return made.batched(strategy).step(params(made.params), carry(made.start(strategy)), *inputs(given))


def with_loss(seed: int, loss: Callable[..., Any]) -> Any:
    """A gradient of another loss."""
    made = bench("tutorial", seed)
    return pb.sequence_grad(made.batched("vmap"), loss)(made.params, None, *made.data(STEPS, SAMPLES))


def captured(net: Any, *examples: Tree, algorithm: Any = ES, environ: Any = SETTINGS) -> pb.Learner:
    return pb.capture(net, *examples, algorithm=algorithm, environ=environ)[0]


def forgotten_carry(seed: int) -> Any:
    """Inputs in the carry's place."""
    made = bench("tutorial", seed)
    return made.grad_fn(Request("vmap"))(made.params, *made.data(STEPS, SAMPLES))


def tutorial() -> Module:
    return MODELS["tutorial"].build(0)


def one_input() -> np.ndarray:
    return np.zeros(N_IN)


def other_start(seed: int, name: str, algorithm: pb.Algorithm | None = None, samples: int = SAMPLES) -> pb.Carry:
    return bench(name, seed, algorithm).start("vmap", samples)


def without(name: str) -> Change:
    return lambda tree: {key: value for key, value in tree.items() if key != name}


def mantissas(tree: Tree) -> Tree:
    return jax.tree.map(u.get_mantissa, tree, is_leaf=u.math.is_quantity)


def in_volts(tree: Tree) -> Tree:
    """The same quantities in another scale."""

    def convert(leaf: Any) -> Any:
        return leaf.in_unit(u.volt) if u.get_unit(leaf) == u.mV else leaf

    return jax.tree.map(convert, tree, is_leaf=u.math.is_quantity)


class _OneLayer(Module):
    """A cell, and what a kind of module does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = brainscale.nn.MinimalRNNCell(N_IN, N_REC)


class Growing(_OneLayer):
    """A state comes out of a step in another shape."""

    def init_state(self, *_: Any, **__: Any) -> None:
        self.memory = ShortTermState(jnp.zeros(()))

    def update(self, x: jax.Array) -> jax.Array:
        self.memory.value = self.memory.value + x
        return self.cell(x)


class Turning(_OneLayer):
    """A hidden state of complex numbers."""

    def init_state(self, *_: Any, **__: Any) -> None:
        self.z = HiddenState(jnp.zeros(N_REC, complex))

    def update(self, x: jax.Array) -> jax.Array:
        self.z.value = 0.5j * self.z.value + self.cell(x)
        return self.z.value.real


class Decaying(_OneLayer):
    """A step that changes its own weight."""

    def update(self, x: jax.Array) -> jax.Array:
        weight = self.cell.W_u.weight_op
        weight.value = {**weight.value, "bias": 0.9 * weight.value["bias"]}
        return self.cell(x)


class Impassable(Module):
    """A step that fails."""

    def update(self, x: jax.Array) -> jax.Array:
        raise RuntimeError("no way through")


class TwoShapes(Module):
    """One use of a weight before hidden states of two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = brainscale.nn.Linear(N_IN, N_REC)

    def init_state(self, *_: Any, **__: Any) -> None:
        self.one, self.many = HiddenState(jnp.zeros(N_REC)), HiddenState(jnp.zeros((2, N_REC)))

    def update(self, x: jax.Array) -> jax.Array:
        y = self.inp(x)
        self.one.value, self.many.value = 0.5 * self.one.value + y, 0.5 * self.many.value + y
        return self.one.value


class Typed(_OneLayer):
    """A hidden state of any dtype."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.dtype = dtype

    def init_state(self, *_: Any, **__: Any) -> None:
        self.h = HiddenState(jnp.zeros(N_REC, self.dtype))

    def update(self, x: jax.Array) -> jax.Array:
        y = self.cell(x)
        self.h.value = (self.h.value * 2 + y).astype(self.dtype)
        return y


class Summed(_OneLayer):
    """An output that forgets the batch axis."""

    def update(self, x: jax.Array) -> jax.Array:
        return self.cell(x).sum()


class Remembering(_OneLayer):
    """A state that forgets the batch axis."""

    def init_state(self, *_: Any, **__: Any) -> None:
        self.memory = ShortTermState(jnp.zeros(N_IN))

    def update(self, x: jax.Array) -> jax.Array:
        self.memory.value = jnp.atleast_2d(0.5 * self.memory.value + x).sum(0)
        return self.cell(x)


class Thinned(_OneLayer):
    """Inputs are left out by indices that a batch shares."""

    def update(self, x: jax.Array) -> jax.Array:
        return self.cell(x[..., brainstate.random.randint(0, N_IN, (N_IN,))])


class Flattened(_OneLayer):
    """Code that knows no batch axis."""

    def update(self, x: jax.Array) -> jax.Array:
        return self.cell(x.reshape(N_IN))


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What goes wrong, the error, and the beginning of its text, with `~` where some of it is left out."""

    name: str
    provoke: Callable[[int], Any]
    error: type[PureBatchingError]
    text: str

    @property
    def pattern(self) -> str:
        return "(?s)^" + ".*".join(map(re.escape, re.split(" ?~ ?", self.text)))
