"""Cells of other libraries, and cells written by hand, learn to copy symbols over a delay, without BrainScale."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen

import pure_batching as pb
from pure_batching.errors import StrategyError

from .trees import assert_close

# Some symbols are shown, nothing happens for a while, and then the symbols have to be named in their order.
ALPHABET, SYMBOLS, DELAY = 4, 3, 3
STEPS = SYMBOLS + DELAY + SYMBOLS
N_IN, HIDDEN = ALPHABET + 2, 32

# With more units that turn, a readout alone would do.
FEW = 4

SAMPLES, UPDATES, RATE = 32, 200, 1e-2

# The loss of whoever guesses, summed over a sequence.
CHANCE = SYMBOLS * math.log(ALPHABET)

RULES = {"D_RTRL": pb.D_RTRL(rule="published"), "ES_D_RTRL": pb.ES_D_RTRL(0.8, rule="published")}


def task(key: jax.Array, samples: int) -> tuple[jax.Array, jax.Array]:
    """Inputs `[T, B, N_IN]`, and the symbol to be named at each step, `[T, B]`; -1 where there is none."""
    symbols = jax.random.randint(key, (SYMBOLS, samples), 0, ALPHABET)
    blank = jnp.full((DELAY, samples), ALPHABET)
    shown = jnp.concatenate([symbols, blank, jnp.full_like(symbols, ALPHABET + 1)])
    wanted = jnp.concatenate([jnp.full((SYMBOLS + DELAY, samples), -1), symbols])
    return jax.nn.one_hot(shown, N_IN, dtype=float), wanted


def loss(logits: jax.Array, symbol: jax.Array) -> jax.Array:
    crossed = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(symbol, 0))
    return jnp.where(symbol < 0, 0.0, crossed)


class Cell(NamedTuple):
    """A function `(params, state, x) -> (state, h)` with its params and its first state.

    `share` is that of the loss of whoever guesses below which the cell has learned: a readout of it alone stays above.
    """

    step: Callable[..., Any]
    params: Any
    state: Any
    share: float = 0.6


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, float) / math.sqrt(shape[0])


def of_equinox(kind: type, state: Any) -> Cell:
    """Its cells take one sample; with a batch axis they are mapped."""
    cell = jax.tree.map(lambda leaf: leaf.astype(float), kind(N_IN, HIDDEN, key=jax.random.key(0)))
    params, static = eqx.partition(cell, eqx.is_array)

    def step(params: Any, state: Any, x: Any) -> Any:
        cell = eqx.combine(params, static)
        state = (cell if x.ndim == 1 else jax.vmap(cell))(x, state)
        return state, jax.tree.leaves(state)[0]

    return Cell(step, params, state)


def of_flax() -> Cell:
    cell = linen.GRUCell(HIDDEN, param_dtype=float)
    params = cell.init(jax.random.key(0), STATE, jnp.zeros(N_IN))
    return Cell(cell.apply, params, STATE)


def leaky() -> Cell:
    def step(p: Any, h: Any, x: Any) -> Any:
        h = 0.8 * h + 0.2 * jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"])
        return h, h

    params = {"w": normal(1, N_IN, HIDDEN), "u": normal(2, HIDDEN, HIDDEN), "b": jnp.zeros(HIDDEN)}
    return Cell(step, params, STATE)


def linear_recurrent() -> Cell:
    """`h = lambda h + W x` with complex numbers, each as its real and its imaginary part."""

    def step(p: Any, state: Any, x: Any) -> Any:
        real, imaginary = state
        size, angle = jnp.exp(-jnp.exp(p["nu"])), p["theta"]
        along, across = size * jnp.cos(angle), size * jnp.sin(angle)
        new = along * real - across * imaginary + x @ p["w"], across * real + along * imaginary + x @ p["v"]
        return new, jnp.tanh(jnp.concatenate(new, -1))

    params = {
        "nu": jnp.full(FEW, -3.0),
        "theta": jnp.linspace(0.1, math.pi - 0.1, FEW),
        "w": normal(1, N_IN, FEW),
        "v": normal(2, N_IN, FEW),
    }
    return Cell(step, params, (jnp.zeros(FEW), jnp.zeros(FEW)), share=0.4)


STATE = jnp.zeros(HIDDEN, float)

CELLS: Mapping[str, Callable[[], Cell]] = {
    "GRU of equinox": lambda: of_equinox(eqx.nn.GRUCell, STATE),
    "LSTM of equinox": lambda: of_equinox(eqx.nn.LSTMCell, (STATE, STATE)),
    "GRU of flax": of_flax,
    "leaky": leaky,
    "linear recurrent unit": linear_recurrent,
}

# Their own code takes no batch axis, so that `pb.manual` has nothing to run.
BY_ONE_SAMPLE = ("GRU of equinox", "LSTM of equinox")


@functools.cache
def captured(name: str, rule: str) -> tuple[pb.Learner, Any]:
    """A cell with a linear readout."""
    cell = CELLS[name]()
    width: int = jax.eval_shape(cell.step, cell.params, cell.state, jnp.zeros(N_IN))[1].shape[-1]

    def step(params: Any, state: Any, x: Any) -> Any:
        state, h = cell.step(params["cell"], state, x)
        return state, h @ params["out"]

    params = {"cell": cell.params, "out": normal(3, width, ALPHABET)}
    return pb.capture_function(step, params, cell.state, jnp.zeros(N_IN), algorithm=RULES[rule])


def share_after(name: str, rule: str, optimizer: optax.GradientTransformation) -> float:
    """The loss of the last updates as a share of the loss of whoever guesses."""
    learner, params = captured(name, rule)
    grad_fn = pb.sequence_grad(pb.vmap(learner, SAMPLES), loss)

    def update(state: Any, key: jax.Array) -> Any:
        params, opt_state = state
        gradients, aux = grad_fn(params, None, *task(key, SAMPLES))
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), aux.losses.sum(0).mean()

    keys = jax.random.split(jax.random.key(0), UPDATES)
    _, losses = jax.jit(lambda state: jax.lax.scan(update, state, keys))((params, optimizer.init(params)))
    return float(losses[-10:].mean()) / CHANCE


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CELLS)
def test_learns_to_copy(name: str, rule: str) -> None:
    assert share_after(name, rule, optax.adam(RATE)) < CELLS[name]().share


@pytest.mark.parametrize("name", CELLS)
def test_a_readout_alone_does_not(name: str) -> None:
    """What was learned above was learned by the traces of the cell."""
    kinds = {"cell": optax.set_to_zero(), "out": optax.adam(RATE)}
    of_readout = optax.multi_transform(kinds, {"cell": "cell", "out": "out"})
    assert share_after(name, "ES_D_RTRL", of_readout) > CELLS[name]().share


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", CELLS)
def test_every_strategy_gives_the_same_gradient_of_each_sample(name: str, rule: str) -> None:
    learner, params = captured(name, rule)
    strategies = (pb.vmap, pb.loop) if name in BY_ONE_SAMPLE else (pb.vmap, pb.loop, pb.manual)
    assert {row.way for row in pb.explain(learner).rows if row.weight.startswith("params.cell")} == {"trace"}
    data = task(jax.random.key(1), 3)
    first, *others = (
        pb.sequence_grad(strategy(learner, 3), loss, reduction="none")(params, None, *data)[0]
        for strategy in strategies
    )
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(first))
    for other in others:
        assert_close(other, first)


@pytest.mark.parametrize("name", BY_ONE_SAMPLE)
def test_by_hand_there_is_no_cell_of_equinox(name: str) -> None:
    """Mapped inside the step, its products have the samples behind the features."""
    learner, _ = captured(name, "D_RTRL")
    with pytest.raises(StrategyError, match=r"a product of .* with a batch axis, expected \(3, .*the samples lead"):
        pb.manual(learner, 3)
