"""A scan that stacks what changes alone, against the scan of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from pure_batching._learning.unchanging import scan

from .trees import assert_close, assert_identical

XS = {"x": jnp.arange(12.0).reshape(4, 3), "none": None}
WEIGHT = jnp.array([1.0, 2.0, 3.0])


def step(state: Any, given: Any) -> Any:
    """Results that depend on the state, on what is given, on a weight alone, and on nothing."""
    new = {"h": 0.5 * state["h"] + given["x"] * WEIGHT, "n": state["n"] + 1}
    return new, {"h": new["h"], "x": given["x"].sum(), "w": jnp.tanh(WEIGHT), "one": jnp.ones(2), "n": state["n"]}


START = {"h": jnp.zeros(3), "n": jnp.zeros((), jnp.int32)}


def stacked(function: Any) -> list[Any]:
    """The shapes that the scan of a function stacks."""
    scans = [eqn for eqn in jax.make_jaxpr(function)().eqns if eqn.primitive.name == "scan"]
    return [var.aval.shape for eqn in scans for var in eqn.outvars if len(var.aval.shape) and var.aval.shape[0] == 4]


def test_equals_the_scan_of_jax() -> None:
    for run in (lambda f: f, jax.jit):
        got, want = run(lambda: scan(step, START, XS))(), run(lambda: jax.lax.scan(step, START, XS))()
        assert_identical(got, want)


def test_what_changes_is_stacked_and_nothing_else() -> None:
    assert len(stacked(lambda: jax.lax.scan(step, START, XS))) == len(("h", "x", "w", "one", "n"))
    assert sorted(stacked(lambda: scan(step, START, XS))) == [(4,), (4,), (4, 3)]


def test_inside_other_transforms() -> None:
    """With a weight, a state and inputs that are traced."""

    def total(weight: jax.Array, run: Any) -> jax.Array:
        def weighted(state: Any, given: Any) -> Any:
            new = jnp.tanh(state + given * weight)
            return new, (new.sum(), weight.sum())

        _, ys = run(weighted, weight, XS["x"])
        return ys[0].sum() + ys[1].prod()

    weights = jnp.stack([WEIGHT, -WEIGHT]) / 10
    got, want = (jax.jit(jax.vmap(jax.grad(lambda w, run=run: total(w, run))))(weights) for run in (scan, jax.lax.scan))
    assert_close(got, want)


def test_what_comes_from_outside_may_change() -> None:
    """A result of a callback depends on nothing that a program knows, and is another in every step."""
    calls = []

    def look() -> np.ndarray:
        calls.append(0)
        return np.asarray(len(calls), np.int32)

    def looked(state: jax.Array, x: jax.Array) -> Any:
        return state + x, io_callback(look, jax.ShapeDtypeStruct((), jnp.int32), ordered=True)

    _, found = scan(looked, jnp.zeros(()), jnp.arange(4.0))
    assert_identical(found, jnp.array([1, 2, 3, 4], jnp.int32))
    assert len(calls) == len(found)
