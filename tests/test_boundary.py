"""The end of a window: what it does to traces as large as weights, and in how much memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching._algorithms._diagonal_window import IN_TURN
from pure_batching._learning import windows
from pure_batching._learning.order import after
from pure_batching._learning.tiles import SUMMED_AT_ONCE, sum_of_samples
from pure_batching._tree import nbytes

from .alive import assert_gradients_alive
from .bench import RULES
from .models import squared
from .trees import assert_close, assert_identical

# More than two groups of samples, and a number of samples that no number of devices divides.
MANY = 2 * SUMMED_AT_ONCE + 5
SIZE, STEPS = 96, 6

WITH_TRACE_PRODUCT = [name for name in RULES if name.startswith(("D_RTRL", "Hybrid", "EProp", "RTRL"))]


def step(weight: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A leaky layer whose output reads the old state too, so that every part of a complete gradient is there."""
    new = 0.9 * h + jnp.tanh(x @ weight)
    return new, new + 0.5 * h


def learner_of(rule: pb.Algorithm, size: int = SIZE) -> pb.Learner:
    args = jnp.ones((size, size), jnp.float32) / size, jnp.zeros(size, jnp.float32), jnp.ones(size, jnp.float32)
    return pb.capture_function(step, *args, algorithm=rule)[0]


@pytest.mark.parametrize("size", [1, SUMMED_AT_ONCE - 1, SUMMED_AT_ONCE, MANY, 8 * 3, 8 * (SUMMED_AT_ONCE + 1)])
def test_the_sum_over_samples(size: int) -> None:
    """Of any number, and of several arrays."""
    a, b = jax.random.normal(jax.random.key(0), (size, 3)), jnp.arange(size * 2.0).reshape(size, 2)

    def fun(x: jax.Array, y: jax.Array) -> Any:
        return {"outer": x[:, None] * y, "x": x}

    got = jax.jit(sum_of_samples(fun, size))(a, b)
    assert_close(got, {"outer": jnp.einsum("bi,bj->ij", a, b), "x": a.sum(0)})


@pytest.mark.parametrize("rule", WITH_TRACE_PRODUCT)
def test_many_samples_add_up(rule: str, seed: int) -> None:
    """In groups, with a trace that came in, as the gradients of the samples do."""
    batched = pb.vmap(learner_of(RULES[rule], 3), MANY)
    weight = jax.random.normal(jax.random.key(seed), (3, 3), jnp.float32)
    inputs = jax.random.normal(jax.random.key(seed + 1), (STEPS, MANY, 3), jnp.float32)
    data = inputs, jnp.zeros_like(inputs)
    _, aux = pb.sequence_grad(batched, squared, window=2)(weight, None, *data)
    each, total = (
        pb.sequence_grad(batched, squared, reduction=reduction, window=2)(weight, aux.carry, *data)[0]
        for reduction in ("none", "sum")
    )
    assert_gradients_alive(total)
    assert_close(total, each.sum(0))


@pytest.mark.parametrize("rule", ["D_RTRL", "D_RTRL published"])
def test_the_trace_is_replaced_in_place(rule: str) -> None:
    """Windows of one step need one trace besides the one that is given back, however many windows there are.

    With the published rule even that one is not needed: a window reads the old trace before it writes the new one.
    """
    batched = pb.vmap(learner_of(RULES[rule]), MANY)
    grad_fn = pb.sequence_grad(batched, squared, window=1)
    specs = [jax.ShapeDtypeStruct((16, MANY, SIZE), jnp.float32)] * 2
    lowered = jax.jit(lambda w, *data: grad_fn(w, None, *data)).lower(batched.program.params["params"], *specs)
    memory: Any = lowered.compile().memory_analysis()
    trace = nbytes(batched.carry_spec().trace)
    assert memory.temp_size_in_bytes < (0.25 if "published" in rule else 1.25) * trace


def chosen(rule: str, samples: int, budget: int = 2**40) -> int:
    """The length of a window, of a long sequence."""
    return windows.Windows(None, budget).chosen(pb.vmap(learner_of(RULES[rule]), samples), 2**17)


def test_traces_as_large_as_weights_are_paid_for() -> None:
    """By windows that keep more than a cache holds, and are equally long for any number of samples."""
    default = "D_RTRL"
    assert chosen("ES_D_RTRL", 2048) < chosen("ES_D_RTRL", 1024) < chosen(default, 1024) / 4
    assert chosen(default, 2048) == chosen(default, 1024)


@pytest.mark.parametrize("rule", ["D_RTRL published", "EProp"])
def test_a_trace_that_the_end_of_a_window_makes_is_made_as_seldom_as_the_budget_allows(rule: str) -> None:
    assert chosen(rule, 64) == 2**17
    assert chosen(rule, 64, 2**28) == chosen(rule, 32, 2**27) < 2**17


@pytest.mark.parametrize("rule", ["D_RTRL published", "EProp"])
def test_a_trace_is_the_same_in_turn_and_at_once(rule: str, seed: int) -> None:
    """Of a window that makes its steps in turn, and of one that is too long for it; from a trace that is not zero."""
    name = next(name for name in RULES if name.startswith(rule))
    batched, time = pb.vmap(learner_of(RULES[name], 3), 4), IN_TURN + 4
    weight = jax.random.normal(jax.random.key(seed), (3, 3), jnp.float32)
    inputs = jax.random.normal(jax.random.key(seed + 1), (time, 4, 3), jnp.float32)

    def run(carry: Any, window: int) -> Any:
        gradients, aux = pb.sequence_grad(batched, squared, window=window)(weight, carry, inputs, inputs)
        return gradients, aux.carry

    begun = run(None, 1)[1]
    assert min(abs(leaf).max() for leaf in jax.tree.leaves(begun.trace)) > 0.1
    assert_close(run(begun, time), run(begun, 2))
    assert_gradients_alive(run(begun, time)[0])


@pytest.mark.parametrize("rule", WITH_TRACE_PRODUCT)
def test_the_first_window_of_large_traces_reads_none(rule: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is run by itself, and gives what it gives among the others; masks, resets and a rest of a window included."""
    batched = pb.vmap(learner_of(RULES[rule], 3), 4)
    weight = jax.random.normal(jax.random.key(seed), (3, 3), jnp.float32)
    inputs = jax.random.normal(jax.random.key(seed + 1), (STEPS + 1, 4, 3), jnp.float32)
    mask, reset = jnp.ones((STEPS + 1, 4), bool).at[1, 0].set(False), jnp.zeros((STEPS + 1, 4), bool).at[1, 1].set(True)

    def result() -> Any:
        def loss(output: jax.Array, target: jax.Array) -> jax.Array:  # a new one, so that all is traced again
            return squared(output, target)

        return pb.sequence_grad(batched, loss, window=2)(weight, None, inputs, inputs, mask=mask, reset=reset)

    want = result()
    monkeypatch.setattr(windows, "_CACHED", 0)
    assert windows.has_large_traces(batched)
    assert_close(result(), want)
    assert_gradients_alive(want[0])


@pytest.mark.parametrize("number", [0.0, jnp.nan, jnp.inf, -jnp.inf])
def test_an_order_changes_nothing(number: float) -> None:
    """Whatever is waited for, the value comes back bit for bit."""
    value = {"a": jnp.array([1.0, jnp.nan, -0.0]), "b": jnp.arange(3)}
    assert_identical(jax.jit(after)({"first": jnp.full(2, number), "none": jnp.zeros(0)}, value), value)
    assert np.signbit(after(jnp.full(2, number), value)["a"][2])
