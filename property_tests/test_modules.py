"""Random architectures: every law at once."""

import brainstate
import pytest
from hypothesis import Phase, event, given, settings, strategies as st

import pure_batching as pb
from pure_batching.testing import assert_interchangeable
from pure_batching.testing.modules import SETTINGS, Net, squared
from pure_batching.testing.strategies import algorithms, batch_sizes, modules

from .subjects import IS_NIGHT

# Each example captures and compiles a new architecture, which takes ten seconds.
EXAMPLES = 3


@pytest.mark.xdist_group("modules")
@settings(
    max_examples=10 * EXAMPLES if IS_NIGHT else EXAMPLES,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # the law itself looks for the smallest case
)
@given(modules(), algorithms(), batch_sizes(), st.integers(3, 4), st.integers(0, 2**32 - 1))
def test_every_strategy_gives_the_same(net: Net, algorithm: pb.Algorithm, samples: int, steps: int, seed: int) -> None:
    with brainstate.environ.context(precision=64):
        inputs, targets = net.data(seed, steps, samples)
        report = assert_interchangeable(
            *(net, algorithm, inputs, targets, squared),
            environ=dict(SETTINGS),
            is_exact=net.is_exact,
            spikes=net.spikes,
        )
    event(", ".join(report.held))
    event("no trace exceeds 1" if report.unshown else "some trace exceeds 1")
    assert {"init", "equality", "reduction", "round_trip", "purity"} <= set(report.held)
