"""The registry of layers: one small model for each layer of `brainscale.nn` and `brainpy.state`.

What the expensive laws run over is in `models`; here one cheap law runs over all that a user can put into a model.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import brainpy.state
import brainscale.nn
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from brainscale.nn import Linear
from brainstate import ShortTermState
from brainstate.nn import Module
from braintools.surrogate import Arctan

import pure_batching as pb
from pure_batching.errors import CaptureError

from .models import N_IN, N_OUT, N_REC, Draw, Model, floats
from .modules import DeltaProj, Leaky, kaiming, zeros

Array = jax.Array
Make = Callable[..., Any]


def linear(n_in: int, unit: Any, scale: float) -> Linear:
    """Weights to the neurons, strong enough for spikes."""
    return Linear(n_in, N_REC, w_init=kaiming(scale=scale, unit=unit), b_init=zeros(unit=unit))


class Driven(Module):
    """Neurons driven through delta synapses, by inputs and by themselves."""

    def __init__(self, neuron: Make, unit: Any = u.mV, scale: float = 8.0, *, is_recurrent: bool = True) -> None:
        super().__init__()
        self.neu, self.is_recurrent = neuron(N_REC), is_recurrent
        self.syn = DeltaProj(comm=linear(N_IN + N_REC * is_recurrent, unit, scale), post=self.neu)

    def update(self, x: Array) -> Array:
        self.syn(jnp.concatenate([x, self.neu.get_spike()], axis=-1) if self.is_recurrent else x)
        return self.neu()


class Timed(Module):
    """Counts the steps in a state, and tells the time to the module inside."""

    def __init__(self, inner: Module) -> None:
        super().__init__()
        self.inner = inner

    def init_state(self, *_: Any, **__: Any) -> None:
        self.count = ShortTermState(jnp.zeros((), jnp.int32))

    def update(self, x: Array) -> Array:
        count, self.count.value = self.count.value, self.count.value + 1
        with brainstate.environ.context(t=count * brainstate.environ.get_dt(), i=count):
            return self.inner(x)


class Projected(Module):
    """Recurrent neurons behind a projection that is made for them."""

    def __init__(self, projection: Make) -> None:
        super().__init__()
        self.neu = brainpy.state.LIF(N_REC, tau=5.0 * u.ms)
        self.syn = projection(comm=linear(N_IN + N_REC, u.mS, 8.0), post=self.neu)

    def update(self, x: Array) -> Array:
        self.syn(jnp.concatenate([x, self.neu.get_spike()], axis=-1))
        return self.neu()


class Filtered(Module):
    """Neurons fed by a synapse that is called like a function of the weighted spikes."""

    def __init__(self, synapse: Any) -> None:
        super().__init__()
        self.neu = brainpy.state.LIF(N_REC, tau=5.0 * u.ms)
        self.inp, self.syn = linear(N_IN + N_REC, u.mS, 8.0), synapse

    def update(self, x: Array) -> Array:
        current = self.inp(jnp.concatenate([x, self.neu.get_spike()], axis=-1))
        return self.neu(self.syn(current) * u.volt)


class Between(Module):
    """Neurons whose own spikes come back through a layer without trained weights, and then through a weight."""

    def __init__(self, layer: Make, unit: Any = u.UNITLESS) -> None:
        super().__init__()
        self.neu, self.unit = brainpy.state.LIF(N_REC), unit
        self.layer = layer(self.neu)
        self.inp = DeltaProj(comm=linear(N_IN, u.mV, 8.0), post=self.neu)
        self.rec = DeltaProj(comm=linear(N_REC, u.mV, 8.0), post=self.neu)

    def update(self, x: Array) -> Array:
        self.inp(x)
        self.rec(self.layer(self.neu.get_spike()) / self.unit)
        return self.neu()


class Delayed(Module):
    """Neurons whose own spikes come back late."""

    def __init__(self, source: Make) -> None:
        super().__init__()
        self.neu = brainpy.state.LIF(N_REC)
        self.inp = DeltaProj(comm=linear(N_IN, u.mV, 8.0), post=self.neu)
        self.rec = DeltaProj(*source(self.neu), comm=linear(N_REC, u.mV, 8.0), post=self.neu)

    def update(self, x: Array) -> Array:
        self.inp(x)
        self.rec()
        return self.neu()


class Joined(Module):
    """Neurons with something besides that acts on them by itself."""

    def __init__(self, other: Make) -> None:
        super().__init__()
        self.neu = brainpy.state.LIF(N_REC)
        self.inp = DeltaProj(comm=linear(N_IN, u.mV, 8.0), post=self.neu)
        self.other = other(self.neu)

    def update(self, x: Array) -> Array:
        self.inp(x)
        self.other()
        return self.neu()


class Encoded(Module):
    """Inputs that become spikes at random."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.inner = brainpy.state.PoissonEncoder(N_IN), Driven(brainpy.state.LIF)

    def update(self, x: Any) -> Array:
        return self.inner(self.encoder(x))


class ReadOut(Module):
    """A trained layer, read out by a layer whose weight is an ordinary one."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = brainscale.nn.MinimalRNNCell(N_IN, N_REC)
        self.out = brainpy.state.LeakyRateReadout(N_REC, N_OUT)

    def update(self, x: Array) -> Array:
        return self.out(self.cell(x))


class Jitted(Leaky):
    """The same, with the new state out of a jitted call around other jitted calls."""

    def update(self, x: Array) -> Array:
        @jax.jit
        def step(h: Array, y: Array) -> Array:
            return jnp.where(y > 0, self.decay * h + jnp.tanh(y), jax.jit(jnp.sin)(h) * y)

        self.h.value = step(self.h.value, self.layer(x))
        return self.h.value


class Opened(Leaky):
    """What `Jitted` computes, without a jitted call."""

    def update(self, x: Array) -> Array:
        y, h = self.layer(x), self.h.value
        self.h.value = jax.lax.select(y > 0, self.decay * h + jnp.tanh(y), jnp.sin(h) * y)
        return self.h.value


def around(layer: Callable[[], Any], *size: int, **settings: Any) -> tuple[Callable[[], Module], dict[str, Any]]:
    """A leaky state around a layer of one size, and what its model is fed with."""
    out = settings.pop("out", size)
    return lambda: Leaky(layer(), out, is_recurrent=False), {"draws": (floats(*size),), **settings}


def synapse(name: str, out: Make) -> Callable[[], Module]:
    """A projection onto neurons with a synapse and its output by description."""
    described = functools.partial(getattr(brainpy.state, name).desc, N_REC)
    return lambda: Projected(functools.partial(brainpy.state.AlignPostProj, syn=described(), out=out()))


def sparse() -> Module:
    """A sparse matrix with every third number missing."""
    dense = np.linspace(-0.6, 0.8, N_IN * N_REC).reshape(N_IN, N_REC) * (np.arange(N_IN * N_REC) % 3 > 0).reshape(
        N_IN, -1
    )
    return brainscale.nn.SparseLinear(u.sparse.CSR.fromdense(jnp.asarray(dense)), b_init=zeros())


RING = np.arange(N_REC)


def ring(*_: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each neuron and the next."""
    return RING, np.roll(RING, 1)


def symmetric(neu: Any) -> Module:
    """Gap junctions with one weight for both directions."""
    return brainpy.state.SymmetryGapJunction(neu, "V", ring, 0.3 * u.mS)


def asymmetric(neu: Any) -> Module:
    """Gap junctions with a weight for each direction."""
    return brainpy.state.AsymmetryGapJunction(neu, "V", neu, "V", ring, np.full((N_REC, 2), 0.3) * u.mS)


def _neuron(name: str, scale: float = 8.0, unit: Any = u.mV, **settings: Any) -> Model:
    """A recurrent layer of neurons; those that remember when they fired are told the time."""
    environ = settings.pop("environ", {})

    def make() -> Module:
        net = Driven(functools.partial(getattr(brainpy.state, name), **settings), unit, scale)
        return Timed(net) if name.endswith("Ref") else net

    return Model(f"brainpy.state.{name}", make, spikes=True, environ=environ)


def _spiking(name: str, make: Callable[[], Module], **settings: Any) -> Model:
    return Model(f"brainpy.state.{name}", make, spikes=True, **settings)


def _layer(name: str, make: Callable[[], Module], settings: dict[str, Any]) -> Model:
    return Model(f"brainscale.nn.{name}", make, **settings)


_SMOOTH = {"spk_fun": Arctan()}
_GIF = {"A1": 0.1 * u.mA, "A2": -0.1 * u.mA, **_SMOOTH}
_LOW = {"V_th": -50.0 * u.mV, **_SMOOTH}
_FINE = {"environ": {"dt": 0.1 * u.ms}}
_WITHOUT_FIT = {"environ": {"fit": False}}
_STRONG = {"E": 5.0 * u.volt}
_BLOCK = {**_STRONG, "alpha": 0.062 / u.mV, "V_offset": 0.0 * u.mV}

_OPERATIONS = (
    _layer("BatchNorm0d", *around(lambda: brainscale.nn.BatchNorm0d((5,)), 5, **_WITHOUT_FIT)),
    _layer("BatchNorm1d", *around(lambda: brainscale.nn.BatchNorm1d((4, 3)), 4, 3, **_WITHOUT_FIT)),
    _layer("BatchNorm2d", *around(lambda: brainscale.nn.BatchNorm2d((4, 2, 3)), 4, 2, 3, **_WITHOUT_FIT)),
    _layer("BatchNorm3d", *around(lambda: brainscale.nn.BatchNorm3d((2, 3, 2, 3)), 2, 3, 2, 3, **_WITHOUT_FIT)),
    _layer("LayerNorm", *around(lambda: brainscale.nn.LayerNorm((5,)), 5)),
    _layer("RMSNorm", *around(lambda: brainscale.nn.RMSNorm((5,)), 5)),
    _layer("GroupNorm", *around(lambda: brainscale.nn.GroupNorm((6,), num_groups=2), 1, 6)),
    _layer(
        "Conv3d",
        *around(
            lambda: brainscale.nn.Conv3d((3, 4, 2, 2), 3, (2, 3, 2), w_init=kaiming(), b_init=zeros()),
            *(3, 4, 2, 2),
            out=(3, 4, 2, 3),
        ),
    ),
    _layer("SparseLinear", *around(sparse, N_IN, out=(N_REC,))),
)

_OTHERS = (
    Model("brainpy.state.LeakyRateReadout", ReadOut),
    _layer(
        "BatchNorm2d (fit)",
        *around(
            lambda: brainscale.nn.BatchNorm2d((4, 2, 3)),
            *(4, 2, 3),
            environ={"fit": True},
            strategies=("loop", "vmap"),
        ),
    ),
    Model(
        "brainscale.nn.LeakySpikeReadout",
        lambda: brainscale.nn.LeakySpikeReadout((N_IN,), (N_OUT,)),
        spikes=True,
    ),
)

_NEURONS = (
    _neuron("IF"),
    _neuron("LIFRef"),
    _neuron("ExpIF", 6.0, **_LOW, **_FINE),
    _neuron("ExpIFRef", 6.0, **_LOW, **_FINE),
    _neuron("AdExIF"),
    _neuron("AdExIFRef"),
    _neuron("QuaIF", 60.0),
    _neuron("AdQuaIF", 60.0),
    _neuron("AdQuaIFRef", 60.0),
    _neuron("Gif", 30.0, **_GIF),
    _neuron("GifRef", 30.0, **_GIF),
    _neuron("Izhikevich", 200.0, **_SMOOTH, **_FINE),
    _neuron("IzhikevichRef", 200.0, **_SMOOTH, **_FINE),
    _neuron("HH", 100.0, V_th=10.0 * u.mV, **_SMOOTH, **_FINE),
    _neuron("MorrisLecar", 100.0, **_SMOOTH, **_FINE),
    _neuron("WangBuzsakiHH", 100.0, **_SMOOTH, **_FINE),
    _neuron("FitzHughNagumo", unit=u.UNITLESS),
    _neuron("HindmarshRose", unit=u.UNITLESS),
    _neuron("CubaLIF", unit=u.mA),
    _neuron("CobaLIF", unit=u.mA / u.mV, E=10.0 * u.mV),
)

_SYNAPSES = (
    _spiking("DualExpon", synapse("DualExpon", brainpy.state.CUBA.desc)),
    _spiking("COBA", synapse("Expon", functools.partial(brainpy.state.COBA.desc, **_STRONG))),
    _spiking("MgBlock", synapse("Expon", functools.partial(brainpy.state.MgBlock.desc, **_BLOCK))),
    _spiking("Alpha", lambda: Filtered(brainpy.state.Alpha(N_REC))),
    _spiking("STP", lambda: Between(lambda _: brainpy.state.STP(N_REC))),
    _spiking("STD", lambda: Between(lambda _: brainpy.state.STD(N_REC))),
    *(
        _spiking(
            name,
            lambda name=name: Timed(Between(lambda _: getattr(brainpy.state, name)(N_REC, T_dur=2.0 * u.ms), u.mS)),
        )
        for name in ("AMPA", "GABAa", "BioNMDA")
    ),
)

_PROJECTIONS = (
    _spiking("CurrentProj", lambda: Projected(functools.partial(brainpy.state.CurrentProj, out=brainpy.state.CUBA()))),
    _spiking(
        "CurrentProj (delay)",
        lambda: Projected(
            functools.partial(brainpy.state.CurrentProj, out=brainpy.state.CUBA(), delay=np.array(1.5) * u.ms)
        ),
        strategies=("loop", "vmap"),
    ),
    _spiking("SymmetryGapJunction", lambda: Joined(symmetric)),
    _spiking("AsymmetryGapJunction", lambda: Joined(asymmetric)),
    _spiking("PoissonEncoder", Encoded, draws=(floats(N_IN, scale=500.0, unit=u.Hz),), is_random=True),
    _spiking(
        "PoissonInput",
        lambda: Joined(lambda neu: brainpy.state.PoissonInput(neu.prefetch("V"), None, 10, 100 * u.Hz, 0.1 * u.mV)),
        is_random=True,
    ),
    Model(
        "brainstate.nn.PrefetchDelayAt",
        lambda: Delayed(lambda n: (n.prefetch_delay("V", 2 * u.ms), n.get_spike)),
        spikes=True,
    ),
    Model("brainstate.nn.OutputDelayAt", lambda: Delayed(lambda n: (n.output_delay(2 * u.ms),)), spikes=True),
)

LAYERS: Mapping[str, Model] = {m.name: m for m in (*_OPERATIONS, *_OTHERS, *_NEURONS, *_SYNAPSES, *_PROJECTIONS)}

# Those that bring an operation of their own.
OPERATIONS = tuple(model.name for model in _OPERATIONS)

# Some of them without recurrent weights, where the published D_RTRL is exact.
_FED_FORWARD = (
    *(
        Model(
            f"model `{kind.__name__}`",
            lambda kind=kind: kind(linear(N_IN, u.UNITLESS, 1.0), (N_REC,), is_recurrent=False),
        )
        for kind in (Jitted, Opened)
    ),
    *(
        Model(f"brainpy.state.{name} (feed-forward)", make, spikes=True)
        for name, make in (
            ("LIFRef", lambda: Timed(Driven(brainpy.state.LIFRef, is_recurrent=False))),
            ("Gif", lambda: Driven(functools.partial(brainpy.state.Gif, **_GIF), scale=30.0, is_recurrent=False)),
        )
    ),
)

FED_FORWARD: Mapping[str, Model] = {model.name: model for model in _FED_FORWARD}


@dataclasses.dataclass(frozen=True)
class Refused:
    """A layer that cannot be captured.

    Attributes:
      name: what a test is called by.
      make: a new module; some cannot even be made.
      error: the type of what is raised.
      text: a pattern of what it says.
      reason: what the table says.
      draws: the arguments of a step.
    """

    name: str
    make: Callable[[], Module]
    error: type[Exception]
    text: str
    reason: str
    draws: tuple[Draw, ...] = (floats(N_IN),)

    def capture(self, seed: int) -> None:
        """Make it and capture it."""
        model = Model(self.name, self.make, self.draws)
        pb.capture(model.build(seed), *model.inputs(seed), algorithm=pb.ES_D_RTRL(0.9), environ=model.settings)


def _aligned(kind: Make, synapse: Any, unit: Any) -> Callable[[], Module]:
    """A projection that wraps spikes in an array of brainevent."""

    def projection(neu: Any) -> Any:
        out = brainpy.state.CUBA.desc() if kind is brainpy.state.align_post_projection else brainpy.state.CUBA()
        return kind(neu.get_spike, comm=linear(N_REC, unit, 8.0), syn=synapse(N_REC), out=out, post=neu)

    return lambda: Joined(projection)


_EVENTS = "wraps the spikes in an array of brainevent: use AlignPostProj, DeltaProj or CurrentProj"

_REFUSED = (
    Refused(
        "brainscale.nn.URLSTMCell",
        lambda: brainscale.nn.URLSTMCell(N_IN, N_REC),
        IndexError,
        "tuple index out of range",
        "its constructor fails (fault 11)",
    ),
    Refused(
        "brainscale.nn.GroupNorm (without an axis in front)",
        *around(lambda: brainscale.nn.GroupNorm((6,), num_groups=2), 6)[:1],
        CaptureError,
        r"Leaky: got ValueError: axis .* out of bounds.*\. GroupNorm takes the first of its axes as the samples: give",
        "takes the first axis as the samples: give one sample an axis of length one in front (fault 11)",
        (floats(6),),
    ),
    Refused(
        "brainpy.state.LIFRef (without a time)",
        lambda: Driven(brainpy.state.LIFRef),
        CaptureError,
        r"Driven: got KeyError: .*'t' not found.*count the steps in a state, and put `with brainstate\.environ",
        "reads the time: count the steps in a state, and set `t` around the call",
    ),
    Refused(
        "brainpy.state.ExpIFRef (ref_var)",
        lambda: Timed(Driven(functools.partial(brainpy.state.ExpIFRef, ref_var=True))),
        CaptureError,
        r"Timed: inner\.neu\.refractory: got a hidden state of dtype bool, expected real.*\. Keep it.*ref_var=False",
        "a hidden state of dtype bool has no derivative: use ref_var=False",
    ),
    Refused(
        "brainpy.state.CurrentProj (a scalar delay)",
        lambda: Projected(functools.partial(brainpy.state.CurrentProj, out=brainpy.state.CUBA(), delay=1.5 * u.ms)),
        CaptureError,
        r"Projected: got ConcretizationTypeError: .*traced: .* numpy array \(delay=np\.array\(2\.0\) \* u\.ms\)",
        "its init_state() needs a concrete number: delay=np.array(2.0) * u.ms",
    ),
    Refused(
        "brainpy.state.align_post_projection",
        _aligned(brainpy.state.align_post_projection, brainpy.state.Expon.desc, u.mS),
        CaptureError,
        r"Joined: got TypeError: .*BinaryArray.*brainevent's: .* AlignPostProj, DeltaProj or CurrentProj\.",
        _EVENTS,
    ),
    Refused(
        "brainpy.state.align_pre_projection",
        _aligned(brainpy.state.align_pre_projection, brainpy.state.Expon, u.UNITLESS),
        CaptureError,
        r"Joined: got (UnitMismatchError|TypeError): .*BinaryArray.*brainevent's: .* "
        r"AlignPostProj, DeltaProj or CurrentProj\.",
        _EVENTS,
    ),
)

REFUSED: Mapping[str, Refused] = {refused.name: refused for refused in _REFUSED}
