"""The arguments of a call on slots: checked, and each row put into the slot that it is for."""

from typing import Any, NamedTuple

import jax
import numpy as np

from ._learning.carry import Carry
from ._learning.data import check_moment
from ._learning.learner import Learner, check_key
from ._slot_carries import Moment
from ._slot_table import SlotTable, check_table, flags_of, rows_of, some_ids, spread
from ._tree import Tree
from .errors import OptionError, SlotError


class Call(NamedTuple):
    """A step of some sessions.

    Attributes:
      table: before the step.
      rows: the slots of the sessions, `[N]`.
      params: in the captured units and dtypes, in the structure that they were given in.
      moment: the data, `[C, ...]`.
    """

    table: SlotTable
    rows: np.ndarray
    params: Tree
    moment: Moment

    @property
    def arguments(self) -> tuple[Tree, Carry, Moment]:
        """Those of the functions of `_slot_carries`."""
        return self.params, self.table.carry, self.moment


def found(batched: Learner, table: SlotTable, ids: Any) -> tuple[SlotTable, np.ndarray]:
    """The table and the slots of the sessions, `[N]`."""
    checked = check_table(batched, table)
    return checked, rows_of(checked, some_ids(ids))


def to_step(batched: Learner, params: Tree, table: SlotTable, ids: Any, inputs: tuple[Tree, ...]) -> Call:
    """A step without targets."""
    table, rows = found(batched, table, ids)
    return _call(batched, params, table, rows, (batched.check_inputs(inputs, (("N", len(rows)),)), None))


def to_learn(batched: Learner, params: Tree, table: SlotTable, ids: Any, inputs: Tree, targets: Tree) -> Call:
    """A step with targets, of one session or more."""
    table, rows = found(batched, table, ids)
    if not rows.size:
        repair = "There is no mean over none; leave the call out."
        raise SlotError("ids", got="no session", expected="one or more", repair=repair)
    return _call(batched, params, table, rows, check_moment(batched, inputs, targets, len(rows)))


def _call(batched: Learner, params: Tree, table: SlotTable, rows: np.ndarray, data: tuple[Any, Tree]) -> Call:
    source, capacity = batched.source, batched.lead[0]
    weights = source.as_given(batched.check_params(params))
    inputs, targets = spread(data, rows, capacity)
    moment = Moment(inputs, targets, flags_of(rows, capacity))
    return Call(table, rows, weights, source.numerics.adopted(moment))


def session(learner: Learner, key: Any, carry: Carry | None) -> Carry:
    """The carry with which a session begins: a fresh start, or what it goes on from."""
    if carry is None:
        is_random = bool(learner.program.states.keys) or learner.source.draws_at_start
        return learner.init(some_key(learner, key, is_needed=is_random))
    if key is not None:
        raise OptionError(
            "key",
            got="a key beside a carry",
            expected="one of them",
            repair="A carry holds the key of its session; leave out key=.",
        )
    return learner.check_carry(carry)


def some_key(learner: Learner, key: Any, *, is_needed: bool) -> jax.Array | None:
    """The value as a random key, or None where none is needed."""
    if key is not None:
        return check_key(key)
    if is_needed:
        raise OptionError(
            "key",
            got=None,
            expected=f"a random key, since {learner.source.name} draws random numbers",
            repair="Pass key=jax.random.key(seed), another one for each fresh start: with the same key, the same "
            "numbers come again.",
        )
    return None
