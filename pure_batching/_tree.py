"""Trees of arrays with units: readable paths and specifications."""

from collections.abc import Mapping, Sequence
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Tree = Any


def is_quantity(value: Any) -> bool:
    """Whether a value is an array with a unit."""
    return u.math.is_quantity(value)


def mantissa(value: Any) -> Any:
    """The number of a quantity; a value without a unit as it is."""
    return u.get_mantissa(value)


def unit_of(value: Any) -> Any:
    """The unit of a quantity; the unit of plain numbers for a value without one."""
    return u.get_unit(value)


def with_unit(array: Any, unit: Any) -> Any:
    """Make a quantity of an array."""
    return u.Quantity(array, unit=unit)


def same_dimension(one: Any, other: Any) -> bool:
    """Whether a number in one unit can be converted to the other."""
    return u.have_same_dim(one, other)


def named_leaves(tree: Tree, root: str) -> list[tuple[str, Any]]:
    """List the leaves with their names, which start with `root`; a quantity is one leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_quantity)
    return [(root + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def like(tree: Tree, arrays: Sequence[jax.Array]) -> Tree:
    """Build a tree with the structure and the units of `tree`, and other arrays."""
    return jax.tree.unflatten(jax.tree.structure(tree), arrays)


def spec_of(tree: Tree) -> Tree:
    """Replace every array by its shape and dtype; units stay."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), _dtype(x)), tree)


def _dtype(x: Any) -> Any:
    """That of an array is its own: `jnp.result_type` turns 32 weakly typed bits into 64 where JAX has them."""
    return x.dtype if isinstance(x, jax.Array) else jnp.result_type(x)


def spec_text(spec: Tree) -> str:
    """Write a tree of specifications or arrays for an error: `float32[3, 2] mV`, in the tree's containers."""

    def text(leaf: Any) -> _Text:
        array, unit = mantissa(leaf), unit_of(leaf)
        if not hasattr(array, "dtype"):
            return _Text(repr(leaf))
        return _Text(f"{array.dtype}{list(array.shape)}" + ("" if unit.is_unitless else f" {unit}"))

    return repr(jax.tree.map(text, spec, is_leaf=is_quantity))


def described(leaf: Any) -> str:
    """Write a leaf's shape, dtype and unit for an error; the name of its type where it is no array."""
    try:
        return spec_text(spec_of(leaf))
    except TypeError:
        return type(leaf).__name__


class _Text(str):
    """A string that is printed without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def zeros_of(spec: Tree) -> Tree:
    """Make zeros of a specification; units stay. They are numpy arrays, for which JAX compiles nothing."""
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), spec)


def strong(tree: Tree, spec: Tree) -> Tree:
    """Give values the specification's dtypes and no weak types, since a scan must not change its carry's type."""
    return jax.tree.map(lambda x, s: x if is_key(s.dtype) else jax.lax.convert_element_type(x, s.dtype), tree, spec)


def is_key(dtype: Any) -> bool:
    """Whether a dtype is that of typed random keys."""
    return bool(jnp.issubdtype(dtype, jax.dtypes.prng_key))


def is_placed(leaf: Any) -> bool:
    """Whether an array was put on devices, by its owner or by a program that ran there.

    JAX takes any other along to where it is needed. Of a traced array, only JAX knows where it lies.
    """
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.committed


def with_lead(spec: Tree, lead: tuple[int, ...]) -> Tree:
    """Put axes in front of every leaf of a specification."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*lead, *s.shape), s.dtype), spec)


def moved(trees: Mapping[str, Tree], axes: Mapping[str, Tree], *, to_module: bool) -> dict[str, Tree]:
    """Move the batch axis of states from the front to where the module keeps it (`to_module`), or back.

    Args:
      trees: states by path.
      axes: for each leaf, the axis at which the module keeps the samples.
      to_module: the direction.
    """

    def move(leaf: jax.Array, axis: int) -> jax.Array:
        return jnp.moveaxis(leaf, 0, axis) if to_module else jnp.moveaxis(leaf, axis, 0)

    return {path: jax.tree.map(move, value, axes[path]) for path, value in trees.items()}


def nbytes(spec: Tree) -> int:
    """Count the bytes that the arrays of a specification occupy."""
    return sum(int(np.prod(s.shape)) * s.dtype.itemsize for s in jax.tree.leaves(spec))
