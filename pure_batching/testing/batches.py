"""BatchMachine: a Hypothesis state machine of batches, which a subclass makes one for a model, as SessionMachine."""

import itertools
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from .. import _carries as carries
from .._batching import vmap
from .._learning.carry import Carry, apart
from ._altered import divided_traces
from ._case import Case, Request
from ._machine import ModelMachine, row, seeds
from ._stepped import stepped
from .strategies import partitions

_STEPS = 2
_LARGEST = 4
_MOST_BATCHES = 3


class Alone:
    """A sample that knows of no batch."""

    def __init__(self, carry: Carry) -> None:
        self.carry = carry


Batch = tuple[list[Alone], Carry]


class BatchMachine(ModelMachine):
    """Batches of at most four samples are run, masked, reset, joined, cut, reordered and copied.

    Every step and every sequence is run by any of the strategies. Each sample also lives alone, one step after the
    other, and after each rule both are the same.

    Attributes:
      subject: the model, its algorithm, its loss and the strategies that take turns; the algorithm is one whose
        gradient is a sum over steps (`algorithm.credit` is "trace").
      is_exact: whether a sample must be what it is alone bit for bit; otherwise rounding may differ.
      done: how often what happened in all runs of the class, by the name of the rule; "alive" counts gradients of a
        batch of which no weight's is zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []

    @initialize(seed=seeds, samples=st.integers(1, _LARGEST))
    def begin(self, seed: int, samples: int) -> None:
        """The first batch."""
        self._add_fresh(seed, samples)

    @precondition(lambda self: len(self.batches) < _MOST_BATCHES)
    @rule(seed=seeds, samples=st.integers(1, _LARGEST))
    def join(self, seed: int, samples: int) -> None:
        """One more batch."""
        self._add_fresh(seed, samples)

    @rule(which=seeds, data=st.data(), seed=seeds)
    def step(self, which: int, data: st.DataObject, seed: int) -> None:
        """One step, under any strategy."""
        samples, carry = self.take(which)
        runner: Any = self.subject.runner(self._strategy(data), len(samples))
        inputs = row(self.data(seed, 1, len(samples)).inputs, 0)
        after, outputs = runner.learner.step(self.params, carry, *inputs)
        for i, sample in enumerate(samples):
            sample.carry, output = self.learner.step(self.params, sample.carry, *row(inputs, i))
            self.same(row(outputs, i), output, f"the output of sample {i}")
        self.put("step", samples, after)

    @rule(which=seeds, data=st.data(), seed=seeds, masked=seeds, reset=seeds)
    def sequence(self, which: int, data: st.DataObject, seed: int, masked: int, reset: int) -> None:
        """A sequence with masked steps and resets, under any strategy."""
        samples, carry = self.take(which)
        given, shape = self.data(seed, _STEPS, len(samples)), (_STEPS, len(samples))
        flags = {"mask": ~bits(masked, shape), "reset": bits(reset, shape) & bits(reset >> 8, shape)}
        case = Case(self.subject, self.params, given, key=jax.random.key(seed))
        want = stepped(case, together(samples), given, flags)
        got = case.run(self._strategy(data), carry=carry, request=Request("none", None), **flags)
        found, expected = (one._replace(outputs=None, carry=settled(one.carry)) for one in (got, want))
        self.same(found, expected, "the sequence")
        for sample, own in zip(samples, carries.unstack(want.carry), strict=True):
            sample.carry = own
        if (flags["mask"].all(0) & ~flags["reset"][-1]).any():
            self.count_alive("two steps on end", want.gradients)
        self.put("sequence", samples, got.carry)

    @rule(which=seeds, data=st.data())
    def permute(self, which: int, data: st.DataObject) -> None:
        """Another order."""
        samples, carry = self.take(which)
        order = data.draw(st.permutations(range(len(samples))))
        self.put("permute", [samples[i] for i in order], carries.permute(carry, np.array(order)))

    @rule(which=seeds, data=st.data())
    def split(self, which: int, data: st.DataObject) -> None:
        """A batch is cut into several."""
        samples, carry = self.take(which)
        sizes = data.draw(partitions(len(samples)))
        rest = list(samples)
        for size, part in zip(sizes, carries.split(carry, sizes), strict=True):
            self.put("split", rest[:size], part)
            rest = rest[size:]

    @precondition(lambda self: self._pairs())
    @rule(data=st.data())
    def concat(self, data: st.DataObject) -> None:
        """Two batches become one."""
        first, second = data.draw(st.sampled_from(self._pairs()), label="batches")
        (samples, carry), (others, other) = self.batches[first], self.batches[second]
        self.batches = [batch for i, batch in enumerate(self.batches) if i not in (first, second)]
        self.put("concat", samples + others, carries.concat([apart(carry), apart(other)]))

    @rule(which=seeds, rows=st.lists(seeds, min_size=1, max_size=_LARGEST))
    def gather(self, which: int, rows: list[int]) -> None:
        """Some samples, some of them more than once: a copy lives on by itself."""
        samples, carry = self.take(which)
        chosen = [one % len(samples) for one in rows]
        self.put("gather", [Alone(samples[i].carry) for i in chosen], carries.gather(carry, np.array(chosen)))

    @rule(which=seeds, place=seeds, seed=seeds)
    def scatter(self, which: int, place: int, seed: int) -> None:
        """One sample is replaced by a fresh one."""
        samples, carry = self.take(which)
        at, fresh = place % len(samples), self.learner.init(jax.random.key(seed))
        samples[at] = Alone(fresh)
        self.put("scatter", samples, carries.scatter(apart(carry), [at], carries.stack([apart(fresh)])))

    @invariant()
    def every_sample_is_as_if_alone(self) -> None:
        """The carry of each batch is that of its samples alone."""
        for samples, carry in self.batches:
            self.same(settled(carry), settled(together(samples)), "a batch")

    def take(self, which: int) -> Batch:
        """Take one of the batches out."""
        return self.batches.pop(which % len(self.batches))

    def put(self, name: str, samples: list[Alone], carry: Carry) -> None:
        """Put a batch in, as the result of a rule."""
        self.batches.append((samples, carry))
        self.done[name] += 1

    def _pairs(self) -> list[tuple[int, int]]:
        """The batches that are few enough together."""
        pairs = itertools.permutations(range(len(self.batches)), 2)
        return [pair for pair in pairs if sum(len(self.batches[i][0]) for i in pair) <= _LARGEST]

    def _add_fresh(self, seed: int, samples: int) -> None:
        carry = vmap(self.learner, samples).init(jax.random.key(seed))
        self.put("join", [Alone(one) for one in carries.unstack(carry)], carry)

    def _strategy(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.subject.names), label="strategy")


def bits(number: int, shape: tuple[int, int]) -> np.ndarray:
    """A pattern of flags."""
    return np.array([number >> i & 1 for i in range(shape[0] * shape[1])], bool).reshape(shape)


def together(samples: list[Alone]) -> Carry:
    """The carry of a batch of samples, each with its own of the states that samples may share."""
    return carries.stack([apart(sample.carry) for sample in samples])


def settled(carry: Carry) -> Carry:
    """A carry as it can be compared: its samples share nothing, and its traces wait for nothing."""
    return divided_traces(apart(carry))
