"""Every strategy equals BrainScale run one sample at a time."""

import pytest

import pure_batching as pb
from pure_batching._algorithms._parameter_trace import divided
from pure_batching.testing import tolerance

from ..alive import assert_alive
from ..bench import PLAIN, REPRESENTATIVES, RUNS, SHARING, Bench, Request, bench
from ..trees import Tree, assert_close, distance, joined, named
from ..upstream import COMPARED, of_models
from .brainscale_runs import by_input_output, by_parameter, es_d_rtrl, one_sample

ES, D = (of_models(COMPARED[algorithm]) for algorithm in ("ES_D_RTRL", "D_RTRL"))
# Where a batch is shared out, every model equals the loop by another test: a model of each kind is compared here.
COMPARED_RUNS = [run for run in RUNS if run[1] in PLAIN or (run[1] in SHARING and run[0] in REPRESENTATIVES)]
ES_RUNS = [(name, strategy) for name, strategy in COMPARED_RUNS if name in ES]
D_RUNS = [(name, strategy) for name, strategy in COMPARED_RUNS if name in D]

# BrainScale names a weight's traces by the weight, so that the two uses of one weight cannot be told apart.
TRACED_D_RUNS = [run for run in D_RUNS if run[0] != "used_twice"]


class TestOneSample:
    @pytest.mark.parametrize("name", [name for name in ES if name != "random_start"])
    def test_fresh_states(self, name: str, seed: int) -> None:
        """What a module starts from, where it draws nothing."""
        made = bench(name, seed)
        native = one_sample(made, es_d_rtrl)
        native.restart()
        assert_close(pb.from_native(made.learner, native.algorithm), made.learner.init(), "native")


class TestInputOutputTraces:
    @pytest.mark.parametrize(("name", "strategy"), ES_RUNS)
    def test_equals_each_sample_alone(self, name: str, strategy: str, seed: int) -> None:
        """Gradients, outputs, losses, hidden states, traces and step counts."""
        made = bench(name, seed)
        want, got = by_input_output(made), made.result(Request(strategy))
        assert_alive(made, Request(strategy), want)
        assert_close(got.gradients, want.gradients, "native")
        assert_close(got.aux, want.aux, "native")

    @pytest.mark.parametrize("name", ["tutorial", "lif", "LSTMCell"])
    def test_published_rule_is_another(self, name: str, seed: int) -> None:
        other = bench(name, seed, pb.ES_D_RTRL(0.9, rule="published"))
        assert_far(other, Request("loop"), by_input_output(bench(name, seed)).gradients)


class TestParameterTraces:
    @pytest.mark.parametrize(("name", "strategy"), D_RUNS)
    def test_equals_each_sample_alone(self, name: str, strategy: str, seed: int) -> None:
        made = bench(name, seed, pb.D_RTRL())
        want, got = by_parameter(made), made.result(Request(strategy))
        assert_alive(made, Request(strategy), got)
        assert_close(got.gradients, want.gradients, "native")
        assert_close((got.aux.losses, got.aux.outputs), (want.losses, want.outputs), "native")
        assert_close(got.aux.carry.hidden, joined([hidden for hidden, _ in want.ends]), "native")

    @pytest.mark.parametrize(("name", "strategy"), TRACED_D_RUNS)
    def test_traces(self, name: str, strategy: str, seed: int) -> None:
        made = bench(name, seed, pb.D_RTRL())
        trace = made.result(Request(strategy)).aux.carry.trace
        got = {link: list(leaves.values()) for link, leaves in divided(trace).items()}
        ends = [traces for _, traces in by_parameter(made).ends]
        want = joined([{link: list(leaves.values()) for link, leaves in traces.items()} for traces in ends])
        assert_close(got, want, "native")

    @pytest.mark.parametrize("name", ["tutorial", "LSTMCell"])
    def test_normalisation_shows(self, name: str, seed: int) -> None:
        other = bench(name, seed, pb.D_RTRL(rule="published"))
        assert_far(other, Request("loop"), by_parameter(bench(name, seed, pb.D_RTRL())).gradients)


def assert_far(made: Bench, request: Request, other: Tree) -> None:
    """Some weight's gradient is another one."""
    pairs = zip(named(made.result(request).gradients), named(other), strict=True)
    assert any(distance(one, two) > 1e3 * tolerance("native", two.dtype) for (_, one), (_, two) in pairs)
