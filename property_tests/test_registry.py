"""All laws at once, for every model and layer of the registry; by day for some of them."""

import functools

import brainstate
import pytest

from pure_batching.testing import assert_interchangeable
from tests.bench import RULES, SAMPLES, STEPS, STRATEGIES
from tests.registry import EVERY, EXACT
from tests.test_matrix import WITHOUT_LARGE_TRACES

from .subjects import IS_NIGHT

# Each with one algorithm, in turn: every law of a model takes ten seconds and more.
CASES = [(name, list(RULES)[place % len(RULES)]) for place, name in enumerate(EVERY)]
BY_DAY = ("LSTMCell", "conv_rates", "noisy", "brainscale.nn.BatchNorm2d (fit)", "brainstate.nn.OutputDelayAt")


@pytest.mark.parametrize(
    ("name", "rule"),
    [pytest.param(*case, marks=pytest.mark.xdist_group(case[0])) for case in CASES if case[0] in BY_DAY or IS_NIGHT],
)
def test_is_interchangeable(name: str, rule: str) -> None:
    model, seed = EVERY[name], 0
    with brainstate.environ.context(precision=64):
        report = assert_interchangeable(
            functools.partial(model.build, seed),
            RULES[rule],
            model.inputs(seed, STEPS, SAMPLES),
            model.targets(seed, STEPS, SAMPLES),
            model.loss,
            environ=model.settings,
            strategies=STRATEGIES,
            window=3,
            is_exact=name in EXACT,
            spikes=model.spikes,
        )
    assert bool(report.unshown) == ((name, rule) in WITHOUT_LARGE_TRACES)
    assert set(report.refused) == {"loop", "vmap", "manual"} - set(model.strategies)
    assert {"init", "locality", "equality", "swap", "algebra", "reduction", "time", "purity"} <= set(report.held)
