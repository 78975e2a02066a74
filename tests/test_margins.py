"""A difference that comes with a spike flipped below rounding is reported as such; no other one is."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching import testing
from pure_batching.testing import LawViolation, assert_interchangeable, laws, smallest_margin
from pure_batching.testing._case import OfLearner
from pure_batching.testing._margins import note_of
from pure_batching.testing.modules import SETTINGS, Leaky, Net, Readout, Spiking, squared

from .versions import needs_its_neurons

SMALL = Net((Leaky("linear", 6), Readout("linear")))
FAR = 10.0

Fault = Callable[[testing.Result, Any], testing.Result]

# `[T, B, 1]`: `V = V / 2 + x` is 0.3, 0.4, 0.5, 0.6 in sample 0, and 0.5, 0.5, 1, 0.8 in sample 1.
INPUTS = np.array([[[0.3], [0.5]], [[0.25], [0.25]], [[0.3], [0.75]], [[0.35], [0.3]]])
STEP, SAMPLE = 2, 1


class Firing(brainstate.nn.Module):
    """`V = V / 2 + w x`, and a spike on top of it where `V` reaches the threshold."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.threshold = threshold
        self.linear = brainscale.nn.Linear(1, 1, w_init=braintools.init.Constant(1.0), b_init=None)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = brainstate.HiddenState(braintools.init.param(braintools.init.ZeroInit(), (1,), batch_size))

    def update(self, x: jax.Array) -> jax.Array:
        self.v.value = 0.5 * self.v.value + self.linear(x)
        return self.v.value + (self.v.value >= self.threshold)


class Altered:
    """A strategy with other inputs, another result or another start."""

    def __init__(self, plain: testing.Runner, given: Any = None, fault: Any = None, start: Any = None) -> None:
        self.plain, self.given, self.fault, self.start = plain, given, fault, start

    def init(self, key: Any = None) -> pb.Carry:
        carry = self.plain.init(key)
        return self.start(carry) if self.start else carry

    def run(self, request: Any, params: Any, carry: Any, data: testing.Data, flags: Any) -> testing.Result:
        data = data._replace(inputs=self.given(data.inputs)) if self.given else data
        result = self.plain.run(request, params, carry, data, flags)
        return self.fault(result, flags) if self.fault else result


def an_ulp_less(inputs: Any) -> Any:
    """What another order of a sum may do."""
    return jax.tree.map(lambda x: np.nextafter(x, 0), inputs)


def more_from(step: int, sample: int = SAMPLE) -> Fault:
    """A fault in the outputs of a sample, from a step on and largest at the end."""

    def fault(result: testing.Result, _: Any) -> testing.Result:
        more = 1.0 + np.arange(len(result.outputs) - step)[:, None]
        return result._replace(outputs=result.outputs.at[step:, sample].add(more))

    return fault


def doubled_in(sample: int) -> Fault:
    """A fault in the gradient of a sample."""
    return lambda result, _: result._replace(gradients=jax.tree.map(lambda x: x.at[sample].mul(2), result.gradients))


def doubled_where_reduced(result: testing.Result, _: Any) -> testing.Result:
    """A reduced gradient has the shape of its weight."""
    factor = 2 if jax.tree.leaves(result.gradients)[0].ndim == 2 else 1
    return result._replace(gradients=jax.tree.map(lambda x: factor * x, result.gradients))


def with_the_mean_at_the_end(result: testing.Result, _: Any) -> testing.Result:
    return result._replace(outputs=result.outputs.at[-1].add(jnp.nanmean(result.outputs)))


def more_in_the_first_row(result: testing.Result, _: Any) -> testing.Result:
    return result._replace(losses=result.losses.at[STEP, 0].add(1.0))


def more_at_the_end_of_flagged_ones(result: testing.Result, flags: Any) -> testing.Result:
    return result._replace(losses=result.losses.at[-1].add(len(flags)))


@functools.cache
def subject(threshold: float) -> testing.Subject:
    return testing.Subject.of(functools.partial(Firing, threshold), pb.D_RTRL(), (INPUTS[0, 0],), squared)


def violated(
    law: str, threshold: float = 1.0, inputs: Any = INPUTS, axis_name: Any = None, **alterations: Any
) -> tuple[Any, str]:
    """The difference that is found where one strategy of two is altered, and what is said of a close comparison."""
    made = subject(threshold)
    strategies = {
        "vmap": lambda _, samples: made.runner("vmap", samples),
        "altered": lambda _, samples: Altered(made.runner("vmap", samples), **alterations),
    }
    both = dataclasses.replace(made, strategies=strategies, axis_name=axis_name)
    case = testing.Case(both, made.params, testing.Data((inputs,), np.ones(inputs.shape[:2])))
    with pytest.raises(LawViolation, match=rf"^{law} does not hold under .*altered") as caught:
        laws.ALL[law](case)
    return caught.value.difference, note_of(caught.value, case) or ""


class TestFlips:
    def test_are_reported_with_their_margin(self) -> None:
        difference, note = violated("equality", given=an_ulp_less)
        assert difference.place == {"step": STEP, "sample": SAMPLE}
        assert difference.relative > 0.3
        assert note.startswith(f"at step {STEP} of sample {SAMPLE}, a comparison such as a spike's threshold was")
        assert " decided by 0.0 units of rounding in test_margins.py:" in note
        assert "(Firing.update): the order of a sum may flip it" in note

    def test_in_the_text_of_a_violation(self) -> None:
        def altered(learner: pb.Learner, samples: int) -> Altered:
            return Altered(OfLearner(pb.vmap(learner, samples), squared), an_ulp_less)

        with pytest.raises(LawViolation, match=rf"\nat step {STEP} of sample {SAMPLE}, a comparison"):
            assert_interchangeable(
                *(Firing, pb.D_RTRL(), INPUTS, np.ones(INPUTS.shape[:2]), squared),
                strategies={"vmap": pb.vmap, "altered": altered},
                laws=("equality",),
            )

    def test_in_the_second_half(self) -> None:
        """The law runs the parts by themselves; the place is that of the whole."""
        difference, note = violated("swap", given=an_ulp_less)
        assert difference.place == {"step": STEP, "sample": SAMPLE}
        assert note.startswith(f"at step {STEP} of sample {SAMPLE},")


class TestOtherDifferences:
    def test_after_a_close_comparison(self) -> None:
        assert violated("equality", fault=more_from(STEP))[1].startswith(f"at step {STEP} of sample {SAMPLE},")

    def test_before_it(self) -> None:
        """The worst entry is the last; the results differ one step before the comparison."""
        difference, note = violated("equality", fault=more_from(STEP - 1))
        assert difference.place == {"step": len(INPUTS) - 1, "sample": SAMPLE}
        assert note == ""

    def test_far_from_the_threshold(self) -> None:
        assert violated("equality", threshold=FAR, fault=more_from(STEP))[1] == ""

    def test_in_another_sample(self) -> None:
        assert violated("equality", fault=more_from(STEP, sample=0))[1] == ""

    @pytest.mark.parametrize("sample", [0, SAMPLE])
    def test_in_a_gradient_of_a_sample(self, sample: int) -> None:
        note = violated("equality", fault=doubled_in(sample))[1]
        assert note.startswith(f"at step {STEP} of sample {SAMPLE},") == (sample == SAMPLE)

    def test_in_a_gradient_of_all_samples(self) -> None:
        difference, note = violated("reduction", fault=doubled_where_reduced)
        assert difference.path.startswith(".gradients.total")
        assert difference.place == {}
        assert note.startswith(f"at step {STEP} of sample {SAMPLE},")

    def test_in_a_permuted_batch(self) -> None:
        """The first row of the permuted batch is the last sample."""
        difference, note = violated("algebra", fault=more_in_the_first_row)
        assert difference.place == {"step": STEP, "sample": SAMPLE}
        assert note.startswith(f"at step {STEP} of sample {SAMPLE},")

    def test_under_flags(self) -> None:
        """Where a sample is reset, its potential is its input."""
        assert violated("mask_and_reset", fault=more_at_the_end_of_flagged_ones)[1] == ""
        at_one = INPUTS.copy()
        at_one[-1, 0] = 1.0
        note = violated("mask_and_reset", inputs=at_one, fault=more_at_the_end_of_flagged_ones)[1]
        assert note.startswith(f"at step {len(INPUTS) - 1} of sample 0,")

    @pytest.mark.parametrize(
        ("law", "alteration"),
        [
            ("locality", {"fault": with_the_mean_at_the_end}),
            ("init", {"start": lambda carry: jax.tree.map(lambda x: x + 1, carry)}),
        ],
        ids=["locality", "init"],
    )
    def test_where_every_bit_must_be_the_same(self, law: str, alteration: Any) -> None:
        difference, note = violated(law, inputs=INPUTS[:, ::-1], **alteration)
        assert difference.place["sample"] == 0
        assert note == ""

    def test_among_samples_that_reach_each_other(self) -> None:
        assert violated("equality", axis_name="batch", fault=more_from(STEP))[1] == ""

    def test_of_a_leaf_as_a_whole(self) -> None:
        flat = violated("equality", fault=lambda result, _: result._replace(outputs=result.outputs[..., 0]))
        assert flat[1] == ""


class TestMargins:
    @needs_its_neurons
    def test_an_ordinary_step_is_far_from_its_threshold(self) -> None:
        net = Net((Spiking("LIF", "delta", 6), Readout("linear")))
        learner, params = pb.capture(net(), *net.example(), algorithm=pb.BPTT(), environ=dict(SETTINGS))
        assert smallest_margin(learner, params, learner.init(), net.example()) > testing.ROUNDINGS

    def test_counts_units_of_rounding(self) -> None:
        class Threshold(brainstate.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = SMALL()

            def update(self, x: jax.Array) -> jax.Array:
                return jnp.where(x.sum() >= 1.0, self.inner(x), 0.0)

        learner, params = pb.capture(Threshold(), np.zeros(3), algorithm=pb.BPTT())
        eps = np.finfo(np.float64).eps
        given = np.array([1.0 + 8 * eps, 0.0, 0.0])
        assert smallest_margin(learner, params, learner.init(), (given,)) == pytest.approx(8, rel=0.01)
