"""`check_saved`: whether what a file holds is what a learner goes on with, before anything is read."""

from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ._tree import Tree, is_key
from ._wording import listed
from .errors import DtypeError, ShapeError, StructureError

Target = TypeVar("Target")

_REPAIR = "Restore it into the params, the optimizer state and the carry of the learner that was saved."


class _Leaf(NamedTuple):
    """How an error calls an array, and what is known of it; no dtype for a number of Python."""

    name: str
    shape: tuple[int, ...]
    dtype: Any

    def __str__(self) -> str:
        return f"{self.dtype or 'number'}{list(self.shape)}"


def check_saved(saved: Tree, target: Target, *, name: str = "checkpoint") -> Target:
    """Return the target as it is, or raise an error that names the leaf at which a saved tree differs from it.

    Formats for arrays keep names, shapes and dtypes, but no types of containers: a NamedTuple comes back as a
    dictionary of its fields, and a typed random key as its numbers. So leaves are compared by the names on their way.

    A carry holds neither the rule nor its numbers: that of `ES_D_RTRL(0.9)` has the leaves of that of `ES_D_RTRL(0.5)`,
    and is accepted in its place. Save `repr(learner.algorithm)` beside it, and compare that too (and numbers of the
    rule that are arrays, of which it shows the type alone).

        target = jax.eval_shape(lambda: {"params": params, "carry": learner.init()})
        pb.check_saved(checkpointer.metadata(path).item_metadata.tree, target)  # of orbax
        restored = checkpointer.restore(path, target)

    Args:
      saved: a tree of anything with a shape and a dtype: the metadata of a checkpoint, or arrays.
      target: the tree that is to be restored, of arrays or of what `jax.eval_shape` gives of them.
      name: of the saved tree in the error.

    Raises:
      StructureError: a leaf is missing, or one too many.
      ShapeError, DtypeError: a leaf differs; another rule, size or number of samples, or another precision.
    """
    got, want = _by_path(saved, name), _by_path(target, name)
    missing, extra = ([one[path] for path in one if path not in other] for one, other in ((want, got), (got, want)))
    if missing or extra:
        raise _structure_error(missing, extra)
    for path, leaf in want.items():
        _check_leaf(got[path], leaf)
    return target


def _structure_error(missing: list[_Leaf], extra: list[_Leaf]) -> StructureError:
    first, more = (
        (missing or extra)[0],
        listed([leaf.name for leaf in (missing[1:] + extra if missing else extra[1:])]),
    )
    return StructureError(
        first.name,
        got="nothing" if missing else first,
        expected=first if missing else "no such leaf",
        repair=_REPAIR + (f" Missing or too many besides: {more}." if more else ""),
    )


def _check_leaf(got: _Leaf, want: _Leaf) -> None:
    if got.shape != want.shape:
        raise ShapeError(want.name, got=f"shape {got.shape}", expected=want.shape, repair=_REPAIR)
    if want.dtype is not None and got.dtype != want.dtype:
        raise DtypeError(want.name, got=got.dtype, expected=want.dtype, repair=_REPAIR)


def _by_path(tree: Tree, root: str) -> dict[tuple[str, ...], _Leaf]:
    """The leaves by the names on the way to them, which are alike for a field, an attribute and a key."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        tuple(jax.tree_util.keystr((key,), simple=True) for key in path): _leaf(root + _shown(path), leaf)
        for path, leaf in found
    }


def _shown(path: Any) -> str:
    """A path, without the place of the array in its quantity."""
    return jax.tree_util.keystr(path).removesuffix("[<flat index 0>]")


def _leaf(name: str, leaf: Any) -> _Leaf:
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return _Leaf(name, np.shape(leaf), None)
    if is_key(dtype):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return _Leaf(name, tuple(leaf.shape), np.dtype(leaf.dtype))
