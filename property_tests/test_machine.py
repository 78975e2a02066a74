"""A batch is driven through everything that can happen to it, beside samples that live alone."""

import functools

import pytest
from hypothesis import settings
from hypothesis.stateful import rule

import pure_batching as pb
from pure_batching.testing import Data
from pure_batching.testing._machine import seeds
from pure_batching.testing._native_run import native_round_trip
from pure_batching.testing.batches import BatchMachine

from .subjects import GATED, RECURRENT_SPIKES, Entry, grouped, subject

RULES = ("join", "step", "sequence", "permute", "split", "concat", "gather", "scatter", "through_brainscale")


class Machine(BatchMachine):
    entry: Entry

    @rule(which=seeds, row=seeds)
    def through_brainscale(self, which: int, row: int) -> None:
        samples, carry = self.take(which)
        place = row % len(samples)
        back, _ = native_round_trip(self.subject, samples[place].carry)
        self.put("through_brainscale", samples, pb.scatter(carry, [place], pb.stack([back])))

    def data(self, seed: int, steps: int, samples: int) -> Data:
        return self.entry.net.data(seed, steps, samples)


ENTRIES = (Entry(GATED, pb.ES_D_RTRL(0.9)), Entry(RECURRENT_SPIKES, pb.D_RTRL()))


@functools.cache
def machine_of(entry: Entry) -> type[Machine]:
    return type("Machine", (Machine,), {"entry": entry, "subject": subject(entry)})


@pytest.mark.parametrize("entry", [*map(grouped, ENTRIES)])
def test_whatever_happens_to_a_batch(entry: Entry) -> None:
    machine = machine_of(entry)
    case = machine.TestCase
    case.settings = settings(max_examples=max(6, settings().max_examples), stateful_step_count=16)
    case("runTest").runTest()
    assert all(machine.done[one] > 0 for one in RULES), machine.done
    assert machine.done["alive"] == machine.done["two steps on end"] > 0
