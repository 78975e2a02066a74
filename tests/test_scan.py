"""A scan that does little in its loop, against the scan of JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from pure_batching._learning.scan import scan

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


class TestProducts:
    """A product of a weight with what is given alone is made before the loop."""

    W, V = (0.1 * jnp.arange(size, dtype=jnp.float32).reshape(-1, 3) for size in (15, 9))
    ROWS = jnp.arange(8.0, dtype=jnp.float32).reshape(4, 2)

    def apart(self, h: jax.Array, x: jax.Array) -> Any:
        """Of the form that cells have, on either side of the weight; the product of `[x, h]` waits for `h`."""
        new = jnp.tanh(x @ self.W[:2] + h @ self.V) + self.W[:2].T @ x + jnp.concatenate([x, h]) @ self.W
        return new, (new @ self.V).sum()

    def given(self, h: jax.Array, x: jax.Array) -> Any:
        """With a network in front of the state, so that a product reads another."""
        new = jnp.tanh(h @ self.V + jax.nn.relu(x @ self.W[:2]) @ self.V)
        return new, new.sum()

    def made(self, step: Any) -> tuple[list[Any], list[Any]]:
        """The shapes of the products before the loop, and of those inside."""
        function = lambda h, xs: scan(step, h, xs)  # noqa: E731
        jaxpr = jax.make_jaxpr(function)(jnp.ones(3), self.ROWS).jaxpr
        (loop,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
        body = loop.params["jaxpr"].jaxpr
        return tuple(  # type: ignore[return-value]
            [eqn.outvars[0].aval.shape for eqn in eqns if eqn.primitive.name == "dot_general"]
            for eqns in (jaxpr.eqns, body.eqns)
        )

    def test_they_leave_the_loop(self) -> None:
        before, inside = self.made(self.apart)
        assert [sorted(shape) for shape in before] == [[3, 4], [3, 4]]
        assert inside == [(3,)] * 3
        before, inside = self.made(self.given)
        assert [sorted(shape) for shape in before] == [[3, 4], [3, 4]]
        assert inside == [(3,)]

    def test_equals_the_scan_of_jax(self) -> None:
        for step in (self.apart, self.given):
            got, want = (run(step, jnp.ones(3), self.ROWS) for run in (scan, jax.lax.scan))
            assert_close(got, want)
            assert float(jnp.abs(want[0]).min()) > 0.1

    def test_a_weight_is_taken_apart_once(self) -> None:
        """And not in every step, where XLA would copy it."""

        def step(h: jax.Array, x: jax.Array) -> Any:
            new = h @ self.W[2:] + x.sum()
            return new, new.sum()

        jaxpr = jax.make_jaxpr(lambda h: scan(step, h, self.ROWS))(jnp.ones(3)).jaxpr
        (loop,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
        assert "slice" in {eqn.primitive.name for eqn in jaxpr.eqns}
        assert "slice" not in {eqn.primitive.name for eqn in loop.params["jaxpr"].jaxpr.eqns}

    def test_what_is_done_in_turn_stays(self) -> None:
        """A callback, a draw and a branch are not done for all steps at once, nor what is made of them."""
        told: list[int] = []

        def told_of(x: jax.Array) -> jax.Array:
            jax.debug.callback(lambda _: told.append(0), x)
            return x

        def drawn(x: jax.Array) -> jax.Array:
            return x + jax.random.normal(
                jax.random.fold_in(jax.random.key(0), x[0].astype(jnp.int32)), (2,), jnp.float32
            )

        def branched(x: jax.Array) -> jax.Array:
            return jax.lax.cond(x[0] > 2, jnp.sin, jnp.cos, x)

        for change, early in ((told_of, 1), (drawn, 0), (branched, 0)):

            def step(h: jax.Array, x: jax.Array, change: Any = change) -> Any:
                new = h @ self.V + change(x) @ self.W[:2]
                return new, new.sum()

            before, inside = self.made(step)
            assert (len(before), len(inside)) == (early, 2 - early)
        scan(lambda h, x: (h + told_of(x).sum(), None), jnp.ones(()), self.ROWS)
        jax.effects_barrier()
        assert len(told) == len(self.ROWS)

    def test_what_a_weight_is_taken_apart_into_is_known_in_the_loop(self) -> None:
        """One equation makes what a product reads, which is early, and what a sum reads, which is not."""

        def step(h: jax.Array, x: jax.Array) -> Any:
            left, right = jnp.split(self.W, [2])
            new = h @ self.V + x @ left + right[0]
            return new, new.sum()

        got, want = scan(step, jnp.ones(3), self.ROWS), jax.lax.scan(step, jnp.ones(3), self.ROWS)
        assert_close(got, want)

    def test_a_callback_is_not_mapped(self) -> None:
        def step(h: jax.Array, x: jax.Array) -> Any:
            told = jax.pure_callback(lambda x: 2 * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
            new = h @ self.V + told @ self.W[:2]
            return new, new.sum()

        got, want = scan(step, jnp.ones(3), self.ROWS), jax.lax.scan(step, jnp.ones(3), self.ROWS)
        assert_close(got, want)
