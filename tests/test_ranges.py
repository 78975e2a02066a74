"""Norms and clipped gradients are right over the whole range of a float type, not only where squares are numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching._learning.euclid import SCALED, norm_of

from .bench import RULES

every_type = pytest.mark.parametrize("dtype", [np.float32, np.float64])
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def exponents(dtype: Any) -> np.ndarray:
    """Those of the normal numbers: every one of float32, every eighth of float64 and the last eight at both ends."""
    limits = np.finfo(dtype)
    every = np.arange(limits.minexp, limits.maxexp)
    return every if dtype is np.float32 else np.unique(np.concatenate([every[:8], every[::8], every[-8:]]))


def assert_equals(got: Any, want: np.ndarray, dtype: Any) -> None:
    """Within the tolerance, and with no number that is lost or infinite."""
    got = np.asarray(got)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(np.longdouble) / want, 1, rtol=0, atol=TOLERANCE[dtype])


class TestEuclid:
    @every_type
    def test_one_number_at_every_power_of_two(self, dtype: Any) -> None:
        """Its norm is itself, bit by bit."""
        powers = np.ldexp(dtype(1), exponents(dtype))
        assert (np.isfinite(powers) & (powers > 0)).all()
        np.testing.assert_array_equal(jax.jit(jax.vmap(lambda one: norm_of([one])))(powers[:, None]), powers)

    @every_type
    def test_several_arrays_at_every_power_of_two(self, dtype: Any, seed: int) -> None:
        """The largest norm is above half of the largest number."""
        of_norm = exponents(dtype)[2:]
        entries = np.random.default_rng(seed).uniform(0.25, 0.5, 5).astype(dtype) + np.eye(1, 5, dtype=dtype)[0]
        scaled = np.ldexp(entries, of_norm[:, None])
        want = np.sqrt((scaled.astype(np.longdouble) ** 2).sum(1))
        assert np.finfo(dtype).max / 2 < want.max() < np.finfo(dtype).max
        assert_equals(jax.jit(jax.vmap(lambda one: norm_of([one[:2], one[2:]])))(scaled), want, dtype)

    @every_type
    @pytest.mark.parametrize("part", [0.0, 0.5, 1.0])
    def test_products_at_every_power_of_two(self, part: float, dtype: Any, seed: int) -> None:
        """A part of the power lies in the inputs; where the first step has it, the second has the rest."""
        draw, of_norm = np.random.default_rng(seed), exponents(dtype)[:-4]
        of_x = (of_norm * part).astype(int)
        powers = np.stack([of_x, of_norm - of_x], 1)  # [S, T]
        x = np.ldexp(draw.uniform(1, 2, (2, 3)).astype(dtype), powers[:, :, None])
        dy = np.ldexp(draw.uniform(1, 2, (2, 4)).astype(dtype), powers[:, ::-1, None])
        whole = np.einsum("sti,stj->sij", *(one.astype(np.longdouble) for one in (x, dy)))
        want = np.sqrt((whole**2).sum((1, 2)))
        assert np.finfo(dtype).max / 16 < want.max() < np.finfo(dtype).max
        assert_equals(jax.jit(jax.vmap(SCALED.of_products))(x, dy), want, dtype)

    def test_a_step_without_input_does_not_set_the_scale(self) -> None:
        x = np.array([[1, 1], [0, 0]], np.float32) * np.float32(2**-60)
        dy = np.array([[2**-60, 0], [2**60, 2**60]], np.float32)
        np.testing.assert_allclose(SCALED.of_products(jnp.asarray(x), jnp.asarray(dy)), 2**0.5 * 2**-120, rtol=1e-6)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_no_number_stays_none(self, bad: float) -> None:
        assert not np.isfinite(norm_of([jnp.array([1.0, bad, 0.0])]))
        assert not np.isfinite(SCALED.of_products(jnp.array([[1.0], [bad]]), jnp.ones((2, 1))))
        assert norm_of([jnp.zeros(3)]) == 0


# Whose norms are made from a contraction, from the Gram form of the larger layer, and from the whole gradient.
WAYS = {"contracted": ("D_RTRL published", 3), "gram": ("D_RTRL published", 8), "whole": ("BPTT", 3)}
every_way = pytest.mark.parametrize("way", WAYS)


def linear(way: str, dtype: Any) -> tuple[pb.Learner, Any, np.ndarray]:
    """A step whose output is `x @ w`, its weights, and two steps of inputs of ones, `[T, in]`.

    The loss `(output * target).sum()` has the gradient `2 target` in each of `size**2` entries.
    """
    rule, size = WAYS[way]

    def step(weight: jax.Array, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = x @ weight
        return new + 0 * state, new

    example = jnp.ones(size, dtype)
    learner, params = pb.capture_function(step, jnp.ones((size, size), dtype), example, example, algorithm=RULES[rule])
    return learner, params, np.ones((2, size), dtype)


def product(output: jax.Array, target: jax.Array) -> jax.Array:
    return (output * target).sum()


@every_type
@every_way
def test_norms_of_every_size(way: str, dtype: Any) -> None:
    """One batch, whose samples have the gradients of every power of two."""
    learner, params, inputs = linear(way, dtype)
    size = inputs.shape[1]
    targets = np.ldexp(dtype(1), exponents(dtype)[:-5])  # [B]
    norms = pb.sample_norms(pb.vmap(learner, len(targets)), product)
    got, _ = norms(params, None, np.repeat(inputs[:, None], len(targets), 1), np.stack([targets] * 2))
    assert_equals(got, 2 * size * targets.astype(np.longdouble), dtype)


@every_type
@every_way
def test_clipped_gradients_of_every_size(way: str, dtype: Any) -> None:
    """Both samples have one gradient, whose norm is clipped to the bound; no pair of them is out of range."""
    learner, params, inputs = linear(way, dtype)
    size, limits = inputs.shape[1], np.finfo(dtype)
    targets = np.ldexp(dtype(1), np.linspace(limits.minexp + 1, limits.maxexp - 6, 12).astype(int))
    bounds = np.ldexp(dtype(1.5), np.linspace(limits.minexp + 6, limits.maxexp - 4, 6).astype(int))

    def clipped(target: jax.Array, bound: jax.Array) -> Any:
        fun = pb.clipped_grad(pb.vmap(learner, 2), product, bound, reduction="sum")
        given = jnp.broadcast_to(jnp.asarray(inputs)[:, None], (2, 2, size))
        return fun(params, None, given, jnp.full((2, 2), target))

    pairs = [each.ravel() for each in np.meshgrid(targets, bounds)]
    gradients, aux = jax.jit(jax.vmap(clipped))(*pairs)
    norm = 2 * size * pairs[0].astype(np.longdouble)
    wide = np.asarray(gradients).astype(np.longdouble)
    want = 2 * np.minimum(norm, pairs[1]) / size
    assert_equals(gradients, np.broadcast_to(want[:, None, None], wide.shape), dtype)
    np.testing.assert_array_equal(aux.clipped, 2 * (norm > pairs[1]))
    assert 0 < (norm > pairs[1]).sum() < len(norm)


@pytest.mark.parametrize(
    ("scale", "bound", "want"),
    [
        (1e36, 1e-3, [1e-3, 2e-4]),
        (1e36, 1e30, [1e30, 2e-4]),
        (1e36, np.inf, [8e36, 2e-4]),
        (np.inf, 1e-3, [np.nan, 2e-4]),
    ],
)
def test_a_large_sample_leaves_a_small_one(scale: float, bound: float, want: list[float]) -> None:
    """Each has a row of the weight to itself: the norm of the small one is below every bound."""
    learner, params, _ = linear("contracted", np.float32)
    inputs = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
    targets = np.array([[[scale, 0, 0], [0, 1e-4 * 2, 0]]], np.float32)
    if np.isfinite(scale):
        targets = targets * np.array([[[8], [1]]], np.float32)
    fun = pb.clipped_grad(pb.vmap(learner, 2), product, bound, reduction="sum")
    gradients, _ = fun(params, None, inputs, targets)
    np.testing.assert_allclose(np.asarray(gradients)[[0, 1], [0, 1]], np.array(want, np.float32), rtol=1e-5)
