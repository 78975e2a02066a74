"""A batch is driven through everything that can happen to it, beside a dictionary of samples that live alone."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import pure_batching as pb
from pure_batching.testing import Case, Data, Request
from pure_batching.testing._alive import assert_gradients_alive, assert_moving
from pure_batching.testing._compare import first_difference
from pure_batching.testing._native_run import native_round_trip
from pure_batching.testing._stepped import stepped
from pure_batching.testing.strategies import partitions
from tests.trees import plain

from .subjects import GATED, RECURRENT_SPIKES, Entry, grouped, subject

STEPS = 2
LARGEST = 4
names = st.sampled_from(("loop", "vmap", "manual"))
numbers = st.integers(0, 2**16)


@dataclasses.dataclass
class Alone:
    """A sample that knows of no batch."""

    carry: pb.Carry


class Machine(RuleBasedStateMachine):
    """Batches of at most four samples; each sample also lives alone, and both must stay the same."""

    entry: Entry

    def __init__(self) -> None:
        super().__init__()
        self.subject = subject(self.entry)
        self.batches: list[tuple[list[Alone], pb.Carry]] = []

    @initialize(seed=numbers, samples=st.integers(1, LARGEST))
    def begin(self, seed: int, samples: int) -> None:
        self.add_fresh(seed, samples)

    def add_fresh(self, seed: int, samples: int) -> None:
        carry = pb.vmap(self.subject.learner, samples).init(jax.random.key(seed))
        self.batches.append(([Alone(one) for one in pb.unstack(carry)], carry))

    def take(self, which: int) -> tuple[list[Alone], pb.Carry]:
        return self.batches.pop(which % len(self.batches))

    @precondition(lambda self: len(self.batches) < 3)
    @rule(seed=numbers, samples=st.integers(1, LARGEST))
    def join(self, seed: int, samples: int) -> None:
        self.add_fresh(seed, samples)

    @rule(which=numbers, name=names, seed=numbers)
    def step(self, which: int, name: str, seed: int) -> None:
        """One step, under any strategy."""
        samples, carry = self.take(which)
        data = self.data(seed, len(samples))
        moment = jax.tree.map(lambda x: x[0], data.inputs)
        after, _ = self.batched(name, len(samples)).step(self.subject.params, carry, *moment)
        for i, sample in enumerate(samples):
            own = jax.tree.map(lambda x, i=i: x[i], moment)
            sample.carry, _ = self.subject.learner.step(self.subject.params, sample.carry, *own)
        assert_moving(after.hidden)
        self.batches.append((samples, after))

    @rule(which=numbers, name=names, seed=numbers, masked=numbers, reset=numbers)
    def gradient(self, which: int, name: str, seed: int, masked: int, reset: int) -> None:
        """A sequence with masked steps and resets, under any strategy."""
        samples, carry = self.take(which)
        data, shape = self.data(seed, len(samples)), (STEPS, len(samples))
        flags = {"mask": ~bits(masked, shape), "reset": bits(reset, shape) & bits(reset >> 8, shape)}
        case = Case(self.subject, self.subject.params, data)
        want = stepped(case, pb.stack([sample.carry for sample in samples]), data, flags)
        if (flags["mask"].all(0) & ~flags["reset"][-1]).any():  # some sample makes two steps on end
            assert_gradients_alive(want.gradients)
        runner = self.subject.runner(name, len(samples))
        got = runner.run(Request("none", None), self.subject.params, carry, data, flags)
        both = (one._replace(outputs=None, carry=plain(one.carry)) for one in (got, want))
        self.same(*both)
        for sample, own in zip(samples, pb.unstack(want.carry), strict=True):
            sample.carry = own
        self.batches.append((samples, got.carry))

    @rule(which=numbers, data=st.data())
    def permute(self, which: int, data: st.DataObject) -> None:
        samples, carry = self.take(which)
        order = data.draw(st.permutations(range(len(samples))))
        self.batches.append(([samples[i] for i in order], pb.permute(carry, np.array(order))))

    @rule(which=numbers, data=st.data())
    def split(self, which: int, data: st.DataObject) -> None:
        samples, carry = self.take(which)
        sizes = data.draw(partitions(len(samples)))
        rest = list(samples)
        for size, part in zip(sizes, pb.split(carry, sizes), strict=True):
            self.batches.append((rest[:size], part))
            rest = rest[size:]

    @precondition(lambda self: len(self.batches) > 1)
    @rule(first=numbers, second=numbers)
    def concat(self, first: int, second: int) -> None:
        one, other = self.take(first), self.take(second)
        if len(one[0]) + len(other[0]) > LARGEST:
            self.batches += [one, other]
        else:
            self.batches.append((one[0] + other[0], pb.concat([one[1], other[1]])))

    @rule(which=numbers, rows=st.lists(numbers, min_size=1, max_size=LARGEST))
    def gather(self, which: int, rows: list[int]) -> None:
        """Some samples, some of them more than once: a copy lives on by itself."""
        samples, carry = self.take(which)
        chosen = [row % len(samples) for row in rows]
        self.batches.append(([Alone(samples[i].carry) for i in chosen], pb.gather(carry, np.array(chosen))))

    @rule(which=numbers, row=numbers, seed=numbers)
    def scatter(self, which: int, row: int, seed: int) -> None:
        """One sample is replaced by a fresh one."""
        samples, carry = self.take(which)
        place, fresh = row % len(samples), self.subject.learner.init(jax.random.key(seed))
        samples[place] = Alone(fresh)
        self.batches.append((samples, pb.scatter(carry, [place], pb.stack([fresh]))))

    @rule(which=numbers, row=numbers)
    def through_brainscale(self, which: int, row: int) -> None:
        samples, carry = self.take(which)
        place = row % len(samples)
        back, _ = native_round_trip(self.subject, samples[place].carry)
        self.batches.append((samples, pb.scatter(carry, [place], pb.stack([back]))))

    @invariant()
    def every_sample_is_as_if_alone(self) -> None:
        for samples, carry in self.batches:
            self.same(plain(carry), plain(pb.stack([sample.carry for sample in samples])))

    def batched(self, name: str, samples: int) -> pb.Learner:
        runner: Any = self.subject.runner(name, samples)
        return runner.learner

    def data(self, seed: int, samples: int) -> Data:
        return self.entry.net.data(seed, STEPS, samples)

    @staticmethod
    def same(got: Any, want: Any) -> None:
        difference = first_difference(got, want, lambda _: "gradient")
        assert difference is None, difference


def bits(number: int, shape: tuple[int, int]) -> np.ndarray:
    """A pattern of flags."""
    return np.array([number >> i & 1 for i in range(shape[0] * shape[1])], bool).reshape(shape)


ENTRIES = (Entry(GATED, pb.ES_D_RTRL(0.9)), Entry(RECURRENT_SPIKES, pb.D_RTRL()))


@functools.cache
def machine_of(entry: Entry) -> type[Machine]:
    return type("Machine", (Machine,), {"entry": entry})


@pytest.mark.parametrize("entry", [*map(grouped, ENTRIES)])
def test_whatever_happens_to_a_batch(entry: Entry) -> None:
    state_machine = machine_of(entry)
    made = state_machine.TestCase
    made.settings = settings(max_examples=max(3, settings().max_examples), stateful_step_count=12)
    made("runTest").runTest()
