"""`check_finite`: where the first NaN or infinity of a tree stands, by path, step and sample."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._conform import check_numbers
from ._learning.carry import Carry, check_whole
from ._learning.clipping import ClippedAux
from ._learning.sequence import Aux
from ._slot_table import SlotTable, check_slots
from ._slots import SlotAux
from ._tree import Tree, is_quantity, mantissa
from ._wording import listed
from .errors import NonFiniteError, OptionError, ShapeError, StructureError

Value = TypeVar("Value")

_KNOWN = (Carry, Aux, ClippedAux, SlotTable, SlotAux)
_AXES = ((), ("T",), ("B",), ("T", "B"))


class _Leaf(NamedTuple):
    """An array with its name, with the meaning of its leading axes, and the table of slots that it belongs to."""

    name: str
    array: Any
    axes: tuple[str, ...]
    table: SlotTable | None = None


def check_finite(tree: Value, axes: Sequence[str] = "", *, name: str | None = None) -> Value:
    """Return a tree as it is, or raise an error that says where its first NaN or infinity stands.

    It waits for the numbers, which jitted code cannot do: call it between two steps or two sequences. What it fetches
    from the device, once, is a byte for each step and sample of each array. Integers, booleans, random keys and None
    pass.

        carry, output = pb.check_finite(learner.step(params, carry, x))
        gradients, aux = pb.check_finite(grad_fn(params, None, inputs, targets))
        each, aux = each_fn(params, None, inputs, targets)  # of reduction="none"
        pb.check_finite(each, "B", name="gradients")

    Args:
      tree: anything. Wherever a `Carry` or the `aux` of a gradient function stands in it, the steps and the samples of
        its arrays are known, and so are the sessions of a `SlotTable` or a `SlotAux`.
      axes: the leading axes of every other array: `"TB"` for `[T, B, ...]`, `"T"`, `"B"`, or `""` for none of them.
      name: of the tree in the error; by default `"carry"`, `"aux"`, `"table"` or `"tree"`.

    Raises:
      NonFiniteError: something is not finite; the text names the earliest step, and of that step the first path and
        sample, or the session in a table of slots. A row of `SlotAux` counts as the sample.
      OptionError: other axes.
      ShapeError: an array that lacks one of the axes.
      DtypeError: a leaf that is no array of numbers.
      StructureError: a traced array, whose numbers are not known.
    """
    if tuple(axes) not in _AXES:
        repair = "Name the leading axes of every array: T for time, B for samples."
        raise OptionError("axes", got=repr(axes), expected='"TB", "T", "B" or ""', repair=repair)
    leaves = list(_leaves(tree, tuple(axes), name or _name_of(tree)))
    for leaf in leaves:
        _check_leaf(leaf)
    real = [leaf for leaf in leaves if jnp.issubdtype(_dtype(leaf.array), jnp.inexact)]
    with jax.enable_x64(new_val=True):  # what numpy keeps in 64 bits may be too large for 32
        kinds = _kinds([leaf.array for leaf in real], tuple(len(leaf.axes) for leaf in real))
    places = [_Place.of(*pair) for pair in zip(real, jax.device_get(kinds), strict=True) if pair[1].any()]
    if places:
        raise _error(min(places, key=lambda place: np.inf if place.step is None else place.step), places)
    return tree


class _Place(NamedTuple):
    """Where the first number of a leaf that is not finite stands; None for an axis that the leaf does not have."""

    name: str
    what: str
    step: int | None
    sample: int | None
    session: int | None
    words: str

    @classmethod
    def of(cls, leaf: _Leaf, kinds: np.ndarray) -> "_Place":
        first = np.unravel_index(np.argmax(kinds > 0), kinds.shape)
        where = dict(zip(leaf.axes, map(int, first), strict=True))
        step, sample = where.get("T"), where.get("B")
        session, words = _whose(leaf.table, sample)
        words = [*words, *([] if step is None else [f"step {step}"])]
        what = "NaN" if kinds[first] > 1 else "an infinity"
        return cls(leaf.name, what, step, sample, session, f" in {', '.join(words)}" if words else "")


def _whose(table: SlotTable | None, sample: int | None) -> tuple[int | None, list[str]]:
    """The session that a sample is in a table of slots, and how the sample is called."""
    if sample is None:
        return None, []
    if table is None:
        return None, [f"sample {sample}"]
    if not np.asarray(table.occupied)[sample]:
        return None, [f"the vacant slot {sample}"]
    session = int(np.asarray(table.ids)[sample])
    return session, [f"session {session}", f"slot {sample}"]


def _error(first: _Place, places: list[_Place]) -> NonFiniteError:
    others = [place.name for place in places if place is not first]
    return NonFiniteError(
        first.name,
        got=first.what + first.words,
        expected="finite numbers",
        repair=(f"Not finite either: {listed(others)}. " if others else "")
        + "Check the inputs of this place; jax.debug_nans(True) stops where a NaN is made.",
        step=first.step,
        sample=first.sample,
        session=first.session,
    )


def _leaves(tree: Tree, axes: tuple[str, ...], name: str) -> Iterator[_Leaf]:
    parts = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: is_quantity(x) or isinstance(x, _KNOWN))
    for path, part in parts:
        here = name + jax.tree_util.keystr(path)
        if isinstance(part, _KNOWN):
            yield from _fields(part, here)
        else:
            yield _Leaf(here, mantissa(part), axes)


def _fields(part: Any, name: str) -> Iterator[_Leaf]:
    """The leaves of a carry or of what comes with a gradient, by what its fields are."""
    if isinstance(part, SlotTable):
        check_slots(part, check_whole(f"{name}.carry", part.carry))
        yield from (leaf._replace(table=part) for leaf in _fields(part.carry, f"{name}.carry"))
        return
    if isinstance(part, SlotAux):
        yield from _fields(part.table, f"{name}.table")
        for field in ("losses", "outputs"):
            yield from _leaves(getattr(part, field), ("B",), f"{name}.{field}")
        return
    carry = part if isinstance(part, Carry) else part.carry
    of_samples = "B" if check_whole(name if carry is part else f"{name}.carry", carry) else ""
    labels = {None: "", 0: of_samples, 1: f"T{of_samples}"}
    for field, axis in zip(part._fields, part.sample_axes(), strict=True):
        own = () if isinstance(axis, Carry) else tuple(labels[axis])
        yield from _leaves(getattr(part, field), own, f"{name}.{field}")


def _name_of(tree: Tree) -> str:
    names = {Carry: "carry", SlotTable: "table", **dict.fromkeys(_KNOWN, "aux")}
    return next((name for kind, name in names.items() if isinstance(tree, kind)), "tree")


def _check_leaf(leaf: _Leaf) -> None:
    check_numbers(leaf.array, leaf.name)
    if isinstance(leaf.array, Tracer):
        repair = "Call it outside of jax.jit, where numbers are known; inside, jax.debug_nans(True) looks for NaN."
        raise StructureError(leaf.name, got="a traced array", expected="an array with numbers", repair=repair)
    if len(np.shape(leaf.array)) < len(leaf.axes):
        expected = f"({', '.join(leaf.axes)}, ...)"
        repair = "Name the leading axes that every array has."
        raise ShapeError(leaf.name, got=f"shape {np.shape(leaf.array)}", expected=expected, repair=repair)


def _dtype(array: Any) -> Any:
    return array.dtype if hasattr(array, "dtype") else np.result_type(array)


@partial(jax.jit, static_argnums=1)
def _kinds(arrays: list[jax.Array], ranks: tuple[int, ...]) -> list[jax.Array]:
    """For each array an array of its leading axes: 0 for finite numbers, 1 where an infinity is among them, 2 a NaN."""
    return [_kind(array).max(range(rank, array.ndim), initial=0) for array, rank in zip(arrays, ranks, strict=True)]


def _kind(array: jax.Array) -> jax.Array:
    return (~jnp.isfinite(array)).astype(jnp.uint8) + jnp.isnan(array).astype(jnp.uint8)
