"""The page of what runs says what the tests hold, and nothing else."""

import re

from . import conformance, upstream
from .bench import RULES
from .registry import EVERY
from .versions import needs_its_compiler


def test_what_is_wrong_upstream_names_models() -> None:
    of_algorithms = (*upstream.RAISES.values(), *upstream.DIFFERS.values())
    assert {*upstream.NOT_COMPARED, *(name for names in of_algorithms for name in names)} <= set(EVERY)


class TestPage:
    @needs_its_compiler
    def test_is_what_the_command_prints(self) -> None:
        assert conformance.PAGE.read_text(encoding="utf-8") == conformance.page()

    def test_has_every_model_under_every_rule(self) -> None:
        for algorithm in {conformance.algorithm_of(rule) for rule in RULES}:
            rows = list(conformance.rows(algorithm))
            assert [row[0] for row in rows] == [conformance.label(name) for name in EVERY]
            assert {len(row) for row in rows} == {1 + len(conformance.rules_of(algorithm))}

    def test_labels_are_unique(self) -> None:
        assert len({conformance.label(name) for name in EVERY}) == len(EVERY)

    def test_every_fault_that_is_named_is_listed(self) -> None:
        named = {int(number) for number in re.findall(r"fault (\d+)", conformance.page())}
        assert named <= set(upstream.FAULTS)
        assert set(upstream.FAULTS) - named == {*upstream.REPRODUCED, 12}
