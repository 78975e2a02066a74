"""Every model and layer under every algorithm, rule and learning signal: all strategies give one set of numbers.

ES_D_RTRL has tests of its own. Of the others each layer is run with one, in turn, and with all by `--all-rules`.
"""

import pytest

from .bench import RULES
from .interchangeable import assert_interchangeable
from .registry import EVERY, captured

OTHER_RULES = [rule for rule in RULES if rule != "ES_D_RTRL"]
ALL = [(name, rule) for name in EVERY for rule in OTHER_RULES]
IN_TURN = [(name, OTHER_RULES[place % len(OTHER_RULES)]) for place, name in enumerate(EVERY)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cells = ALL if metafunc.config.getoption("--all-rules") else IN_TURN
    groups = [pytest.param(*cell, marks=pytest.mark.xdist_group(cell[0])) for cell in cells]
    metafunc.parametrize(("name", "rule"), groups)


def test_every_strategy_equals_the_loop(name: str, rule: str, seed: int) -> None:
    assert_interchangeable(captured(name, seed, RULES[rule]))
