"""Every model and layer under every algorithm, rule and learning signal: all strategies give one set of numbers.

Models and layers have tests of ES_D_RTRL elsewhere. Of the other rules every second layer is run with one, in turn, and
each layer with all by `--all-rules`.
"""

from collections.abc import Generator
from typing import Any

import jax
import pytest

from .bench import RULES
from .feed_forward import FEED_FORWARD
from .interchangeable import assert_interchangeable
from .layers import FED_FORWARD
from .registry import EVERY, captured

OTHER_RULES = [rule for rule in RULES if rule != "ES_D_RTRL"]
OWN = [(name, "ES_D_RTRL") for name in (*FED_FORWARD, *FEED_FORWARD)]
# The output reads a state that the weight reaches a step later: a rule without a trace of states sees nothing of it.
BLIND = [("group_state", "OTTT")]

ALL = [*OWN, *((name, rule) for name in EVERY for rule in OTHER_RULES if (name, rule) not in BLIND)]
IN_TURN = [
    *OWN,
    *(
        (name, rule)
        for place, name in enumerate(list(EVERY)[::2])
        if (name, rule := OTHER_RULES[place % len(OTHER_RULES)]) not in BLIND
    ),
]

# Nothing leads from one step to the next but a weight, so that a trace is what a step adds, which is divided at once.
WITHOUT_LARGE_TRACES = [("ValinaRNNCell", "D_RTRL"), ("ValinaRNNCell", "D_RTRL multi-step")]

# Two workers share the layers.
HALVES = {
    "TestOneHalf": set(list(EVERY)[::4] + list(EVERY)[1::4]),
    "TestOtherHalf": set(list(EVERY)[2::4] + list(EVERY)[3::4]),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cells = ALL if metafunc.config.getoption("--all-rules") else IN_TURN
    half = HALVES[metafunc.cls.__name__]
    metafunc.parametrize(("name", "rule"), [cell for cell in cells if cell[0] in half])


@pytest.fixture(autouse=True)
def _compiled_programs_of_one_layer(name: str, rule: str) -> Generator[None, Any, Any]:
    """Frees them after the last rule: those of all layers are more than a process may map."""
    yield
    if rule == OTHER_RULES[-1]:
        jax.clear_caches()


def check(name: str, rule: str, seed: int) -> None:
    has_large_traces = (name, rule) not in WITHOUT_LARGE_TRACES
    assert_interchangeable(captured(name, seed, RULES[rule]), large_traces=has_large_traces)


class TestOneHalf:
    def test_every_strategy_equals_the_loop(self, name: str, rule: str, seed: int) -> None:
        check(name, rule, seed)


class TestOtherHalf:
    def test_every_strategy_equals_the_loop(self, name: str, rule: str, seed: int) -> None:
        check(name, rule, seed)
