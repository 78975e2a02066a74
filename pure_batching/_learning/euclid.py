"""The Euclidean norm, without squares that overflow or vanish where the norm itself does not."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    parts = _real(arrays)
    return sum((jnp.vdot(part, part) for part in parts[1:]), start=jnp.vdot(parts[0], parts[0]))


def _real(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Real and imaginary parts, of the arrays that have entries; a zero where none has."""
    parts = [part for array in arrays for part in ((array.real, array.imag) if jnp.iscomplexobj(array) else (array,))]
    return [part for part in parts if part.size] or [jnp.zeros(1, parts[0].dtype)]


def _root_of_sum(squares: Sequence[jax.Array]) -> jax.Array:
    return jnp.sqrt(sum(squares[1:], start=squares[0]))


def norm_of(arrays: Sequence[jax.Array]) -> jax.Array:
    """`sqrt(sum of squares)` of all entries, `[]`: a power of two near the largest magnitude is taken out first."""
    parts = _real(arrays)
    exponent = exponent_of(jnp.stack([jnp.abs(part).max() for part in parts]).max())
    down = power_of_two(-exponent, parts[0].dtype)
    return _times_power(_root_of_sum([jnp.square(part * down).sum() for part in parts]), exponent)


def _norm_of_products(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The root of `sum_{t, s} (x[t] . x[s]) (dy[t] . dy[s])`.

    A power of two is taken out of each step's vectors, and the largest product of two such powers out of all steps. A
    step whose vector is zero weighs nothing.
    """
    of_x, of_dy = (jnp.abs(vectors).max(1) for vectors in (x, dy))
    exponent_x, exponent_dy = exponent_of(of_x), exponent_of(of_dy)
    exponents = jnp.where((of_x > 0) & (of_dy > 0), exponent_x + exponent_dy, 4 * jnp.finfo(x.dtype).minexp)
    largest = exponents.max()
    unit_x = x * power_of_two(-exponent_x, x.dtype)[:, None]
    unit_dy = dy * power_of_two(-exponent_dy, dy.dtype)[:, None] * power_of_two(exponents - largest, dy.dtype)[:, None]
    square = ((unit_x @ unit_x.T) * (unit_dy @ unit_dy.T)).sum()
    return _times_power(jnp.sqrt(jnp.maximum(square, 0)), largest)


def exponent_of(magnitudes: jax.Array) -> jax.Array:
    """The whole part of `log2`, or the nearest exponent that `power_of_two` knows.

    It is 0 where there is none, that is of 0, NaN and infinity, which the norm is then too.
    """
    held, limits = jax.lax.stop_gradient(magnitudes), jnp.finfo(magnitudes.dtype)
    exponents = jnp.clip(jnp.frexp(held)[1] - 1, limits.minexp, -limits.minexp)
    return jnp.where((held > 0) & jnp.isfinite(held), exponents, 0)


def power_of_two(exponent: jax.Array, dtype: Any) -> jax.Array:
    """`2**exponent` without rounding, or the nearest power that is a normal number with a normal reciprocal.

    A product with a subnormal number, such as the reciprocal of a very large one, is zero on many processors.
    """
    limits = jnp.finfo(dtype)
    biased = jnp.clip(exponent, limits.minexp, -limits.minexp) - limits.minexp + 1
    return jax.lax.bitcast_convert_type(biased.astype(f"int{limits.bits}") << limits.nmant, dtype)


def _times_power(number: jax.Array, exponent: jax.Array) -> jax.Array:
    """`number * 2**exponent` by two factors, since one of them might be no normal number."""
    half = exponent // 2
    return number * power_of_two(half, number.dtype) * power_of_two(exponent - half, number.dtype)


PLAIN = Measure(_square_of, lambda x, dy: jnp.square(_norm_of_products(x, dy)), _root_of_sum)
SCALED = Measure(norm_of, _norm_of_products, norm_of)
