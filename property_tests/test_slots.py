"""Sessions come, go, make steps and learn, beside a dictionary of samples that live alone."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import pure_batching as pb
from pure_batching.errors import SlotError
from pure_batching.testing._alive import assert_gradients_alive
from pure_batching.testing._compare import first_difference, numbers

Tree = Any

FEW, MANY = 3, 5
IDS = (0, 1, -5, 2**31 - 1, 42, 7)
OPTIMIZER = optax.sgd(1e-2)
# The rule sequences of all machines together; by night more.
SEQUENCES = max(510, 30 * settings().max_examples)

chosen_ids = st.sampled_from(IDS)
seeds = st.integers(0, 2**16)


def noisy(params: Tree, state: Tree, x: Tree) -> Any:
    """Each session has a random key of its own."""
    h, key = state
    key, own = jax.random.split(key)
    h = 0.7 * h + jnp.tanh(x @ params["w"] + h @ params["r"]) + 0.1 * jax.random.normal(own, h.shape)
    return (h, key), h[:2]


def counting(params: Tree, state: Tree, x: Tree) -> Any:
    """The samples of a batch share the counter, until they make different numbers of steps."""
    h, step = state
    h = 0.7 * h + jnp.tanh(x @ params["w"] + h @ params["r"]) * jnp.cos(step)
    return (h, step + 1), h[..., :2]


def squared(output: Tree, target: Tree) -> jax.Array:
    return ((output - target) ** 2).sum()


@dataclasses.dataclass(frozen=True)
class Kind:
    """Slots of one kind.

    Attributes:
      step, memory: a function of one sample, and what it remembers besides the hidden state.
      by: the strategy.
      is_exact: whether a session must be the sample alone bit for bit; otherwise rounding may differ.
    """

    step: Callable[..., Any]
    memory: Callable[[], Any]
    by: Callable[..., pb.Learner]
    is_exact: bool = False

    @functools.cached_property
    def captured(self) -> tuple[pb.Learner, Tree]:
        rng = np.random.default_rng(0)
        params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "r": jnp.asarray(0.3 * rng.normal(size=(4, 4)))}
        state = (jnp.linspace(-0.5, 0.5, 4), self.memory())
        return pb.capture_function(self.step, params, state, jnp.zeros(3), algorithm=pb.D_RTRL(rule="published"))

    @functools.cached_property
    def slots(self) -> pb.Slots:
        return pb.Slots(self.captured[0], FEW, self.by)

    @functools.cached_property
    def grad_fn(self) -> Any:
        return pb.sequence_grad(self.captured[0], squared, window=1, outputs=True)


KINDS = {
    "noisy-vmap": Kind(noisy, lambda: jax.random.key(0), pb.vmap),
    "noisy-loop": Kind(noisy, lambda: jax.random.key(0), pb.loop, is_exact=True),
    "counting-manual": Kind(counting, lambda: jnp.zeros((), jnp.int32), pb.manual),
}


class Machine(RuleBasedStateMachine):
    """A table of three or five slots. Each session also lives alone, and both must stay the same."""

    kind: Kind
    done: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.learner, self.params = self.kind.captured
        self.slots = self.kind.slots
        self.table = self.slots.empty()
        self.alone: dict[int, pb.Carry] = {}
        self.saved: list[tuple[pb.Carry, pb.Carry]] = []
        self.last: dict[int, Tree] = {}
        self.moved: set[int] = set()

    def some(self, data: st.DataObject) -> list[int]:
        return data.draw(st.lists(st.sampled_from(sorted(self.alone)), unique=True, min_size=1), label="ids")

    def rows(self, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        return rng.normal(size=(number, 3)), rng.normal(size=(number, 2))

    @rule(one=chosen_ids, seed=seeds)
    def admit(self, one: int, seed: int) -> None:
        self.put(one, self.learner.init(jax.random.key(seed)), key=jax.random.key(seed))

    @precondition(lambda self: self.saved)
    @rule(one=chosen_ids, data=st.data())
    def restore(self, one: int, data: st.DataObject) -> None:
        """A snapshot goes on, under any number: beside the session that it was taken of, or after its end."""
        snapshot, carry = data.draw(st.sampled_from(self.saved), label="snapshot")
        self.put(one, carry, carry=snapshot)

    def put(self, one: int, begin: pb.Carry, **start: Any) -> None:
        if one in self.alone or len(self.alone) == self.slots.capacity:
            with pytest.raises(SlotError, match="which is in a slot" if one in self.alone else "a vacant slot"):
                self.slots.admit(self.table, one, **start)
            self.done["refused"] += 1
            return
        self.table = self.slots.admit(self.table, one, **start)
        self.alone[one] = begin
        self.moved.add(one)
        self.done["restore" if "carry" in start else "admit"] += 1

    @precondition(lambda self: self.alone)
    @rule(data=st.data(), seed=seeds, is_ruined=st.sampled_from((False, False, False, True)))
    def step(self, data: st.DataObject, seed: int, *, is_ruined: bool) -> None:
        """Some sessions make a step, the last of them perhaps with what is no number."""
        ids = self.some(data)
        inputs, _ = self.rows(seed, len(ids))
        inputs[-1:] = np.nan if is_ruined else inputs[-1:]
        self.table, outputs = self.slots.step(self.params, self.table, ids, inputs)
        for k, one in enumerate(ids):
            self.alone[one], output = self.learner.step(self.params, self.alone[one], inputs[k])
            self.same(outputs[k], np.asarray(output))
        self.moved |= set(ids)
        self.done["ruined" if is_ruined else "step"] += 1

    @precondition(lambda self: any(map(is_sound, self.alone.values())))
    @rule(data=st.data(), seed=seeds, is_update=st.booleans())
    def learn(self, data: st.DataObject, seed: int, *, is_update: bool) -> None:
        """Some sessions make a step with the gradient of their mean loss, or with an update by it."""
        sound = sorted(one for one, carry in self.alone.items() if is_sound(carry))
        ids = data.draw(st.lists(st.sampled_from(sound), unique=True, min_size=1), label="ids")
        given = ids, *self.rows(seed, len(ids))
        want = self.gradients_alone(*given)
        if is_update:
            state = OPTIMIZER.init(self.params)
            call = functools.partial(self.slots.learn, loss=squared, optimizer=OPTIMIZER)
            trained, _, aux = call(self.params, state, self.table, *given)
            updates, _ = OPTIMIZER.update(want, state, self.params)
            self.close(trained, optax.apply_updates(self.params, updates))
            self.params = trained
        else:
            found, aux = self.slots.gradient(self.params, self.table, *given, loss=squared)
            self.close(found, want)
        self.table = aux.table
        self.moved |= set(ids)
        self.done["learn" if is_update else "gradient"] += 1

    def gradients_alone(self, ids: list[int], inputs: np.ndarray, targets: np.ndarray) -> Tree:
        """The mean over sessions that each make the step alone."""
        found = []
        for k, one in enumerate(ids):
            gradients, aux = self.kind.grad_fn(self.params, self.alone[one], inputs[[k]], targets[[k]])
            self.alone[one] = aux.carry
            assert_gradients_alive(gradients)
            found.append(gradients)
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def reset(self, data: st.DataObject) -> None:
        ids = self.some(data)
        self.table = self.slots.reset(self.table, ids)
        for one in ids:
            self.alone[one] = self.learner.init()._replace(keys=self.alone[one].keys)
        self.moved |= set(ids)
        self.done["reset"] += 1

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        ids = self.some(data)
        self.table = self.slots.evict(self.table, ids)
        for one in ids:
            del self.alone[one], self.last[one]
            with pytest.raises(SlotError, match="in no slot"):
                self.slots.snapshot(self.table, one)
        self.done["evict"] += 1

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(sorted(self.alone)), label="id")
        taken = self.slots.snapshot(self.table, one)
        assert same_bits(plain(taken), self.last[one])
        self.saved.append((taken, self.alone[one]))
        self.done["snapshot"] += 1

    @precondition(lambda self: self.slots.capacity == FEW and self.alone)
    @rule()
    def grow(self) -> None:
        self.slots, self.table = self.slots.grow(self.table, MANY)
        self.done["grow"] += 1

    @precondition(lambda self: self.alone)
    @rule(stranger=chosen_ids, seed=seeds)
    def wrong_ids(self, stranger: int, seed: int) -> None:
        """One session too many: nothing happens to the others."""
        ids = [*self.alone, stranger]
        with pytest.raises(SlotError, match="each session once" if stranger in self.alone else "in no slot"):
            self.slots.step(self.params, self.table, ids, self.rows(seed, len(ids))[0])
        self.done["refused"] += 1

    @invariant()
    def every_session_is_as_if_alone(self) -> None:
        occupied, ids = np.asarray(self.table.occupied), np.asarray(self.table.ids)
        assert sorted(ids[occupied].tolist()) == sorted(self.alone)
        whole = plain(self.table.carry)
        for row in np.flatnonzero(occupied):
            one, own = int(ids[row]), jax.tree.map(lambda leaf, row=row: leaf[row], whole)
            self.same(own, plain(pb.apart(self.alone[one])))
            assert one in self.moved or same_bits(own, self.last[one]), f"session {one} moved"
            self.last[one] = own
        self.done["together"] += len(self.alone) > 1
        self.moved = set()

    def same(self, got: Tree, want: Tree) -> None:
        if self.kind.is_exact:
            assert same_bits(got, want)
        else:
            self.close(got, want)

    @staticmethod
    def close(got: Tree, want: Tree) -> None:
        difference = first_difference(got, want, lambda _: "gradient")
        assert difference is None, difference


def is_sound(carry: pb.Carry) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(carry.hidden))


def plain(tree: Tree) -> Tree:
    """Arrays of numpy; random keys as their data."""
    return jax.tree.map(numbers, tree)


def same_bits(got: Tree, want: Tree) -> bool:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return jax.tree.structure(got) == jax.tree.structure(want) and all(a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.xdist_group(f"slots {name}")) for name in KINDS])
def test_no_session_sees_another(name: str) -> None:
    done: Counter[str] = Counter()
    machine = type("Machine", (Machine,), {"kind": KINDS[name], "done": done})
    case = machine.TestCase
    case.settings = settings(max_examples=SEQUENCES // len(KINDS), stateful_step_count=12)
    case("runTest").runTest()
    rules = ("admit", "restore", "step", "ruined", "learn", "gradient", "reset", "evict", "snapshot", "grow", "refused")
    assert all(done[one] >= 20 for one in rules), done
    assert done["together"] >= 100, done
