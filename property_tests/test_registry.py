"""All laws at once, for every model and layer of the registry; by day for some of them."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import pytest

import pure_batching as pb
from pure_batching.testing import Data, assert_interchangeable
from pure_batching.testing._case import OfLearner, Request, Result
from tests.bench import PLAIN, RULES, SAMPLES, SHARED_OUT, STEPS, shared_out
from tests.registry import EVERY, EXACT
from tests.test_matrix import WITHOUT_LARGE_TRACES

from .subjects import IS_NIGHT

# Each with one algorithm, in turn: every law of a model takes ten seconds and more.
CASES = [(name, list(RULES)[place % len(RULES)]) for place, name in enumerate(EVERY)]
BY_DAY = ("LSTMCell", "conv_rates", "noisy", "brainscale.nn.BatchNorm2d (fit)", "brainstate.nn.OutputDelayAt")


def report_of(name: str, rule: str, strategies: Mapping[str, Any]) -> Any:
    """Every law that concerns a model, among some strategies."""
    model, seed = EVERY[name], 0
    with brainstate.environ.context(precision=64):
        report = assert_interchangeable(
            functools.partial(model.build, seed),
            RULES[rule],
            model.inputs(seed, STEPS, SAMPLES),
            model.targets(seed, STEPS, SAMPLES),
            model.loss,
            environ=model.settings,
            strategies=strategies,
            window=3,
            is_exact=name in EXACT,
            spikes=model.spikes,
        )
    assert {"init", "locality", "equality", "swap", "algebra", "reduction", "time", "purity"} <= set(report.held)
    return report


@pytest.mark.parametrize(
    ("name", "rule"),
    [pytest.param(*case, marks=pytest.mark.xdist_group(case[0])) for case in CASES if case[0] in BY_DAY or IS_NIGHT],
)
def test_is_interchangeable(name: str, rule: str) -> None:
    report = report_of(name, rule, PLAIN)
    assert bool(report.unshown) == ((name, rule) in WITHOUT_LARGE_TRACES)
    assert set(report.refused) == {"loop", "vmap", "manual"} - set(EVERY[name].strategies)


# One model for each way of keeping states comes first; by day a few models take part, others in the next turn.
SHARED_FIRST = (("LSTMCell", "D_RTRL published"), ("delayed", "ES_D_RTRL multi-step"), ("random_start", "ES_D_RTRL"))
SHARED_CASES = [*SHARED_FIRST, *(case for case in CASES if case[0] not in dict(SHARED_FIRST))]


@dataclasses.dataclass(frozen=True, eq=False)
class ByHost:
    """A batch on devices, whose carries go by the host: those of another batch size lie on other devices."""

    runner: OfLearner

    def init(self, key: jax.Array | None = None) -> pb.Carry:
        return jax.device_get(self.runner.init(key))

    def run(self, request: Request, params: Any, carry: Any, data: Data, flags: Mapping[str, Any]) -> Result:
        return jax.device_get(self.runner.run(request, params, carry, data, flags))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function is test_is_interchangeable_when_it_is_shared_out:
        start = len(SHARED_FIRST) * (metafunc.config.getoption("--turn") or 0) % len(SHARED_CASES)
        cases = SHARED_CASES if IS_NIGHT else SHARED_CASES[start : start + len(SHARED_FIRST)]
        marked = [pytest.param(*case, marks=pytest.mark.xdist_group(f"{case[0]} shared out")) for case in cases]
        metafunc.parametrize(("name", "rule"), marked)


def test_is_interchangeable_when_it_is_shared_out(name: str, rule: str) -> None:
    """In chunks that leave a rest, on devices, and in chunks on devices: wherever a strategy takes the model."""
    model = EVERY[name]

    def fetched(make: Any) -> Any:
        return lambda learner, size: ByHost(OfLearner(make(learner, size), model.loss))

    strategies = {strategy: fetched(SHARED_OUT[strategy]) for strategy in shared_out(model)}
    report = report_of(name, rule, {"loop": PLAIN["loop"], **strategies})
    assert not report.refused
    assert {"chunked"} <= set(strategies)
