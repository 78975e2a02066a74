"""One leaky layer, with its weight or its hidden state behind everything that JAX can put around a piece of a step."""

from collections.abc import Callable, Mapping
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
from brainscale.nn import Linear
from brainstate import HiddenState
from brainstate.nn import Module

from .modules import kaiming, state_of, zeros

Array = jax.Array
Function = Callable[..., Array]


def with_own_jvp(function: Function) -> Function:
    """A function with a derivative of its own, which is the same."""
    wrapped = jax.custom_jvp(function)
    wrapped.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return wrapped


def scaled(function: Function) -> Function:
    """A function with a derivative of its own and a number among its arguments."""
    wrapped = with_own_jvp(lambda scale, x, w: scale * function(x, w))
    return lambda x, w: wrapped(1.0, x, w)


def closed_over(function: Function) -> Function:
    """A jitted function in a checkpointed one in a jitted one."""
    return jax.jit(jax.checkpoint(jax.jit(function)))


SEEN_THROUGH: Mapping[str, Callable[[Function], Function]] = {
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "nested": closed_over,
}


@jax.custom_vjp
def rounded(x: Array) -> Array:
    """A step function, with the derivative of `tanh`."""
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), x), lambda x, dy: (dy * (1 - jnp.tanh(x) ** 2),))


class Wrapped(Module):
    """`h = decay h + tanh(W [x, h])`, read out by a plain matrix.

    Attributes:
      around_layer: what stands around the product of the input and the weight.
      around_state: what stands around the new hidden state.
      between: what leads from the product to the state.
    """

    def __init__(
        self,
        n_in: int,
        n_rec: int,
        *,
        around_layer: Callable[[Function], Function] = lambda f: f,
        around_state: Callable[[Function], Function] = lambda f: f,
        between: Function = jnp.tanh,
    ) -> None:
        super().__init__()
        self.n_rec, self.between = n_rec, between
        self.layer = Linear(n_in + n_rec, n_rec, w_init=kaiming(), b_init=zeros())
        self.other = Linear(n_in, n_rec, w_init=kaiming(), b_init=zeros())
        self.read = brainstate.nn.Linear(n_rec, 2)
        self.around_layer, self.leak = around_layer, around_state(lambda h: 0.7 * h)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.n_rec,), batch_size))

    def update(self, x: Array) -> Array:
        weight = self.layer.weight_op
        made = self.around_layer(weight.op)(jnp.concatenate([x, self.h.value], -1), weight.value)
        self.h.value = self.leak(self.h.value) + self.between(made) + 0.3 * self.other(x)
        return self.read(self.h.value)


def in_cond(function: Function) -> Function:
    return lambda x, *w: jax.lax.cond(x.sum() > -1e6, function, lambda *args: 2 * function(*args), x, *w)


def in_scan(function: Function) -> Function:
    def run(*args: Any) -> Array:
        return jax.lax.scan(lambda total, _: (total + 0.5 * function(*args), None), _zeros(function, *args), None, 2)[0]

    return run


def in_while(function: Function) -> Function:
    def run(x: Array, *w: Any) -> Array:
        start = (x.sum() * 0, _zeros(function, x, *w))
        return jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, function(x, *w)), start)[1]

    return run


class LoopedReadout(Module):
    """The hidden states of a leaky layer, read out by a product inside a while loop."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.cell, self.read = Wrapped(n_in, n_rec), Linear(n_rec, 2, w_init=kaiming(), b_init=zeros())

    def update(self, x: Array) -> Array:
        y, weight = self.cell(x), self.read.weight_op
        return y + in_while(weight.op)(self.cell.h.value, weight.value)


def _zeros(function: Function, *args: Any) -> Array:
    """Of the function's result, without a use of its weights."""
    return jnp.zeros(jax.eval_shape(function, *args).shape)


class Kinds(Module):
    """A weight of each kind that has no trace, beside one that has."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.traced = Linear(n_in, n_rec)
        self.plain = brainstate.nn.Linear(n_in, n_rec)
        self.untraced = brainscale.NonTempParam(kaiming()([n_in, n_rec]), lambda x, w: x @ w)
        self.wide = Linear(n_in, 2 * n_rec)
        self.stopped = Linear(n_in, n_rec)
        self.before = Linear(n_in, n_in)
        self.readout = Linear(n_rec, 3)
        self.idle = Linear(n_in, n_rec)
        self.n_rec = n_rec

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.n_rec,), batch_size))

    def update(self, x: Array) -> Array:
        new = 0.5 * self.h.value + self.traced(x) + self.plain(x) + self.untraced.execute(x)
        new += self.wide(x)[..., : self.n_rec] + jax.lax.stop_gradient(self.stopped(x))
        self.h.value = jnp.tanh(new + self.traced(self.before(x)))
        return self.readout(self.h.value)
