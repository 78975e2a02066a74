"""Every layer that BrainScale runs, one sample at a time."""

import pytest

import pure_batching as pb
from pure_batching.errors import NativeError

from ..alive import assert_alive, assert_gradients_alive
from ..bench import STEPS, Request
from ..registry import captured
from ..trees import assert_close, assert_identical, assert_some_differ, joined, sample
from ..upstream import COMPARED, DIFFERS, HYBRID, IN_OUTPUTS, RAISES, of_layers
from .brainscale_runs import by_input_output, d_rtrl, es_d_rtrl, hidden_states, hybrid, one_by_one, one_sample

ES, D = (of_layers(COMPARED[algorithm]) for algorithm in ("ES_D_RTRL", "D_RTRL"))
ES_HALVES = (ES[::2], ES[1::2])

RULES = {"ES_D_RTRL": (pb.ES_D_RTRL(0.9), es_d_rtrl), "D_RTRL": (pb.D_RTRL(), d_rtrl)}
RAISING = [(rule, name) for rule, raised in RAISES.items() for name in raised]
DIFFERING = [(rule, name) for rule, differs in DIFFERS.items() for name in differs]

# What a weight's trace there is, where an element of the weight reaches several outputs.
SUMMED = (
    r"algorithm: layer\.weight(_op)?\['bias'\]: got a trace with one number for each element of .*, expected one for "
    r"each of these and each element of .* that it reaches\. BrainScale's D_RTRL adds them up"
)


def check_parity(name: str, seed: int) -> None:
    """Gradients, losses, outputs and the carry, of each sample."""
    made, request = captured(name, seed), Request("vmap")
    want, got = by_input_output(made), made.result(request)
    assert_alive(made, request, got)
    assert_close(got.gradients, want.gradients, "native")
    assert_close(got.aux, want.aux, "native")


class TestOneHalf:
    @pytest.mark.parametrize("name", ES_HALVES[0])
    def test_equals_each_sample_alone(self, name: str, seed: int) -> None:
        check_parity(name, seed)


class TestOtherHalf:
    @pytest.mark.parametrize("name", ES_HALVES[1])
    def test_equals_each_sample_alone(self, name: str, seed: int) -> None:
        check_parity(name, seed)


class TestParameterTraces:
    @pytest.mark.parametrize("name", D)
    def test_equals_each_sample_alone(self, name: str, seed: int) -> None:
        made = captured(name, seed, pb.D_RTRL())
        want, got = one_by_one(made, d_rtrl, hidden_states), made.result(Request("vmap"))
        assert_alive(made, Request("vmap"), got)
        assert_close(got.gradients, want.gradients, "native")
        assert_close((got.aux.losses, got.aux.outputs), (want.losses, want.outputs), "native")
        assert_close(got.aux.carry.hidden, joined(want.ends), "native")

    @pytest.mark.parametrize("name", D)
    def test_there_and_back(self, name: str, seed: int) -> None:
        made = captured(name, seed, pb.D_RTRL())
        native, data = one_sample(made, d_rtrl), sample(made.data(STEPS, 1), 0, axis=1)
        native.restart()
        native.run(data)
        before = pb.from_native(made.learner, native.algorithm)
        native.run(data)
        pb.to_native(made.learner, before, native.algorithm)
        assert_identical(pb.from_native(made.learner, native.algorithm), before)


class TestFaults:
    @pytest.mark.parametrize(("rule", "name"), RAISING)
    def test_what_it_cannot_run(self, rule: str, name: str, seed: int) -> None:
        (algorithm, make), (_, error, text) = RULES[rule], RAISES[rule][name]
        made = captured(name, seed, algorithm)
        with pytest.raises(error, match=text):
            one_by_one(made, make, hidden_states)
        assert_gradients_alive(made.result(Request("vmap")).gradients)

    @pytest.mark.parametrize(("rule", "name"), DIFFERING)
    def test_where_it_is_wrong(self, rule: str, name: str, seed: int) -> None:
        algorithm, make = RULES[rule]
        made = captured(name, seed, algorithm)
        want, got = one_by_one(made, make, hidden_states), made.result(Request("vmap"))
        assert_alive(made, Request("vmap"), got)
        assert_some_differ(got.gradients, want.gradients)
        if DIFFERS[rule][name] not in IN_OUTPUTS:
            assert_close((got.aux.losses, got.aux.outputs), (want.losses, want.outputs), "native")

    @pytest.mark.parametrize("name", [name for name, fault in DIFFERS["D_RTRL"].items() if fault == 16])
    def test_traces_that_it_has_summed(self, name: str, seed: int) -> None:
        """Neither read nor written, since one number stands for several."""
        made = captured(name, seed, pb.D_RTRL())
        native = one_sample(made, d_rtrl)
        before = pb.read_states(native.net)
        for convert in (pb.from_native, lambda learner, algorithm: pb.to_native(learner, learner.init(), algorithm)):
            with pytest.raises(NativeError, match=SUMMED):
                convert(made.learner, native.algorithm)
        assert_identical(pb.read_states(native.net), before)

    @pytest.mark.parametrize("name", HYBRID)
    def test_hybrid_runs_nowhere(self, name: str, seed: int) -> None:
        made, (_, error, text) = captured(name, seed, pb.Hybrid(0.9)), HYBRID[name]
        with pytest.raises(error, match=text):
            one_by_one(made, hybrid, hidden_states)
