"""Every layer that BrainScale runs, one sample at a time."""

import pytest

import pure_batching as pb
from pure_batching._errors import NativeError

from ..alive import assert_alive
from ..bench import STEPS, Request
from ..layers import LAYERS, captured
from ..trees import assert_close, assert_identical, assert_some_differ, joined, sample
from .brainscale_runs import Make, by_input_output, d_rtrl, es_d_rtrl, hidden_states, one_by_one, one_sample

# What BrainScale raises for one sample; ours is exact there (tests/test_layers.py).
CANNOT: dict[str, tuple[type[Exception], str]] = {
    **{
        f"brainpy.state.{name}": (NotImplementedError, "within a jit function")  # fault 11
        for name in ("LIFRef", "ExpIFRef", "AdExIFRef", "AdQuaIFRef", "IzhikevichRef")
    },
    "brainpy.state.Gif": (ValueError, "one hidden state in a single equation"),  # fault 11
    "brainpy.state.GifRef": (ValueError, "one hidden state in a single equation"),  # fault 11
}

# Where BrainScale is wrong, so that we do not follow it.
WRONG = {
    "brainscale.nn.SparseLinear": "fault 4: the derivative of a sparse product with respect to the stored numbers",
}

# The same of BrainScale's D_RTRL, for layers with an operation of their own.
CANNOT_D_RTRL: dict[str, tuple[type[Exception], str]] = {
    "brainscale.nn.SparseLinear": (AttributeError, "yw_to_w_transposed"),  # fault 4
}
WRONG_D_RTRL = {
    "brainscale.nn.BatchNorm2d (fit)": "fault 16: yw_to_w of a scale that is used at several places",
    "brainscale.nn.Conv3d": "fault 3: yw_to_w of convolutions",
    "brainscale.nn.BatchNorm1d": "fault 16: yw_to_w of a scale that is used at several places",
    "brainscale.nn.BatchNorm2d": "fault 16: yw_to_w of a scale that is used at several places",
    "brainscale.nn.BatchNorm3d": "fault 16: yw_to_w of a scale that is used at several places",
}

# What a weight's trace there is, where an element of the weight reaches several outputs.
SUMMED = (
    r"algorithm: layer\.weight(_op)?\['bias'\]: got a trace with one number for each element of .*, expected one for "
    r"each of these and each element of .* that it reaches\. BrainScale's D_RTRL adds them up"
)

NATIVE = [name for name, layer in LAYERS.items() if layer.native and name not in WRONG]
D_NATIVE = [name for name in NATIVE if name not in (*CANNOT_D_RTRL, *WRONG_D_RTRL)]
HALVES = (NATIVE[::2], NATIVE[1::2])


def check_parity(name: str, seed: int) -> None:
    """Gradients, losses, outputs and the carry, of each sample."""
    made, request = captured(name, seed), Request("vmap")
    want, got = by_input_output(made), made.result(request)
    assert_alive(made, request, got)
    assert_close(got.gradients, want.gradients, "native")
    assert_close(got.aux, want.aux, "native")


class TestOneHalf:
    @pytest.mark.parametrize("name", HALVES[0])
    def test_equals_each_sample_alone(self, name: str, seed: int) -> None:
        check_parity(name, seed)


class TestOtherHalf:
    @pytest.mark.parametrize("name", HALVES[1])
    def test_equals_each_sample_alone(self, name: str, seed: int) -> None:
        check_parity(name, seed)


class TestParameterTraces:
    @pytest.mark.parametrize("name", D_NATIVE)
    def test_equals_each_sample_alone(self, name: str, seed: int) -> None:
        made = captured(name, seed, pb.D_RTRL())
        want, got = one_by_one(made, d_rtrl, hidden_states), made.result(Request("vmap"))
        assert_alive(made, Request("vmap"), got)
        assert_close(got.gradients, want.gradients, "native")
        assert_close((got.aux.losses, got.aux.outputs), (want.losses, want.outputs), "native")
        assert_close(got.aux.carry.hidden, joined(want.ends), "native")

    @pytest.mark.parametrize("name", D_NATIVE)
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
    @pytest.mark.parametrize("name", CANNOT)
    def test_what_brainscale_cannot_run(self, name: str, seed: int) -> None:
        made, (error, text) = captured(name, seed), CANNOT[name]
        with pytest.raises(error, match=text):
            one_sample(made, es_d_rtrl)

    @pytest.mark.parametrize("name", CANNOT_D_RTRL)
    def test_what_its_d_rtrl_cannot_run(self, name: str, seed: int) -> None:
        made, (error, text) = captured(name, seed, pb.D_RTRL()), CANNOT_D_RTRL[name]
        with pytest.raises(error, match=text):
            one_by_one(made, d_rtrl, hidden_states)

    @pytest.mark.parametrize("name", WRONG_D_RTRL)
    def test_traces_that_it_has_summed(self, name: str, seed: int) -> None:
        """Neither read nor written, since one number stands for several."""
        made = captured(name, seed, pb.D_RTRL())
        native = one_sample(made, d_rtrl)
        before = pb.read_states(native.net)
        for convert in (pb.from_native, lambda learner, algorithm: pb.to_native(learner, learner.init(), algorithm)):
            with pytest.raises(NativeError, match=SUMMED):
                convert(made.learner, native.algorithm)
        assert_identical(pb.read_states(native.net), before)

    @pytest.mark.parametrize(
        ("name", "make"),
        [*((name, es_d_rtrl) for name in WRONG), *((name, d_rtrl) for name in WRONG_D_RTRL)],
    )
    def test_where_it_is_wrong(self, name: str, make: Make, seed: int) -> None:
        made = captured(name, seed, pb.D_RTRL() if make is d_rtrl else pb.ES_D_RTRL(0.9))
        want, got = one_by_one(made, make, hidden_states), made.result(Request("vmap"))
        assert_close((got.aux.losses, got.aux.outputs), (want.losses, want.outputs), "native")
        assert_some_differ(got.gradients, want.gradients)
