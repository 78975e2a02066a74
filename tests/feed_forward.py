"""Layers without recurrent weights: one for each kind of weight operation and each number of states in a group.

What they leave behind is exact: there the published D_RTRL is backpropagation through time.
"""

from collections.abc import Callable, Mapping
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
from brainpy.state import ALIF, CUBA, LIF, AlignPostProj, Expon
from brainscale.nn import Conv1d, Linear, LoRA, SignedWLinear, SparseLinear
from brainstate.nn import Module

from .models import N_IN, N_OUT, N_REC, Model, floats
from .modules import Leaky, Ring, kaiming, orthogonal, state_of, zeros


class Feed(Module):
    """Spiking neurons behind any layer, and an ordinary readout without memory."""

    def __init__(self, layer: Module, neuron: Module, n_out: int) -> None:
        super().__init__()
        self.layer, self.neuron = layer, neuron
        self.read = brainstate.nn.Linear(neuron.out_size, n_out)

    def update(self, x: jax.Array) -> jax.Array:
        return self.read(self.neuron(self.layer(x) * u.mA))


class Synapses(Module):
    """Spiking neurons behind exponential synapses: two or three states in a group, which feed each other in a step."""

    def __init__(self, n_in: int, n_rec: int, neuron: type) -> None:
        super().__init__()
        self.neu = neuron(n_rec, tau=5.0 * u.ms)
        linear = Linear(n_in, n_rec, w_init=kaiming(unit=u.mS), b_init=zeros(unit=u.mS))
        synapse, current = Expon.desc(n_rec, tau=10.0 * u.ms), CUBA.desc()
        self.syn = AlignPostProj(comm=linear, syn=synapse, out=current, post=self.neu)

    def update(self, x: jax.Array) -> jax.Array:
        self.syn(x)
        return self.neu()


class SineOp(brainscale.ETraceOp):
    """`s sin(x) a`: a matrix, and one number that reaches every output."""

    def xw_to_y(self, inputs: Any, weights: Any) -> Any:
        return jnp.sin(inputs) @ weights["a"] * weights["s"]


class Weighted(Module):
    """A layer that is one weight with an operation."""

    def __init__(self, weight: Any, op: brainscale.ETraceOp) -> None:
        super().__init__()
        self.weight = brainscale.ETraceParam(weight, op=op)

    def update(self, x: jax.Array) -> jax.Array:
        return self.weight.execute(x)


def sine() -> Module:
    """A layer with an operation of a user's own."""
    return Weighted({"a": kaiming()((N_IN, N_REC)), "s": jnp.asarray(1.3)}, SineOp())


def doubled() -> Module:
    """A matrix that is used as twice its value; BrainScale makes it four times."""
    weight = {"weight": kaiming()((N_IN, N_REC)), "bias": jnp.full(N_REC, 0.1)}
    return Weighted(weight, brainscale.MatMulOp(weight_fn=lambda w: 2 * w))


class Gained(Module):
    """`h = 0.7 h + gain x`: the gain is one element-wise function of a tree of two vectors."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        weight = {"root": 1.0 + brainstate.random.rand(size), "shift": brainstate.random.rand(size)}
        self.gain = brainscale.ElemWiseParam(weight, op=lambda w: w["root"] ** 2 + w["shift"])

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = brainstate.HiddenState(state_of((self.size,), batch_size))

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = 0.7 * self.h.value + self.gain.execute() * x
        return self.h.value


def mask() -> jax.Array:
    """Two weights of three."""
    return (jnp.arange(N_IN * N_REC).reshape(N_IN, N_REC) % 3 != 0) * 1.0


def signs() -> jax.Array:
    """Inputs that excite and inputs that inhibit."""
    return jnp.where(jnp.arange(N_IN) % 2 == 0, 1.0, -1.0)[:, None] * jnp.ones((1, N_REC))


def sparse(kind: Any) -> Module:
    """A sparse matrix, and a bias."""
    return SparseLinear(kind.fromdense(kaiming()((N_IN, N_REC)) * mask()), b_init=zeros())


def layered(name: str, layer: Callable[[], Module]) -> Model:
    """A layer in front of leaky states without recurrent weights."""
    return Model(name, lambda: Leaky(layer(), (N_REC,), is_recurrent=False))


def spiking(name: str, make: Callable[[], Module]) -> Model:
    """A network whose output is silent until a neuron fires."""
    return Model(name, make, spikes=True)


def linear() -> Module:
    """A layer strong enough for spikes."""
    return Linear(N_IN, N_REC, w_init=kaiming(scale=20.0))


_ALL = (
    spiking("LIF", lambda: Feed(linear(), LIF(N_REC, tau=5.0 * u.ms), N_OUT)),
    spiking("ALIF", lambda: Feed(linear(), ALIF(N_REC, tau=5.0 * u.ms), N_OUT)),
    spiking("Expon_LIF", lambda: Synapses(N_IN, N_REC, LIF)),
    spiking("Expon_ALIF", lambda: Synapses(N_IN, N_REC, ALIF)),
    layered("matrix", lambda: Linear(N_IN, N_REC)),
    layered("masked_matrix", lambda: Linear(N_IN, N_REC, w_mask=mask())),
    layered("signed_matrix", lambda: SignedWLinear(N_IN, N_REC, w_init=kaiming(scale=0.01), w_sign=signs())),
    layered("lora_matrix", lambda: LoRA(N_IN, 2, N_REC, B_init=orthogonal(), A_init=orthogonal())),
    layered("csr", lambda: sparse(u.sparse.CSR)),
    layered("coo", lambda: sparse(u.sparse.COO)),
    layered("own_operation", sine),
    layered("doubled", doubled),
    Model("tree_of_elements", lambda: Gained(N_REC), draws=(floats(N_REC, scale=30.0),)),
    *(Model(f"{n}_states", lambda n=n: Ring(N_IN, N_REC, n)) for n in (4, 5)),
    Model(
        "conv1d",
        lambda: Leaky(Conv1d((6, 2), 3, 3, w_init=kaiming(), b_init=zeros()), (6, 3), is_recurrent=False),
        draws=(floats(6, 2),),
    ),
)

FEED_FORWARD: Mapping[str, Model] = {model.name: model for model in _ALL}
