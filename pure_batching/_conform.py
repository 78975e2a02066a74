"""The check of a value against a specification: its structure, units, shapes and dtypes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._keys import MAPPABLE
from ._tree import Tree, described, is_key, is_quantity, mantissa, named_leaves, same_dimension, unit_of, with_unit
from ._wording import count, listed
from .errors import BatchSizeError, DtypeError, ShapeError, StructureError, UnitError

# The axes in front of every leaf, as (name, size). A size of None is not known, and fits no leaf.
Axes = Sequence[tuple[str, int | None]]


def conform(value: Tree, spec: Tree, root: str, axes: Axes = (), untimed: frozenset[str] = frozenset()) -> Tree:
    """Give a value the structure, units and dtypes of a specification, or raise an error that names the leaf.

    Args:
      value: the tree to check.
      spec: the specification of one sample at one step.
      root: the tree's name in an error.
      axes: the axes in front of every leaf, as (name, size).
      untimed: the names of the leaves that lack the first of them.

    Raises:
      StructureError: other keys, or another number of leaves.
      UnitError: another physical dimension; another scale (V for mV) is converted.
      ShapeError: another shape; BatchSizeError where only the batch axis differs.
      DtypeError: no numbers, or a dtype that JAX does not promote to that of `spec`: it would lose digits, or its kind.
    """
    if not untimed and _fits(value, spec, axes):
        return value
    got, expected = named_leaves(value, root), named_leaves(spec, root)
    axes_of = {name: axes[1:] if name in untimed else axes for name, _ in (*got, *expected)}
    _check_names(dict(got), dict(expected), axes_of)
    leaves = [
        _conform_leaf(leaf, want, name, axes_of[name]) for (name, leaf), (_, want) in zip(got, expected, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(spec, is_leaf=is_quantity), leaves)


def _fits(value: Tree, spec: Tree, axes: Axes) -> bool:
    """Whether every leaf is an array as specified; to see this takes no names, and a thirtieth of the time."""
    lead = tuple(size for _, size in axes)
    leaves, structure = jax.tree.flatten(value)
    specs, wanted = jax.tree.flatten(spec)
    return structure == wanted and all(
        isinstance(leaf, (jax.Array, np.ndarray)) and leaf.dtype == want.dtype and leaf.shape == (*lead, *want.shape)
        for leaf, want in zip(leaves, specs, strict=True)
    )


def _check_names(got: Mapping[str, Any], expected: Mapping[str, Any], axes_of: Mapping[str, Axes]) -> None:
    """Raise StructureError at the first leaf that is too many, or else missing."""
    extra = [name for name in got if name not in expected]
    missing = [name for name in expected if name not in got]
    if not extra and not missing:
        return
    _check_containers(got, extra, missing)
    name = (extra or missing)[0]
    more, less = (extra[1:], missing) if extra else ([], missing[1:])
    what = "Pass a tree of the captured structure." if got else "Pass arrays; None and empty containers hold none."
    raise StructureError(
        name,
        got=described(got[name]) if extra else "nothing",
        expected="no such leaf" if extra else _spec_text(expected[name], axes_of[name]),
        repair=" ".join(
            [
                what,
                *([f"Too many besides: {listed(more)}."] if more else []),
                *([f"Missing: {listed(less)}."] if less else []),
            ]
        ),
    )


def _spec_text(spec: Any, axes: Axes) -> str:
    """Write the specification of a sample's leaf with the axes in front: `float32[T, B=3, 2] mV`."""
    array, unit = mantissa(spec), unit_of(spec)
    return f"{array.dtype}[{_legend(axes, array.shape)}]" + ("" if unit.is_unitless else f" {unit}")


def _legend(axes: Axes, shape: tuple[int, ...]) -> str:
    return ", ".join([label if size is None else f"{label}={size}" for label, size in axes] + [str(n) for n in shape])


def _check_containers(got: Mapping[str, Any], extra: Sequence[str], missing: Sequence[str]) -> None:
    """Raise StructureError where leaves stand in the place of one array, as with nested lists, or one in theirs."""
    for name in missing:
        if inside := _inside(name, extra):
            raise StructureError(
                name,
                got=count(len(inside), "leaf", "leaves"),
                expected="one array",
                repair="Pass an array; jnp.asarray makes one of nested lists.",
            )
    for name in extra:
        if inside := _inside(name, missing):
            raise StructureError(
                name,
                got=described(got[name]),
                expected=f"a container of {listed(inside)}",
                repair="Pass a tree of the captured structure.",
            )


def _inside(name: str, others: Sequence[str]) -> list[str]:
    return [other for other in others if other.startswith((f"{name}[", f"{name}."))]


def check_numbers(tree: Tree, root: str) -> None:
    """Raise DtypeError at the first leaf that is no array of numbers."""
    for name, leaf in named_leaves(tree, root):
        _check_numeric(mantissa(leaf), name)


def check_floats(tree: Tree, root: str) -> None:
    """Raise DtypeError at the first leaf that is no array of floats, real or complex."""
    check_numbers(tree, root)
    for name, leaf in named_leaves(tree, root):
        dtype = jnp.result_type(mantissa(leaf))
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise DtypeError(
                name,
                got=dtype,
                expected="floats, by which a gradient is taken",
                repair="Give floats to train it; else let the step close over it, or put it into the state.",
            )


def _check_numeric(leaf: Any, name: str) -> None:
    dtype = getattr(leaf, "dtype", None)
    is_other = isinstance(dtype, np.dtype) and not (dtype == np.bool_ or jnp.issubdtype(dtype, np.number))
    if is_other or not (hasattr(leaf, "shape") or isinstance(leaf, (bool, int, float, complex))):
        raise DtypeError(
            name,
            got=type(leaf).__name__ if dtype is None else f"an array of dtype {dtype}",
            expected="an array of numbers",
            repair="Pass what jnp.asarray takes.",
        )


def _conform_leaf(leaf: Any, want: Any, name: str, axes: Axes) -> Any:
    _check_numeric(mantissa(leaf), name)
    unit = unit_of(want)
    array = mantissa(_to_unit(leaf, unit, name))
    spec = mantissa(want)
    _check_shape(name, np.shape(array), spec.shape, axes)
    array = _to_dtype(array, spec.dtype, name)
    return with_unit(array, unit) if is_quantity(want) else array


def _to_unit(leaf: Any, unit: Any, name: str) -> Any:
    if unit_of(leaf) == unit:
        return leaf
    if not same_dimension(unit_of(leaf), unit):
        raise UnitError(
            name,
            got=_unit_text(unit_of(leaf)),
            expected=_unit_text(unit),
            repair="Give it the unit that it had at capture.",
        )
    return leaf.in_unit(unit)


def _unit_text(unit: Any) -> str:
    return "no unit" if unit.is_unitless else f"unit {unit}"


def _check_shape(name: str, got: tuple[int, ...], spec: tuple[int, ...], axes: Axes) -> None:
    if got == (*(size for _, size in axes), *spec):
        return
    error, repair = _shape_fault(got, axes, len(axes) + len(spec))
    expected = f"({_legend(axes, spec)})" if axes else tuple(spec)
    raise error(name, got=f"shape {got}", expected=expected, repair=repair)


_REPAIRS: Mapping[str, tuple[type[ShapeError], str]] = {
    "T": (ShapeError, "Give inputs, targets, mask and reset the same number of steps."),
    "B": (BatchSizeError, "Use a batch of the size that the strategy was built for."),
    "N": (BatchSizeError, "Give one row for each of the ids."),
}


_NO_TIME = (
    ShapeError,
    ("Add the time axis in front; T and B lead. What is the same at each step goes into brainscale.SingleStepData."),
)


def _shape_fault(got: tuple[int, ...], axes: Axes, rank: int) -> tuple[type[ShapeError], str]:
    """Find the error and the repair for a shape: the number of axes, a feature, or the first leading axis."""
    if len(got) == rank and len(axes) == len(("T", "B")) and _are_swapped(got, axes):
        return BatchSizeError, "Swap the first two axes: time leads, and the samples follow."
    labels = " and ".join(label for label, _ in axes)
    leads = f"; {labels} lead{'s' if len(axes) == 1 else ''}" if axes else ""
    if len(got) > rank:
        is_single = all(label == "T" for label, _ in axes)
        return ShapeError, f"Remove an axis{leads}" + (", and pb.vmap makes a batch." if is_single else ".")
    if len(got) < rank:
        same = " What is the same at each step goes into brainscale.SingleStepData." if "T" in labels else ""
        return ShapeError, f"Add an axis{leads}.{same}"
    for (label, size), found in zip(axes, got, strict=False):
        if size is not None and found != size:
            return _NO_TIME if label == "T" and found == dict(axes).get("B") else _REPAIRS[label]
    return ShapeError, "Use the feature sizes of the captured example."


def _are_swapped(got: tuple[int, ...], axes: Axes) -> bool:
    (_, time), (_, samples) = axes
    return got[0] == samples != got[1] and time in (None, got[1])


_OR_CAPTURE = ", or capture the module with this dtype."


def _to_dtype(array: Any, dtype: Any, name: str) -> jax.Array:
    array = jnp.asarray(array)
    if array.dtype == dtype:
        return array
    if is_key(dtype) or is_key(array.dtype) or not _is_promoted(array, dtype):
        raise DtypeError(
            name,
            got=array.dtype,
            expected=dtype,
            repair=_repair_of_dtype(array, dtype),
        )
    return array.astype(dtype)


def _repair_of_dtype(array: jax.Array, dtype: Any) -> str:
    """Say how to repair a dtype: by a conversion, or by another capture where a conversion would lose fractions."""
    if is_key(dtype) and is_key(array.dtype):
        return f"Make it by jax.random.key(seed, impl={MAPPABLE!r})."
    if jnp.issubdtype(array.dtype, jnp.inexact) and jnp.issubdtype(dtype, jnp.integer):
        return f"Capture the module with an example of dtype {array.dtype}: {dtype} numbers would lose what it holds."
    is_number = jnp.issubdtype(dtype, jnp.inexact)
    return f"Convert it with .astype({str(dtype)!r}){_OR_CAPTURE if is_number else '.'}"


def _is_promoted(array: jax.Array, dtype: Any) -> bool:
    """Whether JAX promotes the array to `dtype` where both meet; a Python number takes the dtype of its own kind."""
    with jax.numpy_dtype_promotion("standard"):
        is_number = array.weak_type and jnp.result_type(array, dtype) == dtype
        return is_number or jnp.promote_types(array.dtype, dtype) == dtype
