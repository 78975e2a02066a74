"""Trees of arrays with units: readable paths, specifications, and the check of a value against one."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

from ._errors import BatchSizeError, DtypeError, PureBatchingError, ShapeError, StructureError, UnitError

Tree = Any
Axes = Sequence[tuple[str, int]]


def path_name(path: Iterable[Hashable]) -> str:
    """`("syn", "comm", "weight_op")` -> `"syn.comm.weight_op"`."""
    return ".".join(str(key) for key in path)


def named_leaves(tree: Tree, root: str) -> list[tuple[str, Any]]:
    """The leaves with their names below `root`; a quantity is one leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=u.math.is_quantity)
    return [(root + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def mantissas(tree: Tree) -> list[jax.Array]:
    """The arrays of a tree, units aside, in the tree's order."""
    return jax.tree.leaves(tree)


def like(tree: Tree, arrays: Sequence[jax.Array]) -> Tree:
    """A tree with the structure and the units of `tree` and other arrays."""
    return jax.tree.unflatten(jax.tree.structure(tree), arrays)


def spec_of(tree: Tree) -> Tree:
    """Shapes and dtypes in place of arrays, units kept."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def zeros_of(spec: Tree) -> Tree:
    """Zeros of a specification, units kept."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), spec)


def strong(tree: Tree, spec: Tree) -> Tree:
    """The same values with the specification's dtypes and no weak types, so that a scan carry keeps its type."""
    return jax.tree.map(lambda x, s: x if is_key(s.dtype) else jax.lax.convert_element_type(x, s.dtype), tree, spec)


def is_key(dtype: Any) -> bool:
    """Whether a dtype is that of typed random keys."""
    return bool(jnp.issubdtype(dtype, jax.dtypes.prng_key))


def with_lead(spec: Tree, lead: tuple[int, ...]) -> Tree:
    """The specification with axes put in front of every leaf."""
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*lead, *s.shape), s.dtype), spec)


def moved(trees: Mapping[str, Tree], axes: Mapping[str, Tree], *, to_module: bool) -> dict[str, Tree]:
    """States with the batch axis in front -> states with it where the module keeps it, or back."""

    def move(leaf: jax.Array, axis: int) -> jax.Array:
        return jnp.moveaxis(leaf, 0, axis) if to_module else jnp.moveaxis(leaf, axis, 0)

    return {path: jax.tree.map(move, value, axes[path]) for path, value in trees.items()}


def nbytes(spec: Tree) -> int:
    """What the arrays of a specification occupy."""
    return sum(int(np.prod(s.shape)) * jnp.dtype(s.dtype).itemsize for s in jax.tree.leaves(spec))


def conform(value: Tree, spec: Tree, root: str, axes: Axes = (), untimed: frozenset[str] = frozenset()) -> Tree:
    """`value` with the structure, units and dtypes of `spec`, or an error that names the leaf.

    Args:
      value: the tree to check.
      spec: what one sample at one step has.
      root: the tree's name in an error.
      axes: the axes in front of every leaf, as (name, size).
      untimed: the names of the leaves that lack the first of them.

    Raises:
      StructureError: other keys, or another number of leaves.
      UnitError: another physical dimension; another scale (V for mV) is converted.
      ShapeError: another shape; BatchSizeError where only the batch axis differs.
      DtypeError: a dtype that would lose digits; bool and integers are promoted.
    """
    got, expected = named_leaves(value, root), named_leaves(spec, root)
    _check_names([name for name, _ in got], [name for name, _ in expected], root)
    leaves = [
        _conform_leaf(leaf, want, name, axes[1:] if name in untimed else axes)
        for (name, leaf), (_, want) in zip(got, expected, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(spec, is_leaf=u.math.is_quantity), leaves)


def _check_names(got: list[str], expected: list[str], root: str) -> None:
    if got == expected:
        return
    missing, extra = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    raise StructureError(
        root,
        got=f"{len(got)} leaves" + (f" with {', '.join(extra)} too many" if extra else ""),
        expected=f"{len(expected)} leaves" + (f" with {', '.join(missing)}" if missing else ""),
        repair="Pass a tree of the captured structure.",
    )


def _conform_leaf(leaf: Any, want: Any, name: str, axes: Axes) -> Any:
    unit = u.get_unit(want)
    array = u.get_mantissa(_to_unit(leaf, unit, name))
    spec = u.get_mantissa(want)
    _check_shape(name, np.shape(array), spec.shape, axes)
    array = _to_dtype(array, spec.dtype, name)
    return u.Quantity(array, unit=unit) if u.math.is_quantity(want) else array


def _to_unit(leaf: Any, unit: Any, name: str) -> Any:
    if u.get_unit(leaf) == unit:
        return leaf
    if not u.have_same_dim(u.get_unit(leaf), unit):
        raise UnitError(
            name,
            got=f"unit {u.get_unit(leaf)}",
            expected=f"unit {unit}",
            repair="Give the quantity the unit that it had at capture.",
        )
    return leaf.in_unit(unit)


def _check_shape(name: str, got: tuple[int, ...], spec: tuple[int, ...], axes: Axes) -> None:
    want = (*(size for _, size in axes), *spec)
    if got == want:
        return
    legend = ", ".join([f"{label}={size}" for label, size in axes] + [str(size) for size in spec])
    raise _shape_error(name, got, want, axes, f"({legend})")


def _shape_error(name: str, got: tuple[int, ...], want: tuple[int, ...], axes: Axes, legend: str) -> PureBatchingError:
    lead = len(axes)
    labels = " and ".join(label for label, _ in axes) or "no"
    if len(got) > len(want):
        return ShapeError(name, got=f"shape {got}", expected=legend, repair=f"Remove an axis; {labels} axes lead.")
    if len(got) < len(want):
        return ShapeError(name, got=f"shape {got}", expected=legend, repair=f"Add an axis; {labels} axes lead.")
    if got[lead:] == want[lead:]:
        return BatchSizeError(
            name, got=f"shape {got}", expected=legend, repair="Use a batch of the size that the strategy was built for."
        )
    return ShapeError(
        name, got=f"shape {got}", expected=legend, repair="Use the feature sizes of the captured example."
    )


def _to_dtype(array: Any, dtype: Any, name: str) -> jax.Array:
    array = jnp.asarray(array)
    if array.dtype == dtype:
        return array
    if is_key(dtype) or is_key(array.dtype) or not _widens(array.dtype, dtype):
        raise DtypeError(
            name,
            got=array.dtype,
            expected=dtype,
            repair=f"Convert it with .astype({str(dtype)!r}), or capture the module with this dtype.",
        )
    return array.astype(dtype)


def _widens(got: Any, want: Any) -> bool:
    """Bool and integers go to any number of their kind or a wider one; a float only to one with no fewer digits."""
    if jnp.issubdtype(got, jnp.inexact):
        return jnp.promote_types(got, want) == want
    return got == jnp.bool_ or jnp.issubdtype(want, jnp.inexact) or jnp.issubdtype(want, jnp.integer)
