"""Float types that are mixed or narrow: every rule works, and its sums lose nothing that the result could hold."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.errors import CaptureError
from pure_batching.testing import Function, assert_interchangeable

from .bench import ONLINE_RULES, RULES, SAMPLES, STEPS
from .modules import Mixed, WeakStart, Widening
from .trees import assert_identical, distance, named

N_IN, N_REC = 5, 6

# The types of weights, inputs and states, and how far a gradient may be from that in float64.
MIXTURES: Mapping[str, tuple[tuple[Any, Any, Any], float]] = {
    "weights in bfloat16": ((jnp.bfloat16, np.float32, np.float32), 0.02),
    "states in bfloat16": ((np.float32, np.float32, jnp.bfloat16), 0.1),
    "inputs in float16": ((np.float32, np.float16, np.float32), 2e-3),
    "states in float16": ((np.float16, np.float32, np.float16), 0.02),
    "all in float16": ((np.float16, np.float16, np.float16), 0.02),
    "all in bfloat16": ((jnp.bfloat16, jnp.bfloat16, jnp.bfloat16), 0.1),
    "weights in float32": ((np.float32, np.float64, np.float64), 1e-5),
    "states in float64": ((np.float32, np.float32, np.float64), 1e-5),
}


def data(seed: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets that float16 and bfloat16 hold exactly."""
    draw = np.random.default_rng(seed)
    return (np.round(draw.normal(size=(steps, SAMPLES, n)) * 16) / 16 for n in (N_IN, N_REC))


def squared(output: jax.Array, target: jax.Array) -> jax.Array:
    return ((output.astype(target.dtype) - target) ** 2).sum()


def gradient(rule: str, types: tuple[Any, Any, Any], seed: int, fun: Any = pb.sequence_grad, **options: Any) -> Any:
    inputs, targets = data(seed)
    learner, params = pb.capture(Mixed(N_IN, N_REC, *types), inputs[0, 0].astype(types[1]), algorithm=RULES[rule])
    return fun(pb.vmap(learner, SAMPLES), squared, **options)(params, None, inputs.astype(types[1]), targets)


class TestMixtures:
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("mixture", MIXTURES)
    def test_a_gradient(self, mixture: str, rule: str, seed: int) -> None:
        types, tolerance = MIXTURES[mixture]
        got, _ = gradient(rule, types, seed, reduction="none", window=4)
        want, _ = gradient(rule, (np.float64,) * 3, seed, reduction="none", window=4)
        for (name, one), (_, other) in zip(named(got), named(want), strict=True):
            assert one.dtype == types[0], name
            assert 0 < distance(np.asarray(one, np.float64), other) < tolerance, name

    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL", "BPTT"])
    @pytest.mark.parametrize("mixture", MIXTURES)
    def test_norms_and_a_step(self, mixture: str, rule: str, seed: int) -> None:
        types, tolerance = MIXTURES[mixture]
        got, _ = gradient(rule, types, seed, pb.sample_norms)
        want, _ = gradient(rule, (np.float64,) * 3, seed, pb.sample_norms)
        assert distance(np.asarray(got, np.float64), np.asarray(want)) < tolerance
        clipped, _ = gradient(rule, types, seed, lambda *args: pb.clipped_grad(*args, float(want.min())))
        assert {leaf.dtype for leaf in jax.tree.leaves(clipped)} == {np.dtype(types[0])}

        learner, params = pb.capture(Mixed(N_IN, N_REC, *types), np.ones(N_IN, types[1]), algorithm=RULES[rule])
        of_step = jax.grad(lambda p: learner.step(p, learner.init(), np.ones(N_IN, types[1]))[1].astype(float).sum())
        assert all(np.asarray(leaf, float).any() for leaf in jax.tree.leaves(of_step(params)))

    def test_a_state_that_changes_its_type_is_refused(self) -> None:
        text = r"^Widening: h: got float64 after one step, expected float32, the dtype before\. Initialise the state"
        with pytest.raises(CaptureError, match=text):
            pb.capture(Widening(), np.ones(3), algorithm=pb.D_RTRL())

    @pytest.mark.parametrize("states", [jnp.bfloat16, np.float32, np.float64])
    def test_a_state_that_begins_as_a_python_number(self, states: Any, seed: int) -> None:
        """It takes the type that the step gives it, as a carry of `jax.lax.scan` does."""
        (inputs, targets), types = data(seed), (states, np.float32, states)
        made = [
            pb.capture(net(N_IN, N_REC, *types), np.ones(N_IN, np.float32), algorithm=pb.D_RTRL())
            for net in (Mixed, WeakStart)
        ]
        assert [learner.init().hidden["h"].dtype for learner, _ in made] == [states, states]
        (strong, _), (weak, _) = (
            pb.sequence_grad(pb.vmap(learner, SAMPLES), squared)(params, None, inputs.astype(np.float32), targets)
            for learner, params in made
        )
        assert_identical(weak, strong)

    def test_a_weight_that_begins_as_a_python_number(self) -> None:
        """Its 32 bits stay, though they are weak and JAX has 64 when the module is captured."""
        with jax.enable_x64(new_val=False):
            net = Mixed(N_IN, N_REC, np.float32, np.float32, np.float32)
            net.weight.value = {**net.weight.value, "bias": jnp.full(N_REC, 0.5)}
        _, params = pb.capture(net, np.ones(N_IN, np.float32), algorithm=pb.D_RTRL())
        assert params["weight"]["bias"].dtype == np.float32


class TestLaws:
    """In half precision too, within the tolerances of the testing kit."""

    @pytest.mark.parametrize("rule", RULES)
    def test_of_states_in_half_precision(self, rule: str) -> None:
        """The two types in turn."""
        self._check((jnp.bfloat16, np.float16)[list(RULES).index(rule) % 2], RULES[rule])

    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published", "EProp"])
    def test_of_traces_in_half_precision(self, rule: str) -> None:
        self._check(np.float32, dataclasses.replace(RULES[rule], trace_dtype=jnp.bfloat16))

    def _check(self, dtype: Any, rule: pb.Algorithm) -> None:
        def step(params: Any, hidden: Any, x: Any) -> Any:
            hidden = jnp.tanh(x @ params["w"] + hidden @ params["u"] + params["b"])
            return hidden, hidden

        draw = np.random.default_rng(0)
        shapes = {"w": (N_IN, N_REC), "u": (N_REC, N_REC), "b": (N_REC,)}
        params = {name: jnp.asarray(draw.normal(size=shape) / 2, dtype) for name, shape in shapes.items()}
        inputs, targets = data(0)
        function = Function(step, params, jnp.zeros(N_REC, dtype))
        laws = ("locality", "equality", "reduction", "time", "mask_and_reset")
        report = assert_interchangeable(
            lambda: function, rule, jnp.asarray(inputs, dtype), np.float32(targets), squared, laws=laws
        )
        assert set(report.held) == set(laws)
        assert not report.refused


class TestSums:
    @pytest.mark.parametrize("rule", ONLINE_RULES)
    def test_a_long_sum_in_float16(self, rule: str) -> None:
        """Four thousand terms of one size: a sum in float16 would stop at 2048 of them."""
        steps, types = 4096, (np.float16, np.float16, np.float16)
        inputs = np.ones((steps, 1, N_IN), np.float16)
        totals = []
        for dtypes in (types, (np.float64,) * 3):
            net = Mixed(N_IN, N_REC, *dtypes, leak=0.0)
            learner, params = pb.capture(net, inputs[0, 0].astype(dtypes[1]), algorithm=RULES[rule])
            grad_fn = pb.sequence_grad(pb.vmap(learner, 1), lambda output, _: output.astype(float).sum() * 1e-3)
            grads, _ = grad_fn(params, None, inputs.astype(dtypes[1]), np.zeros((steps, 1)))
            totals.append([np.asarray(leaf, float) for leaf in jax.tree.leaves(grads)])
        for got, want in zip(*totals, strict=True):
            np.testing.assert_allclose(got, want, rtol=0.01)

    @pytest.mark.parametrize("scale", [1e-30, 1e-22, 1.0, 1e22, 1e30])
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published", "BPTT"])
    @pytest.mark.parametrize("n_rec", [6, 40])
    def test_norms_in_float32(self, rule: str, scale: float, n_rec: int, seed: int) -> None:
        """Squares of these numbers overflow or vanish in float32. The larger layer is measured by the Gram form."""
        types = (np.float32, np.float32, np.float32)
        draw = np.random.default_rng(seed)
        inputs, targets = (draw.normal(size=(STEPS, SAMPLES, n)).astype(np.float32) for n in (n_rec, n_rec))
        learner, params = pb.capture(Mixed(n_rec, n_rec, *types), inputs[0, 0], algorithm=RULES[rule])
        batched = pb.vmap(learner, SAMPLES)

        def loss(output: jax.Array, target: jax.Array) -> jax.Array:
            return (output * target).sum() * jnp.float32(scale)

        each, _ = pb.sequence_grad(batched, loss, reduction="none")(params, None, inputs, targets)
        squares = sum((np.asarray(leaf, np.float64) ** 2).reshape(SAMPLES, -1).sum(1) for leaf in jax.tree.leaves(each))
        norms, _ = pb.sample_norms(batched, loss)(params, None, inputs, targets)
        np.testing.assert_allclose(np.asarray(norms, np.float64), np.sqrt(squares), rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e-22, 1e22])
    @pytest.mark.parametrize("n_rec", [6, 40])
    def test_norms_beside_steps_without_a_gradient(self, scale: float, n_rec: int, seed: int) -> None:
        """A masked step, and an input of zeros, must not set the scale of the others."""
        draw, mask = np.random.default_rng(seed), np.ones((STEPS, SAMPLES), bool)
        mask[1] = False
        inputs, targets = (draw.normal(size=(STEPS, SAMPLES, n_rec)).astype(np.float32) for _ in "xy")
        inputs[2] = 0
        types = (np.float32, np.float32, np.float32)
        learner, params = pb.capture(Mixed(n_rec, n_rec, *types), inputs[0, 0], algorithm=pb.D_RTRL())

        def norms(factor: float) -> np.ndarray:
            def loss(output: jax.Array, target: jax.Array) -> jax.Array:
                return (output * target).sum() * jnp.float32(factor)

            found, _ = pb.sample_norms(pb.vmap(learner, SAMPLES), loss)(params, None, inputs, targets, mask=mask)
            return np.asarray(found, np.float64)

        np.testing.assert_allclose(norms(scale), norms(1.0) * scale, rtol=1e-5)

    def test_a_sample_without_a_gradient(self) -> None:
        """Its norm is zero, and no number is lost for the others."""
        types = (np.float32, np.float32, np.float32)
        learner, params = pb.capture(Mixed(N_IN, N_REC, *types), np.ones(N_IN, np.float32), algorithm=pb.D_RTRL())
        mask = np.ones((STEPS, SAMPLES), bool)
        mask[:, 1] = False
        inputs = np.ones((STEPS, SAMPLES, N_IN), np.float32)
        fun = pb.sample_norms(pb.vmap(learner, SAMPLES), lambda output, _: output.sum())
        norms, _ = fun(params, None, inputs, np.zeros((STEPS, SAMPLES)), mask=mask)
        assert norms[1] == 0
        assert norms[0] > 0

    @pytest.mark.parametrize("number", [np.nan, np.inf])
    def test_what_is_no_number_stays_so(self, number: float) -> None:
        types = (np.float32, np.float32, np.float32)
        learner, params = pb.capture(Mixed(N_IN, N_REC, *types), np.ones(N_IN, np.float32), algorithm=pb.D_RTRL())
        inputs = np.ones((STEPS, SAMPLES, N_IN), np.float32)
        targets = np.ones((STEPS, SAMPLES))
        targets[2, 1] = number
        norms, _ = pb.sample_norms(pb.vmap(learner, SAMPLES), lambda output, target: (output * target).sum())(
            params, None, inputs, targets
        )
        assert not np.isfinite(norms[1])
        assert np.isfinite(norms[0])


class TestWindows:
    @pytest.mark.parametrize("window", [1, 4, None])
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL", "Hybrid published", "D_RTRL multi-step", "BPTT"])
    def test_norms_are_those_of_the_gradients(self, rule: str, window: int | None, seed: int) -> None:
        types = (np.float64,) * 3
        each, _ = gradient(rule, types, seed, reduction="none", window=window)
        norms, _ = gradient(rule, types, seed, pb.sample_norms, window=window)
        squares = sum((np.asarray(leaf) ** 2).reshape(SAMPLES, -1).sum(1) for leaf in jax.tree.leaves(each))
        np.testing.assert_allclose(norms, np.sqrt(squares), rtol=1e-12)
        bound = float(np.median(norms))
        clipped, _ = gradient(rule, types, seed, lambda *args: pb.clipped_grad(*args, bound, window=window))
        scales = np.minimum(1, bound / np.asarray(norms))
        for (name, got), (_, own) in zip(named(clipped), named(each), strict=True):
            np.testing.assert_allclose(got, np.tensordot(scales, own, 1) / SAMPLES, rtol=1e-10, err_msg=name)

    @pytest.mark.parametrize("make", [pb.sample_norms, functools.partial(pb.clipped_grad, bound=1.0)])
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published"])
    def test_memory_does_not_grow_with_time(self, rule: str, make: Any) -> None:
        def temporary(steps: int) -> int:
            learner, params = pb.capture(
                Mixed(N_IN, N_REC, np.float32, np.float32, np.float32), np.ones(N_IN, np.float32), algorithm=RULES[rule]
            )
            fun = make(pb.vmap(learner, SAMPLES), squared, window=8)
            data = [jax.ShapeDtypeStruct((steps, SAMPLES, n), np.float32) for n in (N_IN, N_REC)]
            lowered = jax.jit(lambda p, x, y: fun(p, None, x, y)[0]).lower(params, *data)
            return int(lowered.compile().memory_analysis().temp_size_in_bytes)

        losses = 8 * SAMPLES * (4096 - 64) * 4
        assert temporary(4096) - temporary(64) < losses
