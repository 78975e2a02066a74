"""Slots: streaming sessions that come and go, run together by one compiled step."""

import dataclasses
import functools
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _slot_carries as carries
from ._batching import BatchedBy, batched_by, vmap
from ._carries import concat, split
from ._learning.carry import Carry
from ._learning.learner import Learner, check_learner
from ._learning.losses import Same, SplitLoss, check_loss_function
from ._learning.optimizer import Optimizer, check_optimizer
from ._options import is_count
from ._program import Loss
from ._slot_arguments import Call, found, session, some_key, to_learn, to_step
from ._slot_carries import Done, Moment, SlotPrograms
from ._slot_table import (
    SlotTable,
    check_table,
    check_untraced,
    flags_of,
    one_id,
    rows_of,
    taken,
    vacant_row,
)
from ._tree import Tree
from .errors import BatchSizeError, OptionError, StrategyError


class SlotAux(NamedTuple):
    """The results beside a gradient or an update. `N` is the number of sessions in the call.

    Attributes:
      table: after the step.
      losses: `[N]`, a numpy array.
      outputs: the module's outputs, `[N, ...]`, numpy arrays.
    """

    table: SlotTable
    losses: np.ndarray
    outputs: Tree


@dataclasses.dataclass(frozen=True)
class Slots:
    """A place for streaming sessions: each has its own carry in one of `C` slots, and all are run by one program.

    A session is what a learner of one sample is: a carry that goes through one step after the other. This is what the
    functions mean, but that each of them returns a new table:

        def admit(table, id):
            table[id] = learner.init()

        def step(params, table, ids, inputs):
            for id, x in zip(ids, inputs):
                table[id], outputs[id] = learner.step(params, table[id], x)

    The value holds no sessions: every function takes a table and returns the next one, and no table is changed. What
    happens to a session depends on neither its slot nor the sessions beside it, but with
    `by=partial(pb.manual, allow_coupling=True)`, which accepts that. Its random numbers come from its own key.

    Whichever sessions make a step, and however many, the whole table is run by one program that is compiled once; the
    time of a step is that of `C` samples. The functions themselves look ids up on the host, so they are called outside
    `jax.jit`, and outputs come back as numpy arrays, for which the call waits. Inside `jax.jit`, and for several steps
    in one call, run `slots.batched`, the learner whose samples are the slots, on `table.carry`: `pb.sequence_grad` and
    `pb.online` take the slots that make a step as `mask=`, and `table._replace(carry=aux.carry)` is the next table.

    Attributes:
      learner: of one sample.
      capacity: `C`, the number of slots.
      by: the strategy that runs them: `pb.vmap`, `pb.manual`, `pb.loop`, or one whose options are bound. With
        `functools.partial(pb.sharded, mesh=mesh)`, every table lies on the devices of the mesh; put params there too,
        or each call copies them.

    Raises:
      StructureError: no learner.
      StrategyError: the learner has a batch already, the strategy cannot run it, or samples reach each other along an
        axis, so that a session would see the others.
      BatchSizeError: a capacity that is not a positive integer, or that the devices of `pb.sharded` do not divide.
      OptionError: `by` is no strategy.
      SlotError: a learner whose rule has a traced number.
    """

    learner: Learner
    capacity: int
    by: BatchedBy = vmap

    def __post_init__(self) -> None:
        check_learner(self.learner, "Slots")
        check_untraced("pb.Slots", self.learner)
        if self.learner.source.axis_name is not None:
            raise StrategyError(
                "pb.Slots",
                got=f"a module whose samples reach each other along the axis {self.learner.source.axis_name!r}",
                expected="independent samples",
                repair="A session would see those beside it; capture the module without axis_name.",
            )
        _ = self.batched  # what cannot be run is refused now

    def __reduce__(self) -> tuple[Any, ...]:
        """The same slots in another process, where they are compiled anew.

        Raises:
          PickleError: the strategy has the devices of this process, or the module cannot be sent.
        """
        pickle.dumps(self.batched.strategy)  # `by` would say of a mesh only that pickle knows no devices
        return Slots, (self.learner, self.capacity, self.by)

    def __copy__(self) -> "Slots":
        return self

    def __deepcopy__(self, memo: Any) -> "Slots":
        """The same: slots are a value, and cannot change."""
        return self

    @functools.cached_property
    def batched(self) -> Learner:
        """The learner whose samples are the slots."""
        try:
            return batched_by(self.by, self.learner, self.capacity)
        except BatchSizeError as error:
            raise BatchSizeError(
                "capacity",
                got=error.got,
                expected=error.expected,
                repair="Give another number of slots; those that no session is in may stay vacant.",
            ) from error

    def empty(self) -> SlotTable:
        """A table without sessions."""
        carry = self._programs.of(carries.vacant, (), Carry.sample_axes())()
        return SlotTable(carry, jnp.zeros(self.capacity, jnp.int32), jnp.zeros(self.capacity, bool))

    def admit(
        self,
        table: SlotTable,
        id: Any,  # noqa: A002 - one of the ids of the table
        key: jax.Array | None = None,
        carry: Carry | None = None,
    ) -> SlotTable:
        """Put a session into the first vacant slot.

        Args:
          table: of these slots.
          id: the session's number, an integer of 32 bits that no session of the table has.
          key: a random key, from which the session draws what it draws; it begins as `learner.init(key)`. It is
            needed where the module draws random numbers. Give each session another one.
          carry: what the session goes on from, in place of a fresh start: what `snapshot` returned, here or from other
            slots of the same learner, or the carry of a learner of one sample.

        Raises:
          SlotError: no slot is vacant, or the session is in the table already; a traced argument.
          StructureError: no table.
          CarryError: a table of other slots, or a carry of another learner or of a batch.
          OptionError: no key where it is needed, or one where a carry holds it.
          DtypeError, ShapeError: no integer of 32 bits, or no random key.
        """
        check_untraced("slots.admit", table, id, key, carry)
        with self._as_given():
            table, number = check_table(self.batched, table), one_id(id)
            row = vacant_row(table, number)
            sample = session(self.learner, key, carry)
        ids, occupied = np.array(table.ids), np.array(table.occupied)
        ids[row], occupied[row] = number, True
        axes = (Carry.sample_axes(), None, None)
        placed = self._programs.of(carries.placed, axes, Carry.sample_axes())(table.carry, np.int32(row), sample)
        return table._replace(carry=placed).with_slots(ids, occupied)

    def snapshot(self, table: SlotTable, id: Any) -> Carry:  # noqa: A002 - one of the ids of the table
        """The carry of one session, for `admit`, or for a learner of one sample.

        Raises:
          SlotError: the session is in no slot; a traced argument.
          StructureError, CarryError: no table, or one of other slots.
          DtypeError, ShapeError: no integer of 32 bits.
        """
        check_untraced("slots.snapshot", table, id)
        with self._as_given():
            table, number = check_table(self.batched, table), one_id(id)
            (row,) = rows_of(table, np.array([number]))
        return self._programs.of(carries.at, (Carry.sample_axes(), None), None)(table.carry, np.int32(row))

    def step(self, params: Tree, table: SlotTable, ids: Any, *inputs: Tree) -> tuple[SlotTable, Tree]:
        """Run one step of some sessions. The others do not move, bit for bit.

        Args:
          params: trainable values.
          table: of these slots.
          ids: `[N]` integers, the sessions that make a step, in any order, each once.
          inputs: the module's arguments, `[N, ...]`, a row for each of the ids; they may be arrays of numpy.

        Returns:
          the next table and the module's outputs, `[N, ...]`, numpy arrays.

        Raises:
          SlotError: a session that is in no slot, or that stands twice; a traced argument.
          StructureError, ShapeError, BatchSizeError, DtypeError, UnitError: an argument does not fit.
          CarryError: the table belongs to another learner or capacity.
        """
        check_untraced("slots.step", params, table, ids, inputs)
        with self._as_given():
            call = to_step(self.batched, params, table, ids, inputs)
        run = self._programs.of(carries.stepped, (None, *_OF_A_STEP), (Carry.sample_axes(), 0))
        carry, outputs = run(*call.arguments)
        return call.table._replace(carry=carry), taken(outputs, call.rows)

    def gradient(
        self, params: Tree, table: SlotTable, ids: Any, inputs: Tree, targets: Tree, *, loss: Loss
    ) -> tuple[Tree, SlotAux]:
        """Run one step of some sessions, with the gradient of their mean loss.

        It is the mean over the `N` sessions of the call of what `pb.sequence_grad(learner, loss, window=1)` gives for
        one step of each alone; neither the capacity nor the sessions that rest count.

        Args:
          params: trainable values.
          table: of these slots.
          ids: `[N]` integers, at least one.
          inputs: `[N, ...]`, a row for each of the ids; a tuple for modules with several arguments.
          targets: the second argument of the loss, `[N, ...]`.
          loss: `(output, target) -> []`, of one session at one step. Define it once: what is compiled is kept for it.

        Returns:
          the gradient in the structure of the params, and `SlotAux` with the next table, the losses and outputs.

        Raises:
          SlotError: no session, one that is in no slot, or one that stands twice; a traced argument.
          LossError: the loss gives no real number.
          StructureError, ShapeError, BatchSizeError, DtypeError, UnitError, CarryError: an argument does not fit.
        """
        check_untraced("slots.gradient", params, table, ids, inputs, targets, loss)
        check_loss_function(loss)
        with self._as_given():
            call = to_learn(self.batched, params, table, ids, inputs, targets)
        rest, arrays = SplitLoss.of(loss)
        run = self._programs.of(carries.with_gradient, (None, None, *_OF_A_STEP), (None, _DONE_AXES), rest)
        gradients, done = run(arrays, *call.arguments)
        return gradients, _aux(call, done)

    def learn(
        self,
        params: Tree,
        opt_state: Tree,
        table: SlotTable,
        ids: Any,
        inputs: Tree,
        targets: Tree,
        *,
        loss: Loss,
        optimizer: Optimizer,
    ) -> tuple[Tree, Tree, SlotAux]:
        """Run one step of some sessions, and make one update of the params, which all sessions share.

        The gradient is that of `gradient`, and the update that of `pb.online`.

        Args:
          params: trainable values.
          opt_state: `optimizer.init(params)`, or what the last call returned.
          table: of these slots.
          ids: `[N]` integers, at least one.
          inputs: `[N, ...]`, a row for each of the ids; a tuple for modules with several arguments.
          targets: the second argument of the loss, `[N, ...]`.
          loss: `(output, target) -> []`, of one session at one step.
          optimizer: an optimizer of optax, as in `pb.online`; the loss that it gets as `value=` is the mean over these
            sessions. Define it and the loss once: what is compiled is kept for them.

        Returns:
          the params and the state of the optimizer after the update, and `SlotAux` with the next table, and the losses
          and outputs of the params before it.

        Raises:
          SlotError: no session, one that is in no slot, or one that stands twice; a traced argument.
          LossError: the loss gives no real number.
          OptionError: no optimizer, or one that needs other arguments.
          StructureError, ShapeError, BatchSizeError, DtypeError, UnitError, CarryError: an argument does not fit.
        """
        check_untraced("slots.learn", params, opt_state, table, ids, inputs, targets, loss)
        check_loss_function(loss)
        check_optimizer(optimizer)
        with self._as_given():
            call = to_learn(self.batched, params, table, ids, inputs, targets)
        rest, arrays = SplitLoss.of(loss)
        axes, made = (None, None, None, *_OF_A_STEP), (None, None, _DONE_AXES)
        run = self._programs.of(carries.with_update, axes, made, rest, Same(optimizer))
        trained, opt_state, done = run(arrays, opt_state, *call.arguments)
        return trained, opt_state, _aux(call, done)

    def reset(self, table: SlotTable, ids: Any, key: jax.Array | None = None) -> SlotTable:
        """Give some sessions a fresh start. As with `reset=` of `pb.sequence_grad`, their random keys go on.

        Args:
          table: of these slots.
          ids: `[N]` integers, each once.
          key: a random key, needed where the initial state is random: a session draws it from `fold_in(key, id)`.

        Raises:
          SlotError: a session that is in no slot, or that stands twice; a traced argument.
          StructureError, CarryError: no table, or one of other slots.
          DtypeError, ShapeError: no integers of 32 bits, or no random key.
          OptionError: no key where it is needed.
        """
        check_untraced("slots.reset", table, ids, key)
        with self._as_given():
            table, rows = found(self.batched, table, ids)
            given = some_key(self.learner, key, is_needed=self.learner.source.draws_at_start)
        axes = (Carry.sample_axes(), 0, 0, None)
        flags = flags_of(rows, self.capacity)
        carry = self._programs.of(carries.restarted, axes, Carry.sample_axes())(table.carry, flags, table.ids, given)
        return table._replace(carry=carry)

    def evict(self, table: SlotTable, ids: Any) -> SlotTable:
        """Take some sessions out of the table; nothing of them stays in it.

        Args:
          table: of these slots.
          ids: `[N]` integers, each once.

        Raises:
          SlotError: a session that is in no slot, or that stands twice; a traced argument.
          StructureError, CarryError: no table, or one of other slots.
          DtypeError, ShapeError: no integers of 32 bits.
        """
        check_untraced("slots.evict", table, ids)
        with self._as_given():
            table, rows = found(self.batched, table, ids)
        flags = flags_of(rows, self.capacity)
        carry = self._programs.of(carries.vacated, (Carry.sample_axes(), 0), Carry.sample_axes())(table.carry, flags)
        left = table._replace(carry=carry)
        return left.with_slots(np.where(flags, 0, table.ids), np.asarray(table.occupied) & ~flags)

    def grow(self, table: SlotTable, capacity: int) -> tuple["Slots", SlotTable]:
        """More slots, run by the same strategy, and a table of them in which every session stays as it is.

        What runs them is compiled anew, since the arrays have another size.

        Args:
          table: of these slots.
          capacity: the number of slots, larger than now.

        Raises:
          OptionError: a capacity that is no larger integer.
          BatchSizeError: a capacity that the devices of `pb.sharded` do not divide.
        """
        check_untraced("slots.grow", table)
        with self._as_given():
            table = check_table(self.batched, table)
        if not is_count(capacity) or capacity <= self.capacity:
            raise OptionError(
                "capacity",
                got=repr(capacity),
                expected=f"an integer > {self.capacity}",
                repair="Slots only become more; to have fewer, admit snapshots to another table.",
            )
        larger = Slots(self.learner, int(capacity), self.by)
        new = larger.empty()
        more = capacity - self.capacity
        with self._numerics.in_force():
            carry = concat([table.carry, split(new.carry, [self.capacity, more])[1]])
        added = np.pad(np.asarray(table.ids), (0, more)), np.pad(np.asarray(table.occupied), (0, more))
        return larger, new._replace(carry=carry).with_slots(*added)

    @functools.cached_property
    def _programs(self) -> SlotPrograms:
        return SlotPrograms(self.batched)

    @property
    def _numerics(self) -> Any:
        return self.learner.source.numerics

    def _as_given(self) -> Any:
        """The settings under which arguments are checked."""
        return self._numerics.for_arguments().in_force()


_OF_A_STEP: Any = (Carry.sample_axes(), Moment(0, 0, 0))  # type: ignore[arg-type]
_DONE_AXES: Any = Done(Carry.sample_axes(), 0, 0)  # type: ignore[arg-type]


def _aux(call: Call, done: Done) -> SlotAux:
    losses, outputs = taken((done.losses, done.outputs), call.rows)
    return SlotAux(call.table._replace(carry=done.carry), losses, outputs)
