"""Small BrainScale modules, described by values whose text can be pasted into a test."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import brainpy.state
import brainscale
import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

from .._tree import Tree
from ._case import Data

kaiming = braintools.init.KaimingNormal
zeros = braintools.init.ZeroInit
orthogonal = braintools.init.Orthogonal

CELLS = ("GRUCell", "LSTMCell", "MGUCell", "MinimalRNNCell", "MiniGRU", "MiniLSTM", "LRUCell", "ValinaRNNCell")
NEURONS = ("LIF", "ALIF")
SYNAPSES = ("delta", "expon")
OPERATORS = ("linear", "lora", "masked", "signed", "element_wise", "conv")
READOUTS = ("leaky", "linear", "untraced")

SETTINGS: Mapping[str, Any] = {"dt": 1.0 * u.ms}
"""The environment in which every module here is captured."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One of BrainScale's cells."""

    kind: str
    size: int

    def build(self, n_in: int) -> brainstate.nn.Module:
        """The layer."""
        return getattr(brainscale.nn, self.kind)(n_in, self.size)

    def width(self, n_in: int) -> int:
        """Features of the output; a linear recurrent unit gives back as many as it got."""
        return n_in if self.kind == "LRUCell" else self.size


@dataclasses.dataclass(frozen=True)
class Spiking:
    """Spiking neurons in mV behind a synapse, with or without connections among themselves."""

    neuron: str
    synapse: str
    size: int
    is_recurrent: bool = False

    def build(self, n_in: int) -> brainstate.nn.Module:
        """The layer."""
        return _SpikingLayer(self, n_in)

    def width(self, _: int) -> int:
        """Features of the output."""
        return self.size


@dataclasses.dataclass(frozen=True)
class Leaky:
    """`h = 0.7 h + tanh(op(x))`: a weight operation in front of a hidden state without recurrent weights."""

    operator: str
    size: int

    def build(self, n_in: int) -> brainstate.nn.Module:
        """The layer."""
        return _LeakyLayer(_OPERATIONS[self.operator](n_in, self.size))

    def width(self, _: int) -> int:
        """Features of the output."""
        return self.size


@dataclasses.dataclass(frozen=True)
class Readout:
    """The last layer: leaky neurons, an ordinary weight, or a weight that BrainScale leaves without a trace."""

    kind: str
    size: int = 2

    def build(self, n_in: int) -> brainstate.nn.Module:
        """The layer."""
        if self.kind == "leaky":
            return brainscale.nn.LeakyRateReadout(n_in, self.size)
        return brainstate.nn.Linear(n_in, self.size) if self.kind == "linear" else _Untraced(n_in, self.size)

    def width(self, _: int) -> int:
        """Features of the output."""
        return self.size


Layer = Cell | Spiking | Leaky | Readout


@dataclasses.dataclass(frozen=True)
class Net:
    """Layers, one feeding the next: a module factory.

    Attributes:
      layers: from the input on.
      n_in: features of each argument.
      n_inputs: arguments of a step; the second is added to the first.
      is_normalized: whether the input goes through a layer normalisation.
      is_shared: whether the first layer's weights are used for two halves of the time step, one after the other.
      has_units: whether the inputs are currents in mA and the outputs potentials in mV.
      seed: what the weights are drawn from.
    """

    layers: tuple[Layer, ...]
    n_in: int = 3
    n_inputs: int = 1
    is_normalized: bool = False
    is_shared: bool = False
    has_units: bool = False
    seed: int = 0

    def __repr__(self) -> str:
        default = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in default}
        shown = [f"{name}={value!r}" for name, value in values.items() if value != default[name] and name != "layers"]
        return f"Net({', '.join([repr(self.layers), *shown])})"

    def __call__(self) -> brainstate.nn.Module:
        """A new module; every call gives the same weights."""
        with brainstate.environ.context(**SETTINGS), brainstate.random.seed_context(self.seed):
            return _Sequence(self)

    @property
    def spikes(self) -> bool:
        """Whether the output is silent until a neuron fires."""
        return isinstance(self.layers[-1], Spiking)

    @property
    def is_exact(self) -> bool:
        """Whether the published D_RTRL equals BPTT.

        That takes one layer without recurrent weights, a readout without memory, and no weight in front: one whose way
        to the hidden states leads through another weight, as a normalisation's does, learns within a step only.
        """
        first, *rest = self.layers
        is_alone = isinstance(first, Leaky) or (isinstance(first, Spiking) and not first.is_recurrent)
        is_read = all(isinstance(one, Readout) and one.kind != "leaky" for one in rest)
        return is_alone and is_read and not self.is_shared and not self.is_normalized

    def data(self, seed: int, steps: int, samples: int, scale: float = 1.5) -> Data:
        """Inputs in (0, scale) and targets around 1, `[T, B, ...]`, in the precision in force.

        Each feature of a sample keeps to a level of its own, so that its steps add up in the traces.
        """
        rng, dtype = np.random.default_rng(seed), brainstate.environ.dftype()
        lead = (steps, samples)
        levels = np.tile(np.linspace(0.2, 1.0, self.n_in), (samples, 1))
        inputs = [
            (scale * rng.permuted(levels, axis=1) * rng.uniform(0.5, 1.0, (*lead, self.n_in))).astype(dtype)
            for _ in range(self.n_inputs)
        ]
        wrapped = [u.Quantity(jnp.asarray(x), unit=u.mA) if self.has_units else x for x in inputs]
        return Data(tuple(wrapped), rng.uniform(0.5, 1.5, lead).astype(dtype))

    def example(self) -> tuple[Tree, ...]:
        """The arguments of one step of one sample."""
        return jax.tree.map(lambda x: x[0, 0], self.data(0, 1, 1).inputs)


def squared(output: Tree, target: jax.Array) -> jax.Array:
    """Half the square of each output and a multiple of it, so that silence and speech both have a gradient."""
    leaves = [u.get_mantissa(leaf) for leaf in jax.tree.leaves(output, is_leaf=u.math.is_quantity)]
    return jnp.asarray(sum((0.5 * leaf**2 + target * leaf).sum() for leaf in leaves))


class _Sequence(brainstate.nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.has_units, self.is_shared = net.has_units, net.is_shared
        self.norm = brainscale.nn.LayerNorm((net.n_in,)) if net.is_normalized else None
        self.layers, width = [], net.n_in
        for layer in net.layers:
            self.layers.append(layer.build(width))
            width = layer.width(width)

    def update(self, *inputs: Any) -> Any:
        numbers = [x.to_decimal(u.mA) if self.has_units else x for x in inputs]
        x = sum(numbers[1:], start=numbers[0])
        x = x if self.norm is None else self.norm(x)
        first, *rest = self.layers
        if self.is_shared:
            first(0.5 * x)
        x = first(x)
        for layer in rest:
            x = layer(x)
        return x * u.mV if self.has_units else x


class _SpikingLayer(brainstate.nn.Module):
    """The biases take some neurons beyond the threshold of 1 mV within two steps, and others near it."""

    def __init__(self, spec: Spiking, n_in: int) -> None:
        super().__init__()
        self.is_recurrent = spec.is_recurrent
        unit, drive = (u.mV, 1.0) if spec.synapse == "delta" else (u.mS, 2.5)
        rows = [n_in, spec.size] if spec.is_recurrent else [n_in]
        weight = u.math.concatenate([kaiming(scale=1.0, unit=unit)([size, spec.size]) for size in rows], axis=0)
        bias = u.Quantity(drive * np.linspace(0.5, 1.6, spec.size).astype(brainstate.environ.dftype()), unit=unit)
        comm = brainscale.nn.Linear(sum(rows), spec.size, w_init=weight, b_init=bias)
        self.neurons = getattr(brainpy.state, spec.neuron)(spec.size, tau=5.0 * u.ms)
        self.synapses = _projection(spec, comm, self.neurons)

    def update(self, x: jax.Array) -> jax.Array:
        given = jnp.concatenate([x, self.neurons.get_spike()], axis=-1) if self.is_recurrent else x
        self.synapses(given)
        return self.neurons()


def _projection(spec: Spiking, comm: Any, neurons: Any) -> Any:
    if spec.synapse == "delta":
        return brainpy.state.DeltaProj(comm=comm, post=neurons)
    synapse = brainpy.state.Expon.desc(spec.size, tau=10.0 * u.ms)
    return brainpy.state.AlignPostProj(comm=comm, syn=synapse, out=brainpy.state.CUBA.desc(), post=neurons)


class _LeakyLayer(brainstate.nn.Module):
    """A state with the shape of the operation's output; the next layer gets it flat."""

    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.operation, self.shape = operation, operation.out_size

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = brainstate.HiddenState(braintools.init.param(zeros(), self.shape, batch_size))

    def update(self, x: jax.Array) -> jax.Array:
        h = 0.7 * jnp.asarray(self.h.value) + jnp.tanh(self.operation(x))
        self.h.value = h
        return h.reshape((*x.shape[:-1], -1))


class _Untraced(brainstate.nn.Module):
    def __init__(self, n_in: int, size: int) -> None:
        super().__init__()
        self.weight = brainscale.NonTempParam({"weight": kaiming()((n_in, size))}, op=brainscale.MatMulOp())

    def update(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(self.weight.execute(x))


class _Scaled(brainstate.nn.Module):
    """A matrix, and element-wise weights behind it."""

    def __init__(self, n_in: int, size: int) -> None:
        super().__init__()
        self.out_size = (size,)
        self.gain = brainscale.ElemWiseParam(1.0 + brainstate.random.rand(size))
        self.linear = brainscale.nn.Linear(n_in, size, b_init=None)

    def update(self, x: jax.Array) -> jax.Array:
        return self.gain.execute() * self.linear(x)


class _Convolved(brainstate.nn.Module):
    """A convolution over the features."""

    def __init__(self, n_in: int, size: int) -> None:
        super().__init__()
        if size % n_in:
            raise ValueError(f"conv: got size {size}, expected a multiple of {n_in} features")
        self.conv = brainscale.nn.Conv1d((n_in, 1), size // n_in, 3, w_init=kaiming(), b_init=zeros())
        self.out_size: Any = self.conv.out_size

    def update(self, x: jax.Array) -> jax.Array:
        return self.conv(x[..., None])


def _low_rank(n_in: int, size: int) -> brainstate.nn.Module:
    return brainscale.nn.LoRA(n_in, 2, size, B_init=orthogonal(), A_init=orthogonal())


def _masked(n_in: int, size: int) -> brainstate.nn.Module:
    mask = (np.arange(n_in * size).reshape(n_in, size) % 3 != 0) * 1.0
    return brainscale.nn.Linear(n_in, size, w_mask=jnp.asarray(mask))


def _signed(n_in: int, size: int) -> brainstate.nn.Module:
    sign = np.where(np.arange(n_in) % 2 == 0, 1.0, -1.0)[:, None] * np.ones((1, size))
    return brainscale.nn.SignedWLinear(n_in, size, w_init=kaiming(), w_sign=jnp.asarray(sign))


_OPERATIONS: dict[str, Callable[[int, int], Any]] = {
    "linear": brainscale.nn.Linear,
    "lora": _low_rank,
    "masked": _masked,
    "signed": _signed,
    "element_wise": _Scaled,
    "conv": _Convolved,
}
