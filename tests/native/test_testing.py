"""The laws, over BrainScale itself."""

from typing import Any

import numpy as np
import pytest

import pure_batching as pb
from pure_batching import testing
from pure_batching.testing import LawViolation, assert_interchangeable, laws
from pure_batching.testing.modules import SETTINGS, Cell, Leaky, Net, Readout, squared
from pure_batching.testing.strategies import near

from ..bench import bench
from ..models import MODELS
from .brainscale_runs import d_rtrl, manual


class Manual:
    """BrainScale's D_RTRL in its manual mode, as a runner: outputs, losses and traces of each sample."""

    def __init__(self, learner: pb.Learner, samples: int) -> None:
        self.learner, self.native = (
            pb.vmap(learner, samples),
            manual(bench("MinimalRNNCell", 0, pb.D_RTRL()), d_rtrl, samples),
        )

    def init(self, key: Any = None) -> pb.Carry:
        return self.learner.init(key)

    def run(self, request: Any, params: Any, carry: pb.Carry, data: testing.Data, flags: Any) -> testing.Result:
        del request, params, flags
        self.native.restart()
        pb.write_states(self.native.net, carry.hidden)
        _, losses, outputs = self.native.run(data)
        trace = {str(key): state.value for key, state in self.native.algorithm.etrace_bwg.items()}
        count = np.full(data.samples, data.steps, np.int32)
        return testing.Result(outputs, losses, {}, pb.Carry({}, {}, {}, {}, trace, count))


def test_manual_mode_breaks_locality_in_a_trace() -> None:
    """Fault 1: it divides by the largest entry of the batch."""
    model = MODELS["MinimalRNNCell"]
    with pytest.raises(LawViolation, match=r"^locality does not hold under manual: carry\.trace\[.*W_u.*sample \d"):
        assert_interchangeable(
            lambda: model.build(0),
            pb.D_RTRL(),
            model.inputs(0, 4, 3),
            model.targets(0, 4, 3),
            model.loss,
            environ=model.settings,
            strategies={"manual": Manual},
            laws=("locality",),
        )


def test_parity_compiles_once() -> None:
    """Other weights and other data run what the first case compiled."""
    net = Net((Cell("GRUCell", 6), Readout("leaky")))
    made = testing.Subject.of(net, pb.D_RTRL(), net.example(), squared, environ=dict(SETTINGS))
    laws.parity(testing.Case(made, made.params, net.data(0, 4, 2)))
    traced = len(made.traces)
    case = testing.Case(made, near(made, 1), net.data(1, 4, 2))
    laws.parity(case)
    laws.round_trip(case)
    laws.parity(case)
    assert len(made.traces) == traced


@pytest.mark.parametrize("algorithm", [pb.ES_D_RTRL(0.9), pb.D_RTRL()], ids=str)
@pytest.mark.parametrize("net", [Net((Cell("GRUCell", 6), Readout("leaky"))), Net((Leaky("linear", 6),))], ids=repr)
def test_parity(net: Net, algorithm: pb.Algorithm) -> None:
    data = net.data(0, 4, 2)
    report = assert_interchangeable(
        net, algorithm, data.inputs, data.targets, squared, environ=dict(SETTINGS), laws=("parity",)
    )
    assert report.held == ("parity",)
