"""The Euclidean norm, without squares that overflow or vanish where the norm itself does not."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Measure(NamedTuple):
    """A way to measure a gradient of one sample.

    Attributes:
      of_arrays: of all entries of some arrays, `[]`.
      of_products: of `sum_t x[t] (x) dy[t]` for `x` and `dy` `[T, ...]`, by inner products of steps (the Gram form).
      of_parts: the norm from the measures of the parts of a gradient.
    """

    of_arrays: Callable[[Sequence[jax.Array]], jax.Array]
    of_products: Callable[[jax.Array, jax.Array], jax.Array]
    of_parts: Callable[[Sequence[jax.Array]], jax.Array]


def norms_by(measured: Callable[[Measure], jax.Array]) -> jax.Array:
    """Norms `[B]` by plain squares, or by scaled ones where a square is no finite number or may have lost digits."""
    plain = measured(PLAIN)
    limits = jnp.finfo(plain.dtype)
    least = limits.tiny / limits.eps**2  # what vanishes beside it is below its last digit
    is_exact = ((plain**2 > least) & jnp.isfinite(plain)).all()
    return jax.lax.cond(is_exact, lambda: plain, lambda: measured(SCALED))


def _square_of(arrays: Sequence[jax.Array]) -> jax.Array:
    return sum((jnp.vdot(array, array) for array in arrays[1:]), start=jnp.vdot(arrays[0], arrays[0]))


def _root_of_sum(squares: Sequence[jax.Array]) -> jax.Array:
    return jnp.sqrt(sum(squares[1:], start=squares[0]))


def norm_of(arrays: Sequence[jax.Array]) -> jax.Array:
    """`sqrt(sum of squares)` of all entries, `[]`: the largest magnitude is taken out first."""
    scale = _divisor(arrays)
    return scale * _root_of_sum([jnp.square(array / scale).sum() for array in arrays])


def _norm_of_products(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The root of `sum_{t, s} (x[t] . x[s]) (dy[t] . dy[s])`.

    Each step's vectors are divided by their largest entries, and the products of these by the largest product. A step
    whose vector is zero weighs nothing.
    """
    of_x, of_dy = (jnp.abs(vectors).max(1) for vectors in (x, dy))
    most_x, most_dy = _divisor([of_x]), _divisor([of_dy])
    weights = (of_x / most_x) * (of_dy / most_dy)
    largest = _divisor([weights])
    unit_x, unit_dy = (vectors / jax.vmap(lambda one: _divisor([one]))(vectors)[:, None] for vectors in (x, dy))
    unit_dy = (weights / largest)[:, None] * unit_dy
    square = ((unit_x @ unit_x.T) * (unit_dy @ unit_dy.T)).sum()
    return most_x * largest * most_dy * jnp.sqrt(jnp.maximum(square, 0))


def _divisor(arrays: Sequence[jax.Array]) -> jax.Array:
    """The largest magnitude, `[]`; 1 where that is 0, NaN or infinite, which the norm is then too."""
    largest = jnp.stack([jnp.abs(array).max() for array in arrays]).max()
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


PLAIN = Measure(_square_of, lambda x, dy: jnp.square(_norm_of_products(x, dy)), _root_of_sum)
SCALED = Measure(norm_of, _norm_of_products, norm_of)
