"""Every law, of every entry, for values drawn freely."""

import brainstate
import pytest
from hypothesis import given, settings, strategies as st

from pure_batching.testing import assert_alive, laws
from pure_batching.testing.strategies import cases

from .subjects import ENTRIES, SAMPLES, STEPS, Entry, subject

# A law that captures or compiles for each example gets one.
COSTLY = ("purity", "round_trip")


@pytest.mark.parametrize("entry", [pytest.param(e, marks=pytest.mark.xdist_group(str(e)), id=str(e)) for e in ENTRIES])
class TestLaws:
    @pytest.mark.parametrize("law", [name for name in laws.ALL if name != "parity"])
    def test_holds(self, law: str, entry: Entry) -> None:
        made = subject(entry)

        @settings(max_examples=1 if law in COSTLY else settings().max_examples)
        @given(st.data())
        def holds(data: st.DataObject) -> None:
            with brainstate.environ.context(precision=entry.precision):
                case = data.draw(cases(made, entry.net, STEPS, SAMPLES))
                assert_alive(case.result(case.reference), spikes=entry.net.spikes, large_traces=False)
                laws.ALL[law](case)

        holds()
