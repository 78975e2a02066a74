"""Every strategy equals BrainScale run one sample at a time."""

import pytest

import pure_batching as pb
from pure_batching.testing import tolerance

from ..alive import assert_alive, assert_gradients_alive
from ..bench import RUNS, Bench, Request, bench
from ..models import MODELS
from ..trees import Tree, assert_close, distance, joined, named
from .brainscale_runs import by_input_output, by_parameter, divided, es_d_rtrl, one_sample

# What BrainScale raises for one sample, and why.
CANNOT = {
    "ValinaRNNCell": (KeyError, r"Var"),  # fault 11: it looks for a path from h to h that does not exist
}

# What BrainScale's D_RTRL raises besides.
CANNOT_D_RTRL = CANNOT | {
    "masked": (NotImplementedError, "weight_fn"),  # fault 3
    "signed": (NotImplementedError, "weight_fn"),  # fault 3
}

# Where BrainScale's D_RTRL is wrong, so that we do not follow it.
WRONG_D_RTRL = {
    "lora": "fault 3: the trace of B without the loss",
    "conv_rates": "fault 3: yw_to_w of convolutions",
    "conv_spikes": "fault 3: yw_to_w of convolutions",
    "element_wise": "yw_to_w of an element-wise weight differentiates its function at the trace, not at the weight",
}

NATIVE = [name for name, model in MODELS.items() if model.native]
NATIVE_RUNS = [(name, strategy) for name, strategy in RUNS if name in NATIVE and name not in CANNOT]
D_RUNS = [(name, strategy) for name, strategy in NATIVE_RUNS if name not in (*CANNOT_D_RTRL, *WRONG_D_RTRL)]

# BrainScale names a weight's traces by the weight, so that the two uses of one weight cannot be told apart.
TRACED_D_RUNS = [run for run in D_RUNS if run[0] != "used_twice"]


class TestOneSample:
    @pytest.mark.parametrize("name", [name for name in NATIVE if name not in (*CANNOT, "random_start")])
    def test_fresh_states(self, name: str, seed: int) -> None:
        """What a module starts from, where it draws nothing."""
        made = bench(name, seed)
        native = one_sample(made, es_d_rtrl)
        native.restart()
        assert_close(pb.from_native(made.learner, native.algorithm), made.learner.init(), "native")

    @pytest.mark.parametrize("name", CANNOT)
    def test_what_it_cannot_run(self, name: str, seed: int) -> None:
        made, (error, text) = bench(name, seed), CANNOT[name]
        with pytest.raises(error, match=text):
            by_input_output(made)
        assert_gradients_alive(made.result(Request("loop")).gradients)

    @pytest.mark.parametrize("name", CANNOT_D_RTRL)
    def test_what_its_d_rtrl_cannot_run(self, name: str, seed: int) -> None:
        made, (error, text) = bench(name, seed, pb.D_RTRL()), CANNOT_D_RTRL[name]
        with pytest.raises(error, match=text):
            by_parameter(made)
        assert_gradients_alive(made.result(Request("loop")).gradients)


class TestInputOutputTraces:
    @pytest.mark.parametrize(("name", "strategy"), NATIVE_RUNS)
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
        got = {link: list(leaves.values()) for link, leaves in divided(trace).weights.items()}
        ends = [traces for _, traces in by_parameter(made).ends]
        want = joined([{link: list(leaves.values()) for link, leaves in traces.items()} for traces in ends])
        assert_close(got, want, "native")

    @pytest.mark.parametrize("name", WRONG_D_RTRL)
    def test_where_it_is_wrong(self, name: str, seed: int) -> None:
        made = bench(name, seed, pb.D_RTRL())
        want, got = by_parameter(made), made.result(Request("loop"))
        assert_close((got.aux.losses, got.aux.outputs), (want.losses, want.outputs), "native")
        assert_far(made, Request("loop"), want.gradients)

    @pytest.mark.parametrize("name", ["tutorial", "LSTMCell"])
    def test_normalisation_shows(self, name: str, seed: int) -> None:
        other = bench(name, seed, pb.D_RTRL(rule="published"))
        assert_far(other, Request("loop"), by_parameter(bench(name, seed, pb.D_RTRL())).gradients)


def assert_far(made: Bench, request: Request, other: Tree) -> None:
    """Some weight's gradient is another one."""
    pairs = zip(named(made.result(request).gradients), named(other), strict=True)
    assert any(distance(one, two) > 1e3 * tolerance("native", two.dtype) for (_, one), (_, two) in pairs)
