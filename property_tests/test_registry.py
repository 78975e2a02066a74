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
from tests.bench import PLAIN, RULES, SAMPLES, SHARING, STEPS
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


# Strategies that share a batch out run any driver alike, so that one model for each way of keeping states is enough.
SHARED_OUT = (("LSTMCell", "D_RTRL published"), ("delayed", "ES_D_RTRL multi-step"), ("random_start", "ES_D_RTRL"))


@dataclasses.dataclass(frozen=True, eq=False)
class ByHost:
    """A batch on devices, whose carries go by the host: those of another batch size lie on other devices."""

    runner: OfLearner

    def init(self, key: jax.Array | None = None) -> pb.Carry:
        return jax.device_get(self.runner.init(key))

    def run(self, request: Request, params: Any, carry: Any, data: Data, flags: Mapping[str, Any]) -> Result:
        return jax.device_get(self.runner.run(request, params, carry, data, flags))


@pytest.mark.parametrize(
    ("name", "rule"),
    [pytest.param(*case, marks=pytest.mark.xdist_group(f"{case[0]} shared out")) for case in SHARED_OUT],
)
def test_is_interchangeable_when_it_is_shared_out(name: str, rule: str) -> None:
    def sharded(learner: pb.Learner, size: int) -> ByHost:
        return ByHost(OfLearner(SHARING["sharded"](learner, size), EVERY[name].loss))

    report = report_of(name, rule, {"loop": PLAIN["loop"], "chunked": SHARING["chunked"], "sharded": sharded})
    assert not report.refused
