"""SessionMachine: a Hypothesis state machine of streaming sessions, to be made one for a model by a subclass.

    class Sessions(SessionMachine):
        subject = Subject.of(make_net, pb.D_RTRL(), (jnp.zeros(5),), loss)

        def data(self, seed, steps, samples):
            rng = np.random.default_rng(seed)
            return Data((rng.normal(size=(steps, samples, 5)),), rng.normal(size=(steps, samples, 2)))


    TestSessions = Sessions.TestCase
    TestSessions.settings = hypothesis.settings(max_examples=50, stateful_step_count=20, deadline=None)

pytest then runs `TestSessions`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from .._learning.carry import Carry, apart
from .._learning.optimizer import Optimizer, updated
from .._learning.sequence import sequence_grad
from .._slots import Slots
from .._tree import Tree
from ..errors import SlotError
from ._altered import poisoned
from ._case import Data, Subject
from ._kept import kept
from ._machine import ModelMachine, is_sound, plain, row, seeds

IDS = (0, 1, -5, 2**31 - 1, 42, 7)

chosen_ids = st.sampled_from(IDS)


class SessionMachine(ModelMachine):
    """Sessions in `pb.Slots` come and go, make steps, learn, rest and start anew, while the strategies take turns.

    Each session also lives alone, as a carry of the learner of one sample, and after each rule both are the same: the
    carry, the outputs, the gradient and the update of the weights. A session that a rule does not name keeps its bits.
    A subclass sets `subject` and defines `data`; it may add rules and invariants of its own. Give the algorithm and
    the strategies that are in use: each compiles its own programs.

    Attributes:
      subject: the model, its algorithm, its loss and the strategies that take turns, those that give learners.
      capacity: the number of slots.
      larger: the number of slots after `grow`.
      optimizer: of optax; where there is one, sessions also learn by `Slots.learn`.
      is_exact: whether a session must be what it is alone bit for bit; otherwise rounding may differ.
      done: how often what happened in all runs of the class: "open", "restore", "step", "ruined", "gradient", "learn",
        "reset", "close", "snapshot", "grow", "swap" of the strategy, "refused". Besides, "together" counts rules with
        more than one session, "gradient of one" the gradients of a session alone, and "alive" those of them in which
        no weight's is zero.
    """

    capacity: int = 3
    larger: int = 5
    optimizer: Optimizer | None = None

    def __init__(self) -> None:
        super().__init__()
        self.name = self.subject.names[0]
        self.slots = slots_of(self.subject, self.name, self.capacity)
        self.table = self.slots.empty()
        self.alone: dict[int, Carry] = {}
        self.saved: list[tuple[Carry, Carry]] = []
        self.last: dict[int, Tree] = {}
        self.moved: set[int] = set()

    @rule(one=chosen_ids, seed=seeds)
    def open(self, one: int, seed: int) -> None:
        """A session begins."""
        key = jax.random.key(seed)
        self._put(one, "open", self.learner.init(key), key=key)

    @precondition(lambda self: self.saved)
    @rule(one=chosen_ids, data=st.data())
    def restore(self, one: int, data: st.DataObject) -> None:
        """A snapshot goes on, under any number: beside the session that it was taken of, or after its end."""
        snapshot, carry = data.draw(st.sampled_from(self.saved), label="snapshot")
        self._put(one, "restore", carry, carry=snapshot)

    @precondition(lambda self: self.alone)
    @rule(data=st.data(), seed=seeds, is_ruined=st.sampled_from((False, False, False, True)))
    def step(self, data: st.DataObject, seed: int, *, is_ruined: bool) -> None:
        """Some sessions make a step, the last of them perhaps with what is no number; the others are masked."""
        ids = self._some(data, self.alone)
        given = self.data(seed, 1, len(ids))
        inputs = row(poisoned(given, len(ids) - 1) if is_ruined else given, 0).inputs
        self.table, outputs = self._any_slots(data).step(self.params, self.table, ids, *inputs)
        for k, one in enumerate(ids):
            self.alone[one], output = self.learner.step(self.params, self.alone[one], *row(inputs, k))
            self.same(row(outputs, k), output, f"the output of session {one}")
        self._happened("ruined" if is_ruined else "step", ids)

    @precondition(lambda self: self._sound())
    @rule(data=st.data(), seed=seeds)
    def gradient(self, data: st.DataObject, seed: int) -> None:
        """Some sessions make a step with the gradient of their mean loss."""
        ids = self._some(data, self._sound())
        moment = self._moment(seed, ids)
        found, aux = self._any_slots(data).gradient(self.params, self.table, ids, *moment, loss=self.subject.loss)
        self.agree(found, self._mean_gradient(ids, moment)[0], "the gradient")
        self.table = aux.table
        self._happened("gradient", ids)

    @precondition(lambda self: self.optimizer is not None and self._sound())
    @rule(data=st.data(), seed=seeds)
    def learn(self, data: st.DataObject, seed: int) -> None:
        """Some sessions make a step, and the weights that all sessions share are updated."""
        optimizer: Any = self.optimizer
        ids = self._some(data, self._sound())
        moment, state = self._moment(seed, ids), optimizer.init(self.params)
        options: Any = {"loss": self.subject.loss, "optimizer": optimizer}
        trained, _, aux = self._any_slots(data).learn(self.params, state, self.table, ids, *moment, **options)
        gradient, loss = self._mean_gradient(ids, moment)
        weights, slopes = self.learner.check_params(self.params), self.learner.check_params(gradient)
        wanted, _ = updated(self.learner, optimizer, weights, state, slopes, loss)
        self.agree(trained, self.learner.source.as_given(wanted), "the weights")
        self.params, self.table = trained, aux.table
        self._happened("learn", ids)

    @precondition(lambda self: self.alone)
    @rule(data=st.data(), seed=seeds)
    def reset(self, data: st.DataObject, seed: int) -> None:
        """Some sessions start anew; their random keys go on."""
        ids, key = self._some(data, self.alone), jax.random.key(seed)
        self.table = self.slots.reset(self.table, ids, key)
        for one in ids:
            own = jax.random.fold_in(key, np.uint32(one % 2**32))
            self.alone[one] = self.learner.init(own)._replace(keys=self.alone[one].keys)
        self._happened("reset", ids)

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        """Some sessions end."""
        ids = self._some(data, self.alone)
        self.table = self.slots.evict(self.table, ids)
        for one in ids:
            del self.alone[one], self.last[one]
            self._refused(self.slots.snapshot, self.table, one)
        self._happened("close", [])

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        """The carry of a session is taken, and the session goes on."""
        one = data.draw(st.sampled_from(sorted(self.alone)), label="id")
        taken = self.slots.snapshot(self.table, one)
        self.holds(same_bits(plain(taken), self.last[one]), f"the snapshot of session {one} is not what is in its slot")
        self.saved.append((taken, self.alone[one]))
        self._happened("snapshot", [])

    @precondition(lambda self: self.slots.capacity == self.capacity and self.alone)
    @rule()
    def grow(self) -> None:
        """There are more slots from now on."""
        self.slots, self.table = self.slots.grow(self.table, self.larger)
        self._happened("grow", [])

    @precondition(lambda self: self.alone)
    @rule(stranger=chosen_ids, seed=seeds)
    def strangers(self, stranger: int, seed: int) -> None:
        """One session too many: nothing happens to the others."""
        ids = [*self.alone, stranger]
        self._refused(self.slots.step, self.params, self.table, ids, *self._moment(seed, ids).inputs)

    @invariant()
    def every_session_is_as_if_alone(self) -> None:
        """The table holds the sessions that are open, and each is what it is alone."""
        occupied, ids = np.asarray(self.table.occupied), np.asarray(self.table.ids)
        self.holds(sorted(ids[occupied].tolist()) == sorted(self.alone), "the table has other sessions than are open")
        whole = plain(self.table.carry)
        for place in np.flatnonzero(occupied):
            one, own = int(ids[place]), row(whole, int(place))
            self.same(own, apart(self.alone[one]), f"session {one}")
            is_still = one in self.moved or same_bits(own, self.last[one])
            self.holds(is_still, f"session {one} moved, and no rule named it")
            self.last[one] = own
        self.done["together"] += len(self.alone) > 1
        self.moved = set()

    def _put(self, one: int, name: str, begin: Carry, **start: Any) -> None:
        if one in self.alone or len(self.alone) == self.slots.capacity:
            self._refused(self.slots.admit, self.table, one, **start)
            return
        self.table = self.slots.admit(self.table, one, **start)
        self.alone[one] = begin
        self._happened(name, [one])

    def _any_slots(self, data: st.DataObject) -> Slots:
        """Let any of the strategies run the table from now on."""
        name = data.draw(st.sampled_from(self.subject.names), label="strategy")
        self.done["swap"] += name != self.name
        self.name, self.slots = name, slots_of(self.subject, name, self.slots.capacity)
        return self.slots

    def _happened(self, name: str, ids: list[int]) -> None:
        self.moved |= set(ids)
        self.done[name] += 1

    def _refused(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            call(*args, **options)
        except SlotError:
            self.done["refused"] += 1
        else:
            self.holds(False, f"Slots.{call.__name__} accepted sessions that it must refuse")  # noqa: FBT003

    def _some(self, data: st.DataObject, among: Any) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(among)), unique=True, min_size=1), label="ids")

    def _sound(self) -> list[int]:
        """The sessions in which every number is finite, so that their gradient is one."""
        return [one for one, carry in self.alone.items() if is_sound(carry)]

    def _moment(self, seed: int, ids: list[int]) -> Data:
        """The data of one step, `[N, ...]`."""
        return row(self.data(seed, 1, len(ids)), 0)

    def _mean_gradient(self, ids: list[int], moment: Data) -> tuple[Tree, jax.Array]:
        """The gradient and the loss, the means over sessions that each make the step alone."""
        found = []
        for k, one in enumerate(ids):
            own = jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], moment)
            gradients, aux = gradient_of_a_step(self.subject)(self.params, self.alone[one], *own)
            self.alone[one] = aux.carry
            self.count_alive("gradient of one", gradients)
            found.append((gradients, aux.losses.sum()))
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)


@kept
def slots_of(subject: Subject, name: str, capacity: int) -> Slots:
    """Slots that one of the strategies runs."""
    by: Any = subject.strategies[name]
    return Slots(subject.learner, capacity, by)


@kept
def gradient_of_a_step(subject: Subject) -> Any:
    """The gradient of a sequence of one step of one sample."""
    return sequence_grad(subject.learner, subject.loss, window=1)


def same_bits(got: Tree, want: Tree) -> bool:
    """Whether two trees of numpy's arrays are the same, bit for bit."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return jax.tree.structure(got) == jax.tree.structure(want) and all(a.tobytes() == b.tobytes() for a, b in pairs)
