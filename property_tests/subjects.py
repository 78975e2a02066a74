"""What the laws are tried on: every algorithm, on modules that cover every kind of layer, in both precisions."""

import functools
from typing import Any, NamedTuple

import brainstate
import pytest
from hypothesis import settings

import pure_batching as pb
from pure_batching.testing import Subject
from pure_batching.testing.modules import SETTINGS, Cell, Leaky, Net, Readout, Spiking, squared
from pure_batching.testing.strategies import SIZE

# The sequence and the batch of every example; the window is shorter, and does not divide the batch.
STEPS, SAMPLES = 4, 3


class Entry(NamedTuple):
    """A module under an algorithm, in a precision."""

    net: Net
    algorithm: pb.Algorithm
    precision: int = 64

    def __str__(self) -> str:
        return f"{self.net}-{self.algorithm}-{self.precision}"


GATED = Net((Cell("GRUCell", SIZE), Readout("linear")), n_inputs=2)
DEEP = Net((Cell("MinimalRNNCell", SIZE), Cell("MiniLSTM", SIZE), Readout("untraced")), is_normalized=True)
COMPLEX = Net((Cell("LRUCell", SIZE), Readout("leaky")), has_units=True)
RECURRENT_SPIKES = Net((Spiking("LIF", "delta", SIZE, is_recurrent=True), Readout("leaky")))
ADAPTIVE = Net((Spiking("ALIF", "expon", SIZE), Readout("linear")))
SHARED = Net((Leaky("lora", SIZE), Readout("leaky")), is_shared=True)
CONVOLVED = Net((Leaky("conv", SIZE), Readout("linear")), has_units=True)
SCALED = Net((Leaky("element_wise", SIZE),), n_inputs=2, seed=3)  # under other weights, it saturates
MASKED = Net((Leaky("masked", SIZE), Leaky("signed", SIZE)))

# By day, each algorithm under each rule and signal, each kind of layer and both precisions; at night more of each.
_BY_DAY = (
    Entry(RECURRENT_SPIKES, pb.ES_D_RTRL(0.9)),
    Entry(GATED, pb.ES_D_RTRL(5, rule="published")),
    Entry(ADAPTIVE, pb.ES_D_RTRL(0.9, vjp="multi-step")),
    Entry(DEEP, pb.ES_D_RTRL(5, rule="published", vjp="multi-step")),
    Entry(GATED, pb.D_RTRL()),
    Entry(CONVOLVED, pb.D_RTRL(rule="published")),
    Entry(COMPLEX, pb.D_RTRL(vjp="multi-step")),
    Entry(DEEP, pb.D_RTRL(rule="published", vjp="multi-step")),
    Entry(MASKED, pb.Hybrid(0.9)),
    Entry(SCALED, pb.Hybrid(0.9, rule="published")),
    Entry(SCALED, pb.Hybrid(5, vjp="multi-step")),
    Entry(COMPLEX, pb.Hybrid(0.9, rule="published", vjp="multi-step")),
    Entry(ADAPTIVE, pb.EProp(0.8)),
    Entry(RECURRENT_SPIKES, pb.OTTT(0.9)),
    Entry(GATED, pb.RTRL()),
    Entry(GATED, pb.BPTT()),
    Entry(ADAPTIVE, pb.ES_D_RTRL(0.9), 32),
    Entry(CONVOLVED, pb.D_RTRL(rule="published"), 32),
)
_AT_NIGHT = (
    Entry(SHARED, pb.ES_D_RTRL(0.9)),
    Entry(GATED, pb.ES_D_RTRL(0.9)),
    Entry(RECURRENT_SPIKES, pb.D_RTRL()),
    Entry(SCALED, pb.D_RTRL(rule="published")),
    Entry(ADAPTIVE, pb.D_RTRL(rule="published")),
    Entry(RECURRENT_SPIKES, pb.BPTT(checkpoint=True)),
    Entry(GATED, pb.D_RTRL(), 32),
    Entry(COMPLEX, pb.D_RTRL(rule="published"), 32),
    Entry(GATED, pb.BPTT(), 32),
)
IS_NIGHT = settings().max_examples > 10
ENTRIES = (*_BY_DAY, *_AT_NIGHT) if IS_NIGHT else _BY_DAY

# Modules in which no two algorithms have the same gradient.
UNLIKE = (GATED, RECURRENT_SPIKES, DEEP, ADAPTIVE, SHARED) if IS_NIGHT else (GATED, RECURRENT_SPIKES)


def grouped(entry: Entry) -> Any:
    """An entry as a parameter of a test; the tests of one share what it compiled."""
    return pytest.param(entry, marks=pytest.mark.xdist_group(str(entry)), id=str(entry))


@functools.cache
def subject(entry: Entry) -> Subject:
    """The entry's module, captured once in a run."""
    with brainstate.environ.context(precision=entry.precision):
        net = entry.net
        return Subject.of(net, entry.algorithm, net.example(), squared, environ=dict(SETTINGS), is_exact=net.is_exact)
