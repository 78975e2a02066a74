"""A product whose elements are moved, by equations whose places are known at capture, has a trace for each element."""

import functools
import re
from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import braintrace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb

from .bench import RULES
from .trees import assert_close

D, EXACT = RULES["D_RTRL published"], RULES["BPTT"]
STEPS, SAMPLES, SIZE = 4, 3, 4
TURNED = np.array([3, 1, 0, 2])

Move = Callable[[Any], Any]


def rows(y: Any) -> Any:
    return y.reshape(*y.shape[:-1], -1, SIZE)


def of_two(a: Any, b: Any) -> Any:
    return a * jnp.cos(b)


@jax.custom_jvp
def turned_inside(y: Any) -> Any:
    return y[..., TURNED]


@turned_inside.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return turned_inside(*primals), tangents[0][..., TURNED]


# Of `[..., n]`, each to `[..., 4]`.
MOVES: dict[str, Move] = {
    "unstack": lambda y: of_two(*jnp.unstack(rows(y), axis=-2)),
    "unstacked columns": lambda y: of_two(*jnp.unstack(y.reshape(*y.shape[:-1], SIZE, 2), axis=-1)),
    "stack": lambda y: jnp.stack([y[..., i] for i in (2, 0, 5, 7)], -1),
    "one row": lambda y: rows(y)[..., jnp.asarray(1), :],
    "dynamic_slice": lambda y: jax.lax.dynamic_slice_in_dim(y, 2, SIZE, axis=-1),
    "two dynamic slices": lambda y: of_two(*(jax.lax.dynamic_slice_in_dim(y, i, SIZE, axis=-1) for i in (0, 4))),
    "a slice that is pushed inside": lambda y: jax.lax.dynamic_slice_in_dim(y, 100, SIZE, axis=-1),
    "dynamic_update_slice": lambda y: jax.lax.dynamic_update_slice_in_dim(y[..., :4], y[..., 6:], 1, axis=-1),
    "turned": lambda y: y[..., TURNED],
    "turned, by an array of JAX": lambda y: y[..., jnp.asarray(TURNED)],
    "turned, by what is computed": lambda y: y[..., jnp.argsort(jnp.asarray([3, 1, 2, 0]))],
    "turned inside": lambda y: turned_inside(y[..., 4:]),
    "rows turned": lambda y: of_two(*jnp.moveaxis(rows(y)[..., [1, 0], :], -2, 0)),
    "take": lambda y: jnp.take(y, TURNED, axis=-1),
    "take, with a fill": lambda y: jnp.take(y, np.array([3, 9, 0, 2]), axis=-1, mode="fill", fill_value=0),
    "take along an axis": lambda y: jnp.take_along_axis(y, jnp.broadcast_to(TURNED, (*y.shape[:-1], SIZE)), -1),
    "a mask": lambda y: y[..., np.arange(8) % 3 < 1 + (np.arange(8) > 5)][..., :SIZE],
    "set": lambda y: jnp.zeros((*y.shape[:-1], SIZE)).at[..., 1:3].set(y[..., 5:7]),
    "set at places": lambda y: jnp.zeros((*y.shape[:-1], SIZE)).at[..., TURNED].set(y[..., 3:7]),
    "an empty piece": lambda y: y[..., 2:6] + jnp.sin(y[..., ::-1][..., :0][..., ::-1].sum(-1, keepdims=True)),
    "barrier": lambda y: jax.lax.optimization_barrier((y[..., ::2], y.sum(-1)))[0],
}  # fmt: skip


def step(p: Any, h: Any, x: Any) -> Any:
    """A recurrence whose elements do not meet; each weight moves in a way of its own."""
    h = 0.7 * h + sum(jnp.tanh(MOVES[name](x @ w)) for name, w in p.items() if name in MOVES)
    return h, h * jnp.cos(h)


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape) / 2)


PARAMS = {name: normal(3, 8, seed=i) for i, name in enumerate(MOVES)}
DATA = normal(STEPS, SAMPLES, 3, seed=7), np.zeros((STEPS, SAMPLES))


def squared(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).sum()


def gradient(learner: pb.Learner, params: Any, strategy: Any, **options: Any) -> Any:
    return pb.sequence_grad(strategy(learner, SAMPLES), squared, reduction="none", **options)(params, None, *DATA)[0]


def of_function(function: Any, params: Any, rule: pb.Algorithm) -> tuple[pb.Learner, Any]:
    return pb.capture_function(function, params, jnp.zeros(SIZE), jnp.zeros(3), algorithm=rule)


@functools.cache
def wanted() -> Any:
    return gradient(*of_function(step, PARAMS, EXACT), pb.vmap)


@pytest.mark.parametrize("strategy", [pb.loop, pb.vmap, pb.manual])
def test_its_trace_is_exact(strategy: Any) -> None:
    learner, params = of_function(step, PARAMS, D)
    assert {row.weight: (row.way, row.reason) for row in pb.explain(learner).rows} == {
        f"params['{name}']" if not name.isidentifier() else f"params.{name}": ("trace", "") for name in MOVES
    }
    got = gradient(learner, params, strategy, window=2)
    assert_close(got, wanted())
    assert all(np.abs(leaf).max() > 1e-2 for leaf in got.values())


def of_unknown_places(p: Any, h: Any, x: Any) -> Any:
    """Elements that reach several hidden elements, and places that are not known at capture."""
    y = {name: x @ w for name, w in p.items()}
    order = jnp.argsort(x[..., :2], -1)
    moved = (
        y["repeated"][..., np.array([0, 0, 1, 2])],
        jnp.tile(y["tiled"][..., :2], 2),
        jnp.take_along_axis(y["sorted"], jnp.concatenate([order, order + 2], -1), -1),
        jnp.zeros_like(h).at[..., np.array([0, 0, 1, 2])].set(y["set twice"][..., :SIZE]),
        jnp.take(jnp.linspace(0.0, 1.0, 9), jnp.floor(y["a place"][..., :SIZE]).astype(int) + 4),
    )
    h = 0.7 * h + sum(map(jnp.tanh, moved))
    return h, h * jnp.cos(h)


def test_other_moves_get_the_gradient_of_the_step() -> None:
    names = ("repeated", "tiled", "sorted", "set twice", "a place")
    learner, params = of_function(of_unknown_places, {name: normal(3, 8, seed=i) for i, name in enumerate(names)}, D)
    rows = pb.explain(learner).rows
    assert [row.way for row in rows] == ["gradient of the step"] * len(names)
    assert all(re.match(r"its output (is mixed or copied at|does not reach state element)", row.reason) for row in rows)
    exact, _ = of_function(of_unknown_places, params, EXACT)
    got, want = (gradient(one, params, pb.vmap, window=1) for one in (learner, exact))
    assert_close(got, want)


@pytest.mark.parametrize(
    "spread",
    [
        lambda y: jnp.tile(y, SIZE),
        lambda y: y[..., np.zeros(SIZE, int)],
        lambda y: jax.lax.fori_loop(0, 2, lambda _, total: total + y[..., np.zeros(SIZE, int)], jnp.zeros(SIZE)),
    ],
    ids=["tile", "gather", "gather in a loop"],
)
def test_one_number_for_a_whole_layer_has_a_trace(spread: Move) -> None:
    """As it has where JAX broadcasts it."""

    def step(p: Any, h: Any, x: Any) -> Any:
        h = 0.7 * h + jnp.tanh(spread(x @ p["w"]) * jnp.arange(1.0, 5.0))
        return h, h * jnp.cos(h)

    params = {"w": normal(3, 1)}
    learner, _ = of_function(step, params, D)
    assert [row.way for row in pb.explain(learner).rows] == ["trace"]
    got, want = (gradient(of_function(step, params, rule)[0], params, pb.vmap) for rule in (D, EXACT))
    assert_close(got, want)


class Turned(brainstate.nn.Module):
    """A layer of BrainTrace whose product is cut in rows, of which one is turned."""

    def __init__(self, kind: Callable[..., Any] = braintrace.nn.Linear, cut: Move = jnp.unstack) -> None:
        super().__init__()
        self.layer, self.cut = kind(3, 2 * SIZE), cut

    def init_state(self, batch_size: int | None = None) -> None:
        lead = () if batch_size is None else (batch_size,)
        self.h = brainstate.HiddenState(jnp.zeros((*lead, SIZE)))

    def update(self, x: Any) -> Any:
        one, other = self.cut(jnp.moveaxis(rows(self.layer(x)), -2, 0))
        h: Any = 0.7 * self.h.value + jnp.tanh(of_two(one[..., TURNED], jax.lax.rev(other, (other.ndim - 1,))))
        self.h.value = h
        return h * jnp.cos(h)


@pytest.mark.parametrize("strategy", [pb.loop, pb.vmap, pb.manual])
def test_a_module_s_trace_is_exact(strategy: Any) -> None:
    got = []
    for rule in (D, EXACT):
        with brainstate.environ.context(precision=64), brainstate.random.seed_context(0):
            learner, params = pb.capture(Turned(), jnp.zeros(3), algorithm=rule)
        got.append(gradient(learner, params, strategy if rule is D else pb.vmap))
        if rule is D:
            assert [row.way for row in pb.explain(learner).rows] == ["trace"]
    assert_close(*got)
    assert all(np.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(got))


def test_a_module_of_brainscale_keeps_brainscale_s_rule_by_default() -> None:
    """A product has a trace there if its shape fits the hidden states, however it is cut in pieces."""
    complete, by_default = [], []
    for cut in (jnp.unstack, tuple, lambda y: (y[0], y[1])):
        for rule, found in ((D, complete), (pb.D_RTRL(), by_default)):
            learner, _ = pb.capture(Turned(brainscale.nn.Linear, cut), jnp.zeros(3), algorithm=rule)
            found += [(row.way, row.reason) for row in pb.explain(learner).rows]
    assert complete == [("trace", "")] * 3
    assert by_default == [("gradient of the step", "its output of shape (8,) does not fit h of shape (4,)")] * 3


def test_a_copy_of_what_is_no_part_of_the_product_costs_no_trace() -> None:
    def step(p: Any, h: Any, x: Any) -> Any:
        new = 0.9 * h + jnp.concatenate([p @ x, jnp.ones(2)])[np.array([0, 1, 2, 2])]
        return new, new

    inputs, targets = normal(6, 3), normal(6, 4)

    def of(rule: pb.Algorithm, window: int | None) -> tuple[pb.Learner, Any]:
        learner, params = pb.capture_function(step, normal(2, 3), np.zeros(4), np.zeros(3), algorithm=rule)
        return learner, pb.sequence_grad(learner, squared, window=window)(params, None, inputs, targets)[0]

    learner, got = of(D, 2)
    assert len(learner.program.relations) == 1
    assert_close(got, of(EXACT, None)[1])
