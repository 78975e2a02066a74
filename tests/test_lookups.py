"""Lookups by the number of a row in plain functions: each is the product of zeros and a one with the table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching import testing
from pure_batching.testing._alive import assert_gradients_alive

from .bench import RULES
from .test_function import normal, squared
from .trees import assert_close, assert_identical

STEPS, SAMPLES, ROWS, NEURONS = 6, 3, 5, 4
D, EXACT = RULES["D_RTRL published"], RULES["BPTT"]
TABLE = normal(ROWS, NEURONS)
STATE = jnp.zeros(NEURONS)


def numbers(*shape: int, first: int = 0, last: int = ROWS, seed: int = 1) -> Any:
    return np.random.default_rng(seed).integers(first, last, shape)


def ones(number: Any) -> Any:
    """Zeros and a one; zeros alone out of range."""
    return (jnp.asarray(number)[..., None] == jnp.arange(ROWS)).astype(float)


class Way(NamedTuple):
    """A lookup, and the same as a product; `shape` is that of the numbers, which lie from `first` to `last`."""

    taken: Callable[[Any, Any], Any]
    product: Callable[[Any, Any], Any]
    shape: tuple[int, ...] = ()
    first: int = 0
    last: int = ROWS


def by_two(table: Any, number: Any) -> Any:
    """One number of a cube, along two axes."""
    cube = table.reshape(ROWS, 2, 2)
    return jnp.concatenate([cube[number[..., 0], number[..., 1] % 2], jnp.zeros((*number.shape[:-1], 2))], -1)


def by_two_products(table: Any, number: Any) -> Any:
    chosen = jnp.einsum("...i,...j->...ij", ones(number[..., 0]), ones(number[..., 1] % 2)[..., :2])
    taken = jnp.einsum("...ij,ijk->...k", chosen, table.reshape(ROWS, 2, 2))
    return jnp.concatenate([taken, jnp.zeros_like(taken)], -1)


def padded(table: Any, number: Any) -> Any:
    """The row of no number is zeros: it is out of range, and `jnp.take` gives NaN for it."""
    return jnp.where((number < ROWS)[..., None], jnp.take(table, number, axis=0), 0)


WAYS = {
    "an index": Way(lambda e, i: e[i], lambda e, i: ones(i) @ e),
    "an index below zero": Way(lambda e, i: e[i], lambda e, i: ones(i % ROWS) @ e, (), -ROWS, 0),
    "jnp.take": Way(lambda e, i: jnp.take(e, i, axis=0), lambda e, i: ones(i) @ e),
    "the nearest row": Way(
        lambda e, i: jnp.take(e, i, axis=0, mode="clip"), lambda e, i: ones(jnp.clip(i, 0, ROWS - 1)) @ e, (), -3, 9
    ),
    "zeros out of range": Way(
        lambda e, i: e.at[i].get(mode="fill", fill_value=0), lambda e, i: ones(i) @ e, (), 0, ROWS + 3
    ),
    "a padding": Way(padded, lambda e, i: ones(i) @ e, (), 0, ROWS + 2),
    "columns": Way(lambda e, i: jnp.take(e.T, i, axis=1).T, lambda e, i: ones(i) @ e),
    "a row of several": Way(lambda e, i: e[i].sum(-2), lambda e, i: ones(i).sum(-2) @ e, (2,)),
    "two axes": Way(by_two, by_two_products, (2,)),
    "a changed table": Way(lambda e, i: 2 * jnp.tanh(e)[i], lambda e, i: ones(i) @ (2 * jnp.tanh(e))),
}
ONE = WAYS["an index"]


def stepping(read: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def step(p: Any, h: Any, number: Any) -> Any:
        new = jnp.tanh(p["a"] * h + read(p["E"], number))
        return new, new * (1 - h)

    return step


def captured(way: Way, rule: pb.Algorithm, read: Callable[[Any, Any], Any]) -> tuple[pb.Learner, Any]:
    params = {"E": TABLE, "a": 0.8 + 0.1 * normal(NEURONS)}
    return pb.capture_function(stepping(read), params, STATE, jnp.zeros(way.shape, int), algorithm=rule)


def data_of(way: Way) -> Any:
    return numbers(STEPS, SAMPLES, *way.shape, first=way.first, last=way.last), np.zeros((STEPS, SAMPLES))


def ways_of(learner: pb.Learner) -> dict[str, str]:
    return {row.weight: row.way for row in pb.explain(learner).rows}


@pytest.mark.parametrize("name", WAYS)
def test_equals_a_product_and_backpropagation(name: str) -> None:
    """Per sample, traces too: D_RTRL is exact here, since no neuron reaches another."""
    way, found = WAYS[name], []
    for rule, read in ((D, way.taken), (D, way.product), (EXACT, way.taken)):
        learner, params = captured(way, rule, read)
        fun = pb.sequence_grad(pb.vmap(learner, SAMPLES), squared, reduction="none", window=4)
        found.append(fun(params, None, *data_of(way)) if rule is D else _whole(learner, params, way))
    (taken, after), (product, same), (exact, _) = found
    assert_gradients_alive(taken)
    assert_close(taken, product)
    assert_close(taken, exact)
    assert_close(after.carry.hidden, same.carry.hidden)
    assert ways_of(captured(way, D, way.taken)[0]) == {"params.E": "trace", "params.a": "trace"}


def _whole(learner: pb.Learner, params: Any, way: Way) -> Any:
    return pb.sequence_grad(pb.vmap(learner, SAMPLES), squared, reduction="none")(params, None, *data_of(way))


@pytest.mark.parametrize("rule", ["D_RTRL", "ES_D_RTRL published", "Hybrid", "EProp", "OTTT", "RTRL"])
def test_rules_give_what_they_give_for_a_product(rule: str) -> None:
    found = []
    for read in ONE[:2]:
        learner, params = captured(ONE, RULES[rule], read)
        found.append(_whole(learner, params, ONE))
    assert_gradients_alive(found[0][0])
    assert_close(found[0][0], found[1][0])
    assert_close(found[0][1].carry.trace, found[1][1].carry.trace)


@pytest.mark.parametrize("strategy", [pb.manual])
@pytest.mark.parametrize("name", ["a padding", "two axes"])
def test_strategies_are_interchangeable(name: str, strategy: Any) -> None:
    way, found = WAYS[name], []
    learner, params = captured(way, D, way.taken)
    for by in (pb.vmap, strategy):
        fun = pb.sequence_grad(by(learner, SAMPLES), squared, reduction="none", window=4)
        found.append(fun(params, None, *data_of(way))[0])
    assert_close(found[1], found[0])


def test_the_gradient_of_a_leaky_sum_in_closed_form() -> None:
    """`h[T] = sum_t a^(T-t) E[n[t]]`, so that row `v` of the gradient is `2 h[T] sum_t a^(T-t) [n[t] = v]`."""
    leak, given = 0.7, numbers(STEPS)

    def step(p: Any, h: Any, number: Any) -> Any:
        h = leak * h + p[number]
        return h, h

    learner, params = pb.capture_function(step, TABLE, STATE, jnp.asarray(0), algorithm=D)
    is_last = np.arange(STEPS) == STEPS - 1
    got, aux = pb.sequence_grad(learner, lambda h, at: at * (h**2).sum(), window=2)(params, None, given, is_last + 0.0)
    weights = (leak ** np.arange(STEPS)[::-1])[:, None] * ones(given)
    (h,) = jax.tree.leaves(aux.carry.hidden)
    assert_close(h, weights.sum(0) @ TABLE)
    assert_close(got, jnp.outer(weights.sum(0), 2 * h))


def test_the_smoothed_trace_adds_up_which_rows_were_taken() -> None:
    decay, given = 0.6, numbers(STEPS)
    learner, params = captured(ONE, pb.ES_D_RTRL(decay), ONE.taken)
    _, aux = pb.sequence_grad(learner, squared)(params, None, given, np.zeros(STEPS))
    (trace,) = [x for x in jax.tree.leaves(aux.carry.trace.xs) if x.shape == (ROWS,)]
    assert_close(trace, ((decay ** np.arange(STEPS)[::-1])[:, None] * ones(given)).sum(0))


def test_a_table_that_is_the_readout_too() -> None:
    def step(p: Any, h: Any, number: Any) -> Any:
        h = 0.8 * h + jnp.tanh(p["E"][number])
        return h, h @ p["E"].T

    found = []
    for rule in (D, EXACT):
        learner, params = pb.capture_function(step, {"E": TABLE}, STATE, jnp.asarray(0), algorithm=rule)
        found.append(_whole(learner, params, ONE)[0])
    assert_gradients_alive(found[0])
    assert_close(*found)


def test_rtrl_of_a_recurrent_net_equals_backpropagation() -> None:
    def step(p: Any, h: Any, number: Any) -> Any:
        h = jnp.tanh(p["E"][number] + h @ p["u"])
        return h, h

    found, weights = [], {"E": TABLE, "u": normal(NEURONS, NEURONS)}
    for rule, window in ((pb.RTRL(), 2), (EXACT, None)):
        learner, params = pb.capture_function(step, weights, STATE, jnp.asarray(0), algorithm=rule)
        fun = pb.sequence_grad(pb.vmap(learner, SAMPLES), squared, window=window)
        found.append(fun(params, None, *data_of(ONE))[0])
    assert_gradients_alive(found[0])
    assert_close(*found)


@pytest.mark.parametrize("package", ["equinox", "flax"])
def test_layers_of_other_packages(package: str) -> None:
    if package == "equinox":
        made = eqx.nn.Embedding(weight=TABLE)
        params, static = eqx.partition(made, eqx.is_array)
        look = lambda p, i: eqx.combine(p, static)(i)  # noqa: E731
    else:
        layer = flax.linen.Embed(ROWS, NEURONS, dtype=float, param_dtype=float)
        params = {"params": {"embedding": TABLE}}
        look = lambda p, i: jnp.asarray(layer.apply(p, i))  # noqa: E731

    def step(p: Any, h: Any, number: Any) -> Any:
        h = 0.8 * h + jnp.tanh(look(p, number))
        return h, h

    found = []
    for rule in (D, EXACT):
        learner, weights = pb.capture_function(step, params, STATE, jnp.asarray(0), algorithm=rule)
        found.append(_whole(learner, weights, ONE)[0])
    (row,) = pb.explain(pb.capture_function(step, params, STATE, jnp.asarray(0), algorithm=D)[0]).rows
    assert row.way == "trace"
    assert_gradients_alive(found[0])
    assert_close(*found)


def test_a_number_from_the_state() -> None:
    """A clock that counts the steps says which row is read."""

    def step(p: Any, state: Any, x: Any) -> Any:
        h, clock = state
        h = 0.8 * h + jnp.tanh(x * p[clock % ROWS])
        return (h, clock + 1), h

    start, found = (STATE, jnp.asarray(0)), []
    for rule in (D, EXACT):
        learner, params = pb.capture_function(step, TABLE, start, jnp.asarray(0.0), algorithm=rule)
        found.append(pb.sequence_grad(learner, squared)(params, None, normal(STEPS), np.zeros(STEPS))[0])
    assert_gradients_alive(found[0])
    assert_close(*found)


def test_an_output_out_of_range_is_that_of_the_lookup() -> None:
    learner, params = captured(ONE, D, WAYS["jnp.take"].taken)
    _, output = learner.step(params, learner.init(), jnp.asarray(ROWS + 2))
    assert jnp.isnan(output).all()


def test_a_table_without_a_trace_is_not_multiplied() -> None:
    """A lookup whose row goes into another weight's use has no trace, with that line as the reason."""

    def step(p: Any, h: Any, number: Any) -> Any:
        h = 0.8 * h + jnp.tanh(p["E"][number] @ p["w"])
        return h, h

    weights = {"E": TABLE, "w": normal(NEURONS, NEURONS)}
    learner, params = pb.capture_function(step, weights, STATE, jnp.asarray(0), algorithm=D)
    first, second = pb.explain(learner).rows
    assert first.way == "gradient of the step"
    assert "only through another weight's use at test_lookups.py" in first.reason
    assert second.way == "trace"
    _, output = learner.step(params, learner.init(), jnp.asarray(2))
    assert_identical(output, jnp.tanh(TABLE[2] @ weights["w"]))
    got = pb.sequence_grad(learner, squared)(params, None, numbers(1), np.zeros(1))[0]
    assert_close(got, jax.grad(lambda p: squared(step(p, STATE, numbers(1)[0])[1], 0))(params))


def test_a_lookup_of_another_form_says_so() -> None:
    """A row of the table for each row of numbers is no product with one row of zeros and a one."""

    def step(p: Any, h: Any, number: Any) -> Any:
        h = 0.8 * h + jnp.take_along_axis(p, number[:, None], axis=1)[:, 0]
        return h, h

    learner, _ = pb.capture_function(step, TABLE.T, STATE, jnp.zeros(NEURONS, int), algorithm=D)
    (row,) = pb.explain(learner).rows
    assert row.way == "gradient of the step"
    assert row.reason.startswith("its input is int")
    assert row.where.startswith("test_lookups.py")


def test_every_law_holds() -> None:
    step, params = stepping(ONE.taken), {"E": TABLE, "a": 0.8 + 0.1 * normal(NEURONS)}
    inputs, targets = data_of(ONE)
    report = testing.assert_interchangeable(
        lambda: testing.Function(step, params, STATE), D, inputs, targets, squared, is_exact=True
    )
    assert set(report.excused) == {"parity"}
    assert not report.refused
