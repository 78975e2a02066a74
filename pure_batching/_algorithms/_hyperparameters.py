"""Hyperparameters: a Python number is a constant of a rule, an array is an argument of whatever the rule computes."""

import numbers
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .._tree import described
from ..errors import AlgorithmError

# A decay as a user gives it.
Number = float | jax.Array


@jax.tree_util.register_static
class Constant(float):
    """A number that is part of a rule's structure, so that two rules with different ones are compiled apart."""

    __slots__ = ()


@jax.tree_util.register_static
class Count(int):
    """The same for an integer."""

    __slots__ = ()


def number_field(**options: Any) -> Any:
    """The field of a hyperparameter that is a number or an array."""
    return eqx.field(converter=_kept, **options)


def _kept(value: Any) -> Any:
    """A Python number as part of the structure; anything else as it is."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return Count(value)
    return Constant(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def dtype_field() -> Any:
    """The field of the float type of traces."""
    return eqx.field(static=True, default=None, converter=_float_type)


def _float_type(value: Any) -> Any:
    try:
        dtype = None if value is None else jnp.dtype(value)
    except TypeError:
        dtype = value
    if dtype is not None and not (isinstance(dtype, np.dtype) and _is_float(dtype)):
        raise AlgorithmError(
            "trace_dtype",
            got=repr(value),
            expected="None or a float type, such as jnp.bfloat16",
            repair="None keeps traces in the type in which they are computed.",
        )
    return dtype


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Whether JAX has numbers of this type; it has none of numpy's `longdouble`."""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize <= np.dtype(np.float64).itemsize


def is_array(value: object) -> bool:
    """Whether a hyperparameter is an array, whose number may be known to nobody before the program runs."""
    return isinstance(value, (jax.Array, np.ndarray))


def is_fraction(value: Any, *, with_zero: bool = False) -> bool:
    """Whether a hyperparameter is a real number above 0, or from 0 on, and below 1.

    An array has to be one real number; which one is asked where it is known.
    """
    if is_array(value):
        is_traced = isinstance(value, jax.core.Tracer)
        return _is_one_float(value) and (is_traced or is_fraction(float(value), with_zero=with_zero))
    is_real = isinstance(value, numbers.Real) and not isinstance(value, (bool, numbers.Integral))
    is_zero = with_zero and not isinstance(value, bool) and isinstance(value, numbers.Real) and value == 0
    return is_zero or (is_real and 0 < float(value) < 1)


def check_array(name: str, value: object) -> None:
    """Raise AlgorithmError for an array that is no number with a fraction; which number it holds is not asked."""
    if is_array(value) and not _is_one_float(value):
        raise AlgorithmError(
            name,
            got=described(value),
            expected="one number: a float array [] without axes",
            repair="Pass jnp.asarray(0.9), say. To run several values, let jax.vmap map over them a function of one "
            "number that makes the rule and the learner.",
        )


def _is_one_float(value: Any) -> bool:
    return value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)


def plain(value: Number) -> Number:
    """A constant as JAX knows it; an array as it is."""
    return value if is_array(value) else float(value)


def beside(number: Number, array: jax.Array) -> Number:
    """A number that leaves the dtype of an array as it is when both are multiplied."""
    return jnp.asarray(number).astype(array.dtype) if is_array(number) else float(number)


def check_fraction(name: str, value: object) -> None:
    """Raise AlgorithmError for what is no number of [0, 1)."""
    check_array(name, value)
    if not is_fraction(value, with_zero=True):
        raise AlgorithmError(
            name, got=repr(value), expected=f"a number with 0 <= {name} < 1", repair=f"Use {name}=0.9, say."
        )
