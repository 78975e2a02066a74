"""Small BrainScale modules, one for each way in which a step can be built; nothing here knows how it is tested."""

from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from brainpy.state import CUBA, LIF, AlignPostProj, Expon
from brainscale import ElemWiseParam, NonTempParam
from brainscale.nn import BatchNorm1d, Conv1d, Conv2d, LeakyRateReadout, Linear, LoRA, MinimalRNNCell, SignedWLinear
from brainstate import HiddenGroupState, HiddenState, ShortTermState
from brainstate.nn import Delay, Dropout, Module

Array = jax.Array

kaiming = braintools.init.KaimingNormal
zeros = braintools.init.ZeroInit
orthogonal = braintools.init.Orthogonal

try:
    from brainpy.state import DeltaProj
except ImportError:
    from brainstate.nn import DeltaProj


def stacked(rows: tuple[int, int], columns: int, unit: Any) -> Any:
    """Feed-forward weights over recurrent weights, as the tutorial draws them."""
    draw = kaiming(unit=unit)
    return u.math.concatenate([draw([size, columns]) for size in rows], axis=0)


def state_of(size: tuple[int, ...], batch_size: int | None) -> Array:
    """A hidden state's zeros in the precision in force."""
    return braintools.init.param(zeros(), size, batch_size)


class LIFNet(Module):
    """The tutorial's network: recurrent spiking neurons with delta synapses, and a leaky readout."""

    def __init__(self, n_in: int, n_rec: int, n_out: int) -> None:
        super().__init__()
        self.neu = LIF(n_rec)
        weight = stacked((n_in, n_rec), n_rec, u.mV)
        linear = Linear(n_in + n_rec, n_rec, w_init=weight, b_init=zeros(unit=u.mV))
        self.syn = DeltaProj(comm=linear, post=self.neu)
        self.out = LeakyRateReadout(n_rec, n_out)

    def update(self, x: Array) -> Array:
        self.syn(u.math.concatenate([x, self.neu.get_spike()], axis=-1))
        return self.out(self.neu())


class ExponNet(Module):
    """Recurrent spiking neurons with exponential current synapses."""

    def __init__(self, n_in: int, n_rec: int, neuron: type) -> None:
        super().__init__()
        self.neu = neuron(n_rec, tau=5.0 * u.ms)
        weight = stacked((n_in, n_rec), n_rec, u.mS)
        linear = Linear(n_in + n_rec, n_rec, w_init=weight, b_init=zeros(unit=u.mS))
        synapse, current = Expon.desc(n_rec, tau=10.0 * u.ms), CUBA.desc()
        self.syn = AlignPostProj(comm=linear, syn=synapse, out=current, post=self.neu)

    def update(self, x: Array) -> Array:
        self.syn(jnp.concatenate([x, self.neu.get_spike()], axis=-1))
        return self.neu()


class RandomStart(Module):
    """Spiking neurons that start from random potentials, and draw nothing afterwards."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.neu = LIF(n_rec, V_initializer=braintools.init.Uniform(0.0 * u.mV, 1.0 * u.mV))
        self.syn = DeltaProj(comm=Linear(n_in, n_rec, w_init=kaiming(unit=u.mV), b_init=None), post=self.neu)

    def update(self, x: Array) -> Array:
        self.syn(x)
        return self.neu()


class ConvSpikes(Module):
    """A one-dimensional convolution onto spiking neurons of the same shape."""

    def __init__(self, size: tuple[int, int], channels: int) -> None:
        super().__init__()
        comm = Conv1d(size, channels, 3, w_init=kaiming(unit=u.mV), b_init=zeros(unit=u.mV))
        self.neu = LIF(comm.out_size)
        self.syn = DeltaProj(comm=comm, post=self.neu)

    def update(self, x: Array) -> Array:
        self.syn(x)
        return self.neu()


class Leaky(Module):
    """`h = decay h + layer([x, h])`, with or without the recurrent part: one hidden state around any layer."""

    def __init__(self, layer: Module, size: tuple[int, ...], *, is_recurrent: bool, decay: float = 0.7) -> None:
        super().__init__()
        self.layer, self.size, self.is_recurrent, self.decay = layer, size, is_recurrent, decay

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of(self.size, batch_size))

    def update(self, x: Array) -> Array:
        given = jnp.concatenate([x, self.h.value], axis=-1) if self.is_recurrent else x
        self.h.value = self.decay * self.h.value + jnp.tanh(self.layer(given))
        return self.h.value


def conv_rates(size: tuple[int, int, int], channels: int) -> Module:
    layer = Conv2d(size, channels, (3, 2), w_init=kaiming(), b_init=zeros())
    return Leaky(layer, layer.out_size, is_recurrent=False)


def lora(n_in: int, n_rec: int, rank: int) -> Module:
    layer = LoRA(n_in + n_rec, rank, n_rec, B_init=orthogonal(), A_init=orthogonal())
    return Leaky(layer, (n_rec,), is_recurrent=True)


def masked(n_in: int, n_rec: int) -> Module:
    mask = (jnp.arange((n_in + n_rec) * n_rec).reshape(-1, n_rec) % 3 != 0) * 1.0
    return Leaky(Linear(n_in + n_rec, n_rec, w_mask=mask), (n_rec,), is_recurrent=True)


def signed(n_in: int, n_rec: int) -> Module:
    sign = jnp.where(jnp.arange(n_in + n_rec) % 2 == 0, 1.0, -1.0)[:, None] * jnp.ones((1, n_rec))
    return Leaky(
        SignedWLinear(n_in + n_rec, n_rec, w_init=kaiming(scale=0.05), w_sign=sign), (n_rec,), is_recurrent=True
    )


class ElementWise(Module):
    """`h = sigmoid(a) h + g W x`: two element-wise weights around a matrix."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.size = n_rec
        self.leak = ElemWiseParam(brainstate.random.randn(n_rec), op=jax.nn.sigmoid)
        self.gain = ElemWiseParam(1.0 + brainstate.random.rand(n_rec))
        self.inp = Linear(n_in, n_rec, b_init=None)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.size,), batch_size))

    def update(self, x: Array) -> Array:
        self.h.value = self.leak.execute() * self.h.value + self.gain.execute() * self.inp(x)
        return self.h.value


class PastHidden(Module):
    """The output reads products of weights and old states, past the new ones, and a weight has two kinds of uses.

    D_RTRL is exact: each hidden element depends on its own past alone.
    """

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.size, self.inp, self.both = n_rec, Linear(n_in, n_rec), Linear(n_in, n_rec)
        self.gain = ElemWiseParam(1.0 + brainstate.random.rand(n_rec))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = HiddenState(state_of((self.size,), batch_size))
        self.s = HiddenState(state_of((self.size,), batch_size))

    def update(self, x: Array) -> Array:
        product, gain, v, s = self.inp(x), self.gain.execute(), self.v.value, self.s.value
        self.v.value = 0.6 * v + gain * jnp.tanh(product) + self.both(jnp.cos(x))
        self.s.value = 0.5 * s + jnp.sin(self.v.value)
        return jnp.sin(product) * v + self.s.value * (1 - s) + gain * self.both(v[..., : x.shape[-1]])


class Gated(Module):
    """Two arguments: `h = gate h + tanh(W x)`."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.size, self.inp = n_rec, Linear(n_in, n_rec)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.size,), batch_size))

    def update(self, x: Array, gate: Array) -> Array:
        self.h.value = jax.nn.sigmoid(gate) * self.h.value + jnp.tanh(self.inp(x))
        return self.h.value


class Trees(Module):
    """A tree as the argument and a tree as the result, with a unit in each."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.size, self.left, self.right = n_rec, Linear(n_in, n_rec), Linear(n_in, n_rec, b_init=None)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.size,), batch_size) * u.mV)

    def update(self, given: dict[str, Any]) -> dict[str, Any]:
        current, (bias,) = given["current"].to_decimal(u.mA), given["others"]
        new = 0.6 * self.h.value + jnp.tanh(self.left(current)) * u.mV + self.right(jnp.sin(bias)) * u.mV
        self.h.value = new
        return {"potential": new, "parts": (new.to_decimal(u.mV), jnp.tanh(new.to_decimal(u.mV)))}


class UsedTwice(Module):
    """One weight for the input and for the recurrent connections."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.both = size, Linear(size, size, w_init=orthogonal())

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.size,), batch_size))

    def update(self, x: Array) -> Array:
        self.h.value = jnp.tanh(self.both(x) + self.both(self.h.value)) + 0.3 * self.h.value
        return self.h.value


class GroupState(Module):
    """Two states kept in one array, that feed each other."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.size, self.inp = n_rec, Linear(n_in + n_rec, n_rec)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.pair = HiddenGroupState(state_of((self.size, 2), batch_size))

    def update(self, x: Array) -> Array:
        slow, fast = self.pair.get_value(0), self.pair.get_value(1)
        current = jnp.tanh(self.inp(jnp.concatenate([x, fast], axis=-1)))
        self.pair.set_value([0.9 * slow + 0.2 * fast, 0.5 * fast - 0.1 * slow + current])
        return self.pair.get_value(0)


class Ring(Module):
    """Hidden states of which each feeds the next within a step, and the last one the first in the next step."""

    def __init__(self, n_in: int, n_rec: int, count: int) -> None:
        super().__init__()
        self.size, self.count, self.inp = n_rec, count, Linear(n_in, n_rec)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        for i in range(self.count):
            setattr(self, f"h{i}", HiddenState(state_of((self.size,), batch_size)))

    def update(self, x: Array) -> Array:
        states = [getattr(self, f"h{i}") for i in range(self.count)]
        fed = self.inp(x) + 0.3 * jnp.sin(states[-1].value)
        for i, state in enumerate(states):
            state.value = (0.8 - 0.1 * i) * state.value + fed
            fed = jnp.tanh(state.value)
        return sum((state.value for state in states[1:]), start=states[0].value)


class Readouts(Module):
    """A recurrent layer read out by a weight without a trace and by an ordinary weight."""

    def __init__(self, n_in: int, n_rec: int, n_out: int) -> None:
        super().__init__()
        self.cell = MinimalRNNCell(n_in, n_rec)
        weight = kaiming()((n_rec, n_out))
        self.untraced = NonTempParam({"weight": weight}, op=brainscale.MatMulOp())
        self.plain = brainstate.nn.Linear(n_rec, n_out)

    def update(self, x: Array) -> Array:
        h = self.cell(x)
        return jnp.tanh(self.untraced.execute(h)) + self.plain(h)


class Delayed(Module):
    """Spiking-network style delay: what the layer gave three steps ago comes back in."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.cell = MinimalRNNCell(n_in + n_rec, n_rec)
        self.past = Delay(jnp.ones(n_rec, brainstate.environ.dftype()), entries={"a": 3 * u.ms})

    def update(self, x: Array) -> Array:
        h = self.cell(jnp.concatenate([x, self.past.at("a")], axis=-1))
        self.past.update(h)
        return h


class Counting(Module):
    """A counter that is the same for every sample, and a running maximum of each sample's input."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.n_in, self.cell = n_in, MinimalRNNCell(n_in, n_rec)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.clock = ShortTermState(jnp.zeros((), jnp.int32))
        self.peak = ShortTermState(state_of((self.n_in,), batch_size))

    def update(self, x: Array) -> Array:
        self.clock.value = self.clock.value + 1
        self.peak.value = jnp.maximum(self.peak.value, x)
        return self.cell(x / (1.0 + 0.1 * self.peak.value)) / jnp.sqrt(self.clock.value)


class Noisy(Module):
    """Dropout inside the step."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.cell, self.drop = MinimalRNNCell(n_in, n_rec), Dropout(0.6)

    def update(self, x: Array) -> Array:
        return self.cell(self.drop(x))


class Normalized(Module):
    """Batch normalisation inside the step, over the rows of an image and, in a batch, over the images too."""

    def __init__(self, size: tuple[int, int], n_rec: int, axis_name: str | None = None) -> None:
        super().__init__()
        self.norm, self.cell = BatchNorm1d(size, axis_name=axis_name), MinimalRNNCell(size[0] * size[1], n_rec)

    def update(self, x: Array) -> Array:
        normalized = self.norm(x)
        return self.cell(normalized.reshape(*normalized.shape[:-2], -1))


class Stack(Module):
    """Recurrent layers in a list, one feeding the next."""

    def __init__(self, n_in: int, n_rec: int, n_out: int) -> None:
        super().__init__()
        self.cells = [brainscale.nn.GRUCell(n_in, n_rec), MinimalRNNCell(n_rec, n_out)]

    def update(self, x: Array) -> Array:
        for cell in self.cells:
            x = cell(x)
        return x


class Unit(Module):
    """A recurrent layer behind the direction of its input."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.cell = MinimalRNNCell(n_in, n_rec)

    def update(self, x: Array) -> Array:
        return self.cell(x / jnp.sqrt((x**2).sum(-1, keepdims=True)))


class Silent(Module):
    """A leaky cell that is silent at small inputs, and a weight without a trace behind it."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.drive, self.n_rec = brainscale.nn.Linear(n_in, n_rec, b_init=None), n_rec
        self.gain = brainstate.ParamState(jnp.ones(n_rec))

    def init_state(self, batch_size: int | None = None) -> None:
        self.hidden = HiddenState(jnp.zeros(self.n_rec))

    def update(self, x: Array) -> Array:
        self.hidden.value = 0.9 * self.hidden.value + jax.nn.relu(jnp.abs(self.drive(x)) - 10.0)
        return self.gain.value * self.hidden.value


class OwnGenerators(Module):
    """Noise of two random generators of its own, of the process's, and initial states of one of them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = brainscale.nn.Linear(size, size)
        self.one, self.two = brainstate.random.RandomState(0), brainstate.random.RandomState(0)

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = HiddenState(self.one.rand(self.size))

    def update(self, x: Array) -> Array:
        noise = jnp.stack([source.rand(self.size) for source in (self.one, self.two, brainstate.random)])
        self.h.value = jnp.tanh(0.5 * self.h.value + self.weight(x + noise.sum(0)))
        return noise + 0 * self.h.value


class Mixed(Module):
    """A leaky cell whose weights, inputs and states have each a float type of their own."""

    def __init__(self, n_in: int, n_rec: int, weights: Any, inputs: Any, states: Any, leak: float = 0.5) -> None:
        super().__init__()
        self.n_rec, self.states, self.leak, self.inputs = n_rec, states, leak, inputs
        values = np.random.default_rng(0).normal(size=(n_in, n_rec)).astype(np.float32) / n_in
        arrays = {"weight": jnp.asarray(values, weights), "bias": jnp.zeros(n_rec, weights)}
        self.weight = brainscale.ETraceParam(arrays, brainscale.MatMulOp())

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = HiddenState(jnp.zeros(self.n_rec, self.states))

    def update(self, x: Array) -> Array:
        drive = self.weight.execute(x.astype(jax.tree.leaves(self.weight.value)[0].dtype))
        self.h.value = jnp.tanh(self.leak * self.h.value + drive.astype(self.states))
        return self.h.value


class WeakStart(Mixed):
    """Its state begins as a Python number, repeated."""

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = HiddenState(jnp.full(self.n_rec, 0.0))


class Widening(Module):
    """A state in float32 that comes back in float64."""

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = HiddenState(jnp.zeros(3, np.float32))

    def update(self, x: Array) -> Array:
        self.h.value = 0.5 * self.h.value + x
        return self.h.value


class Watched(Module):
    """Calls `seen` each time that Python runs its update, and hands on to another module."""

    def __init__(self, inner: Module, seen: Callable[[], None]) -> None:
        super().__init__()
        self.inner, self.seen = inner, seen

    def update(self, *inputs: Any) -> Any:
        self.seen()
        return self.inner(*inputs)


class Untraced(Module):
    """A weight without a trace in front of a hidden state that nothing reads."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_out = n_out
        self.untraced = NonTempParam({"weight": kaiming()((n_in, n_out))}, op=brainscale.MatMulOp())

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.n_out,), batch_size))

    def update(self, x: Array) -> Array:
        out = jnp.tanh(self.untraced.execute(x))
        self.h.value = 0.5 * self.h.value + out
        return out


class Broken(Module):
    """A hidden state that comes out of a branch, which BrainScale refuses."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.n_rec, self.inp = n_rec, Linear(n_in, n_rec)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.n_rec,), batch_size))

    def update(self, x: Array) -> Array:
        y = self.inp(x)
        self.h.value = jax.lax.cond(y.sum() > 0, lambda h: h + y, lambda h: h - y, self.h.value)
        return self.h.value


class Growing(Module):
    """A hidden state that comes out of a step with another shape."""

    def __init__(self, n_in: int, n_rec: int) -> None:
        super().__init__()
        self.n_rec, self.inp = n_rec, Linear(n_in, n_rec)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = HiddenState(state_of((self.n_rec,), batch_size))

    def update(self, x: Array) -> Array:
        self.h.value = jnp.stack([self.inp(x), self.h.value * 0.5])
        return self.h.value.sum()
