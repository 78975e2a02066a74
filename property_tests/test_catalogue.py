"""The catalogue of faults is up to date."""

from .faults import FAULTS, ROOT, with_fault


def test_each_fault_has_one_place() -> None:
    for fault in FAULTS:
        text = (ROOT / "pure_batching" / fault.file).read_text(encoding="utf-8")
        assert with_fault(fault, text) != text, fault.name


def test_each_fault_has_a_name_of_its_own() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
