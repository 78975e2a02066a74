"""SlotTable: which session lies in which slot, and the carries of all of them; how ids are looked up in it.

All of it is done with numpy on the host, where the numbers are known: an id that is in no slot is an error.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._learning.carry import Carry
from ._learning.learner import Learner
from ._tree import Tree, described, is_key
from ._wording import count, listed
from .errors import CarryError, DtypeError, ShapeError, SlotError, StructureError


class SlotTable(NamedTuple):
    """Sessions that are run together, each in a slot of its own. `C` is the capacity.

    Attributes:
      carry: `[C, ...]`, what each session hands to its next step; a vacant slot holds a fresh start. Each session has
        its own of the states that samples share, as after `pb.apart`.
      ids: `[C]` int32, the caller's number of the session in each slot; 0 in a vacant one.
      occupied: `[C]` bool, whether there is a session in the slot.
    """

    carry: Carry
    ids: jax.Array
    occupied: jax.Array

    def with_slots(self, ids: np.ndarray, occupied: np.ndarray) -> "SlotTable":
        """The same carry with other sessions in the slots."""
        return self._replace(ids=jnp.asarray(ids, jnp.int32), occupied=jnp.asarray(occupied))


def check_untraced(where: str, *trees: Tree) -> None:
    """Raise SlotError where an argument is traced."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise SlotError(
            where,
            got="a traced array",
            expected="numbers, since ids are looked up on the host",
            repair="Call it outside JAX's transforms. Inside them, run slots.batched, a learner whose samples are the "
            "slots, on table.carry; pb.sequence_grad takes the slots that make a step for a mask, [T, C].",
        )


def check_table(batched: Learner, table: object) -> SlotTable:
    """The table with its carry in the captured units.

    Raises:
      StructureError: no table, or no array of ids or of flags.
      CarryError: the carries are those of another learner or of another number of slots.
    """
    if not isinstance(table, SlotTable):
        raise StructureError(
            "table",
            got=type(table).__name__,
            expected="a SlotTable",
            repair="Pass slots.empty(), or the table that the last call returned.",
        )
    carry = _check_carries(batched, table.carry)
    check_slots(table, batched.lead)
    return table._replace(carry=carry)


def check_slots(table: SlotTable, lead: tuple[int, ...]) -> None:
    """Raise StructureError unless the ids and the flags are those of `(C,)` slots."""
    for name, leaf, dtype in (("ids", table.ids, jnp.int32), ("occupied", table.occupied, jnp.bool_)):
        if getattr(leaf, "shape", None) != lead or leaf.dtype != dtype:
            raise StructureError(
                f"table.{name}",
                got=described(leaf),
                expected=f"{jnp.dtype(dtype)}[{', '.join(f'C={size}' for size in lead)}]",
                repair="Pass slots.empty(), or the table that the last call returned.",
            )


def _check_carries(batched: Learner, carry: Carry) -> Carry:
    try:
        checked = batched.check_carry(carry)
    except CarryError as error:
        raise CarryError(
            f"table.{error.where}",
            got=error.got,
            expected=error.expected,
            repair="The table belongs to slots of another learner or capacity; begin with slots.empty().",
        ) from error
    if checked.shared:
        raise CarryError(
            "table.carry",
            got=f"sessions that share their {listed(sorted(checked.shared))}",
            expected="sessions that have one each",
            repair="Apply pb.apart to the carry.",
        )
    return checked


def one_id(value: Any) -> np.int32:
    """The number of one session.

    Raises:
      ShapeError: several numbers.
      DtypeError: no whole number of 32 bits.
    """
    found = _integers("id", value)
    if found.ndim:
        repair = "Name one session."
        raise ShapeError("id", got=f"shape {found.shape}", expected="one integer", repair=repair)
    return np.int32(found)


def some_ids(values: Any) -> np.ndarray:
    """The numbers of sessions, `[N]` int32, none of which stands twice.

    Raises:
      ShapeError: no list of numbers.
      DtypeError: no whole numbers of 32 bits.
      SlotError: a session that stands twice.
    """
    found = _integers("ids", values)
    if found.ndim != 1:
        repair = "Pass a list of sessions."
        raise ShapeError("ids", got=f"shape {found.shape}", expected="integers [N]", repair=repair)
    numbers, times = np.unique(found, return_counts=True)
    if (times > 1).any():
        raise SlotError(
            "ids",
            got=f"session {numbers[times > 1][0]}, {times[times > 1][0]} times",
            expected="each session once",
            repair="Leave out repetitions; the steps of one session come one after the other, in a call each.",
        )
    return found


def _integers(name: str, value: Any) -> np.ndarray:
    """The value as int32."""
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, OverflowError):  # a ragged list, or a random key
        found = np.asarray(None)
    if found.size == 0 and found.ndim == 1:
        return found.astype(np.int32)
    limits = np.iinfo(np.int32)
    if not np.issubdtype(found.dtype, np.integer) or found.min() < limits.min or found.max() > limits.max:
        raise DtypeError(
            name,
            got=repr(value) if found.ndim == 0 else f"{found.dtype} numbers such as {found.flat[0]!r}",
            expected="integers of 32 bits",
            repair="Give each session a number of your own from -2**31 to 2**31 - 1.",
        )
    return found.astype(np.int32)


def rows_of(table: SlotTable, ids: np.ndarray) -> np.ndarray:
    """The slots of sessions, `[N]`.

    Raises:
      SlotError: a session that is in no slot.
    """
    held = np.flatnonzero(np.asarray(table.occupied))
    present = np.asarray(table.ids)[held]
    unknown = ids[~np.isin(ids, present)]
    if unknown.size:
        raise SlotError(
            "ids",
            got=f"{listed([str(one) for one in unknown])}, in no slot",
            expected=f"sessions of the table: {listed([str(one) for one in np.sort(present)])}"
            if present.size
            else "sessions of the table, which is empty",
            repair="Admit it first.",
        )
    order = np.argsort(present)
    return held[order[np.searchsorted(present, ids, sorter=order)]]


def vacant_row(table: SlotTable, number: np.int32) -> int:
    """The slot for a session that comes.

    Raises:
      SlotError: no slot is vacant, or the session is in the table already.
    """
    occupied, ids = np.asarray(table.occupied), np.asarray(table.ids)
    if (ids[occupied] == number).any():
        raise SlotError(
            "id",
            got=f"{number}, which is in a slot",
            expected="a session that is in none",
            repair="Give it a fresh start with reset(), or evict() it first.",
        )
    if occupied.all():
        raise SlotError(
            "table",
            got=f"{count(len(occupied), 'session')} in as many slots",
            expected="a vacant slot",
            repair="Evict a session first, or make more slots with grow().",
        )
    return int(np.flatnonzero(~occupied)[0])


def flags_of(rows: np.ndarray, capacity: int) -> np.ndarray:
    """Whether a slot is one of some, `[C]`."""
    flags = np.zeros(capacity, bool)
    flags[rows] = True
    return flags


def spread(tree: Tree, rows: np.ndarray, capacity: int) -> Tree:
    """Leaves `[N, ...]` put into leaves `[C, ...]`, each row in its slot.

    The others hold ones (or the class 0), at which most functions have a derivative; see `harmless`.
    """

    def put(leaf: Any) -> Any:
        if is_key(leaf.dtype):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        filler = 1 if jnp.issubdtype(leaf.dtype, jnp.inexact) else 0
        whole = np.full((capacity, *leaf.shape[1:]), filler, leaf.dtype)
        whole[rows] = np.asarray(leaf)
        return whole

    return jax.tree.map(put, tree)


def taken(tree: Tree, rows: np.ndarray) -> Tree:
    """The rows of leaves `[C, ...]`, `[N, ...]` on the host."""
    return jax.tree.map(lambda leaf: leaf[rows] if is_key(leaf.dtype) else np.asarray(leaf)[rows], tree)
