"""Every law, of every entry, for values drawn freely."""

import itertools

import brainstate
import pytest
from hypothesis import given, settings, strategies as st

import pure_batching as pb
from pure_batching.testing import Case, Data, assert_alive, assert_differ, laws
from pure_batching.testing._native_run import brainscale_runs_here, counterpart
from pure_batching.testing.modules import Net
from pure_batching.testing.strategies import SIZE, cases, sequences

from .subjects import CONVOLVED, ENTRIES, SAMPLES, SHARED, STEPS, UNLIKE, Entry, grouped, subject

# The smallest batches and sequences, and as many samples as there are features: steps, samples.
EDGES = ((1, 1), (1, 2), (4, 1), (4, SIZE))
AT_EDGES = (Entry(SHARED, pb.ES_D_RTRL(0.9)), Entry(CONVOLVED, pb.D_RTRL(rule="published")))

# A law that captures or compiles for each example gets a third of them.
COSTLY = ("purity", "round_trip")


def excuse(law: str, entry: Entry) -> str | None:
    """Why a law does not concern an entry, whatever the values."""
    with brainstate.environ.context(precision=entry.precision):
        made = subject(entry)
        return laws.ALL[law].excuse(Case(made, made.params, entry.net.data(0, STEPS, SAMPLES)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every law of every entry; of every second entry where turns are taken."""
    if metafunc.function is TestLaws.test_holds:
        turn = metafunc.config.getoption("--turn")
        entries = ENTRIES if turn is None else ENTRIES[turn % 2 :: 2]
        metafunc.parametrize("law", [name for name in laws.ALL if name != "parity"])
        metafunc.parametrize("entry", [grouped(entry) for entry in entries])


class TestLaws:
    def test_holds(self, law: str, entry: Entry) -> None:
        made = subject(entry)
        if reason := excuse(law, entry):
            pytest.skip(reason)

        @settings(max_examples=settings().max_examples // (3 if law in COSTLY else 1))
        @given(st.data())
        def holds(data: st.DataObject) -> None:
            with brainstate.environ.context(precision=entry.precision):
                case = data.draw(cases(made, entry.net, STEPS, SAMPLES))
                assert_alive(case.result(case.reference), spikes=entry.net.spikes)
                laws.ALL[law](case)

        holds()


# Each changes what the one before it gives: the trace, its normalisation, what reaches other elements.
DIFFERENT = (pb.ES_D_RTRL(0.9), pb.D_RTRL(), pb.D_RTRL(rule="published"), pb.BPTT())


@pytest.mark.parametrize(
    "net", [pytest.param(net, marks=pytest.mark.xdist_group(f"algorithms of {net}"), id=str(net)) for net in UNLIKE]
)
def test_algorithms_differ(net: Net) -> None:
    """What all laws are held against is not one and the same gradient."""
    with brainstate.environ.context(precision=64):
        subjects = [subject(Entry(net, algorithm)) for algorithm in DIFFERENT]

        @given(sequences(net, STEPS, SAMPLES))
        def differ(data: Data) -> None:
            found = [Case(made, made.params, data).result("vmap").gradients for made in subjects]
            for (one, first), (other, second) in itertools.pairwise(zip(DIFFERENT, found, strict=True)):
                assert_differ(first, second, f"the gradients of {one} and {other}")

        differ()


@pytest.mark.skipif(not brainscale_runs_here(), reason="brainscale cannot differentiate with this version of jax")
@pytest.mark.filterwarnings("ignore:linear_util.wrap_init is missing a DebugInfo object:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:jax.core.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("entry", [grouped(entry) for entry in ENTRIES if counterpart(entry.algorithm)])
def test_parity(entry: Entry) -> None:
    """BrainScale's own numbers; what costs is its first run of an entry."""
    made = subject(entry)

    @settings(max_examples=5 * settings().max_examples)
    @given(cases(made, entry.net, STEPS, SAMPLES))
    def holds(case: Case) -> None:
        assert laws.parity.excuse(case) is None
        assert_alive(case.result(case.reference), spikes=entry.net.spikes)
        laws.parity(case)

    with brainstate.environ.context(precision=entry.precision):
        holds()


@pytest.mark.parametrize("entry", [grouped(entry) for entry in AT_EDGES])
@pytest.mark.parametrize(("steps", "samples"), EDGES)
def test_at_the_edges(steps: int, samples: int, entry: Entry) -> None:
    made = subject(entry)

    @settings(max_examples=settings().max_examples // 3)
    @given(cases(made, entry.net, steps, samples))
    def hold(case: Case) -> None:
        assert_alive(case.result(case.reference), large_traces=steps > 1)
        for law in laws.ALL.values():
            law(case)

    with brainstate.environ.context(precision=entry.precision):
        hold()
