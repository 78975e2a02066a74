"""The float types of sums: bfloat16 and float16 are added up in float32, which keeps digits and does not overflow."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ._tree import Tree


def common_float(dtypes: Iterable[Any]) -> Any:
    """The float type that holds the numbers of all of these, float32 at least; complex and other types do not count."""
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(jnp.float32, *floats)


def in_float(dtype: Any, wide: Any) -> Any:
    """The type of numbers of `dtype` beside others of the float type `wide`: complex ones stay complex."""
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        return wide
    return jnp.complex128 if wide == jnp.float64 else dtype


def accumulating(dtype: Any) -> Any:
    """The type in which numbers of `dtype` are added up."""
    return in_float(dtype, common_float([dtype]))


def accumulator(tree: Tree) -> Tree:
    """The specifications of a sum of such trees."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, accumulating(x.dtype)), tree)


def cast_like(tree: Tree, spec: Tree) -> Tree:
    """A tree in the dtypes of another of the same structure."""
    return jax.tree.map(lambda x, s: x.astype(s.dtype), tree, spec)
