"""The catalogue of faults is up to date; whether each is found, `python -m property_tests.faults` shows."""

import pytest

from .catalogue import FAULTS, Fault
from .faults import ROOT, with_fault


def test_there_are_enough() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_can_be_put_in(fault: Fault) -> None:
    text = (ROOT / "pure_batching" / fault.file).read_text(encoding="utf-8")
    assert with_fault(fault, text) != text


def test_the_score_stands_on_the_page_for_contributors() -> None:
    assert f"{len(FAULTS)} of {len(FAULTS)} |" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
