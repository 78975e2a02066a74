"""Modules with BrainTrace's layers and operations, and with those of both packages."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import brainevent
import brainscale
import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np

INPUTS, NEURONS, OUTPUTS, ROWS = 3, 4, 2, 5


class Model(NamedTuple):
    """How to make a module, and what one input of one sample is.

    Attributes:
      make: a new module, with weights that BrainState's generator draws.
      shape: of an input.
      is_index: whether an input is the number of a row of a table.
      by_hand: whether the module's own code takes a batch axis.
    """

    make: Callable[[], brainstate.nn.Module]
    shape: tuple[int, ...] = (INPUTS,)
    is_index: bool = False
    by_hand: bool = True

    def draw(self, random: np.random.RandomState, *lead: int) -> jax.Array:
        """Inputs with axes in front."""
        if self.is_index:
            return jnp.asarray(random.randint(0, ROWS, (*lead, *self.shape)))
        return jnp.asarray(random.randn(*lead, *self.shape))


def weight(*shape: int) -> brainstate.ParamState:
    """A weight of its own."""
    return brainstate.ParamState(0.5 * brainstate.random.randn(*shape))


class Cell(brainstate.nn.Module):
    """A layer in front of a readout."""

    def __init__(self, cell: Any, size: int = NEURONS) -> None:
        super().__init__()
        self.cell, self.readout = cell, braintrace.nn.Linear(size, OUTPUTS)

    def update(self, x: jax.Array) -> jax.Array:
        return self.readout(self.cell(x))


class Leaky(brainstate.nn.Module):
    """A layer that drives one leaky hidden state, whose recurrent weight is element-wise."""

    def __init__(self, layer: Callable[[jax.Array], jax.Array], *shape: int) -> None:
        super().__init__()
        self.layer, self.shape = layer, shape

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        lead = () if batch_size is None else (batch_size,)
        self.h = brainstate.HiddenState(jnp.zeros((*lead, *self.shape)))

    def update(self, x: jax.Array) -> jax.Array:
        drive = jnp.reshape(self.layer(x), self.h.value.shape)  # ScaledWSLinear gives one sample an axis in front
        self.h.value = jnp.tanh(0.8 * self.h.value + drive)
        return self.h.value


class Operation(brainstate.nn.Module):
    """An operation on weights that are states of their own."""

    def __init__(self, run: Callable[..., jax.Array], *weights: brainstate.State) -> None:
        super().__init__()
        self.run, self.weights = run, weights

    def update(self, x: jax.Array) -> jax.Array:
        return self.run(x, *(state.value for state in self.weights))


def operation(run: Callable[..., jax.Array], *shapes: tuple[int, ...], shape: tuple[int, ...] = (NEURONS,)) -> Leaky:
    return Leaky(Operation(run, *(weight(*one) for one in shapes)), *shape)


def sparse() -> brainevent.CSR:
    mask = np.random.RandomState(0).rand(INPUTS, NEURONS) < 0.6
    return brainevent.CSR.fromdense(jnp.where(mask, 1.0, 0.0))


def sparse_operation() -> Leaky:
    matrix = sparse()
    return operation(
        lambda x, w, b: braintrace.sparse_matmul(x, w, sparse_mat=matrix, bias=b), matrix.data.shape, (NEURONS,)
    )


def _gated(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w) + b


def _weights_of_gated(x: jax.Array, dy: jax.Array, weights: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
    return jax.vjp(lambda tree: _gated(x, tree["weight"], tree["bias"]), weights)[1](dy)[0]


def _zeros_of_gated(x: Any, y: Any, weights: Mapping[str, Any], states: int) -> Mapping[str, jax.Array]:
    return {name: jnp.zeros((*var.aval.shape, states), var.aval.dtype) for name, var in weights.items()}


# An operation of a user's own: `y = tanh(x @ weight) + bias`. The rules are what BrainTrace asks for.
GATED = braintrace.register_primitive("etp_test_gated", _gated, trainable_invars_fn=lambda _: {"weight": 1, "bias": 2})
GATED.register_etp_rules(
    dt_to_t=lambda dy, trace: {"weight": trace["weight"] * dy[..., None, :], "bias": trace["bias"] * dy},
    xy_to_dw=_weights_of_gated,
    init_drtrl=_zeros_of_gated,
    init_pp=lambda x, y, weights, states: jnp.zeros((*y.aval.shape, states), y.aval.dtype),
)


class Both(brainstate.nn.Module):
    """A layer of BrainScale, which drives one of BrainTrace."""

    def __init__(self) -> None:
        super().__init__()
        self.first = brainscale.nn.MinimalRNNCell(INPUTS, NEURONS)
        self.second = braintrace.nn.MGUCell(NEURONS, NEURONS)
        self.readout = brainscale.nn.Linear(NEURONS, OUTPUTS)

    def update(self, x: jax.Array) -> jax.Array:
        return self.readout(self.second(self.first(x)))


CELLS: Mapping[str, Model] = {
    **{
        f"braintrace.nn.{name}": Model(lambda name=name: Cell(getattr(braintrace.nn, name)(INPUTS, NEURONS)))
        for name in (
            *("ValinaRNNCell", "GRUCell", "CFNCell", "MGUCell", "LSTMCell", "URLSTMCell", "MinimalRNNCell", "MiniGRU"),
            "MiniLSTM",
        )
    },
    "braintrace.nn.LRUCell": Model(lambda: Cell(braintrace.nn.LRUCell(INPUTS, NEURONS), INPUTS)),
    "braintrace.nn.MiniGRU, braintrace.nn.MGUCell": Model(
        lambda: brainstate.nn.Sequential(
            braintrace.nn.MiniGRU(INPUTS, NEURONS), Cell(braintrace.nn.MGUCell(NEURONS, NEURONS))
        )
    ),
}

LAYERS: Mapping[str, Model] = {
    "braintrace.nn.Linear": Model(lambda: Leaky(braintrace.nn.Linear(INPUTS, NEURONS), NEURONS)),
    "braintrace.nn.Linear (w_mask)": Model(
        lambda: Leaky(braintrace.nn.Linear(INPUTS, NEURONS, w_mask=np.eye(INPUTS, NEURONS) + 0.5), NEURONS)
    ),
    "braintrace.nn.GroupedLinear": Model(
        lambda: Leaky(braintrace.nn.GroupedLinear(2, INPUTS, NEURONS), 2, NEURONS), (2, INPUTS)
    ),
    "braintrace.nn.SignedWLinear": Model(lambda: Leaky(braintrace.nn.SignedWLinear((INPUTS,), (NEURONS,)), NEURONS)),
    "braintrace.nn.ScaledWSLinear": Model(lambda: Leaky(braintrace.nn.ScaledWSLinear((INPUTS,), (NEURONS,)), NEURONS)),
    "braintrace.nn.SparseLinear": Model(lambda: Leaky(braintrace.nn.SparseLinear(sparse()), NEURONS)),
    "braintrace.nn.LoRA": Model(lambda: Leaky(braintrace.nn.LoRA(INPUTS, 2, NEURONS), NEURONS)),
    "braintrace.nn.Embedding": Model(lambda: Leaky(braintrace.nn.Embedding(ROWS, NEURONS), NEURONS), (), is_index=True),
    "braintrace.nn.Embedding, braintrace.nn.MGUCell": Model(
        lambda: brainstate.nn.Sequential(
            braintrace.nn.Embedding(ROWS, INPUTS), Cell(braintrace.nn.MGUCell(INPUTS, NEURONS))
        ),
        (),
        is_index=True,
    ),
    "braintrace.nn.Conv1d": Model(lambda: Leaky(braintrace.nn.Conv1d((5, 2), 3, 3), 5, 3), (5, 2)),
    "braintrace.nn.Conv2d": Model(lambda: Leaky(braintrace.nn.Conv2d((4, 4, 1), 2, 3), 4, 4, 2), (4, 4, 1)),
    "braintrace.nn.Conv3d": Model(lambda: Leaky(braintrace.nn.Conv3d((3, 3, 3, 1), 2, 2), 3, 3, 3, 2), (3, 3, 3, 1)),
    "braintrace.nn.LeakyRateReadout": Model(lambda: braintrace.nn.LeakyRateReadout(INPUTS, NEURONS)),
}

OPERATIONS: Mapping[str, Model] = {
    "braintrace.matmul": Model(lambda: operation(braintrace.matmul, (INPUTS, NEURONS), (NEURONS,))),
    "braintrace.matmul (weight_fn)": Model(
        lambda: operation(lambda x, w: braintrace.matmul(x, w, weight_fn=jnp.sin), (INPUTS, NEURONS))
    ),
    "braintrace.grouped_matmul": Model(
        lambda: operation(braintrace.grouped_matmul, (2, INPUTS, NEURONS), (2, NEURONS), shape=(2, NEURONS)),
        (2, INPUTS),
    ),
    "braintrace.embedding": Model(lambda: operation(braintrace.embedding, (ROWS, NEURONS)), (), is_index=True),
    "braintrace.einsum": Model(
        lambda: operation(lambda x, w: braintrace.einsum("bi,io->bo", x[None], w)[0], (INPUTS, NEURONS)), by_hand=False
    ),
    "braintrace.element_wise": Model(
        lambda: operation(lambda x, w: x * braintrace.element_wise(w), (INPUTS,), shape=(INPUTS,))
    ),
    "braintrace.element_wise (weight_fn)": Model(
        lambda: operation(lambda x, w: x * braintrace.element_wise(w, weight_fn=jnp.exp), (INPUTS,), shape=(INPUTS,))
    ),
    "braintrace.conv": Model(
        lambda: operation(lambda x, w: braintrace.conv(x[None], w)[0], (3, 2, 3), shape=(3, 5)), (2, 5), by_hand=False
    ),
    "braintrace.sparse_matmul": Model(sparse_operation),
    "braintrace.lora_matmul": Model(
        lambda: operation(lambda x, b, a: braintrace.lora_matmul(x, b, a, alpha=0.7), (INPUTS, 2), (2, NEURONS))
    ),
    "braintrace.register_primitive": Model(lambda: operation(GATED.bind, (INPUTS, NEURONS), (NEURONS,))),
}

MIXED: Mapping[str, Model] = {"braintrace.nn.MGUCell behind brainscale.nn.MinimalRNNCell": Model(Both)}

MODELS: Mapping[str, Model] = {**CELLS, **LAYERS, **OPERATIONS, **MIXED}
