"""Samples that reach each other along a named axis: `vmap` and `manual` agree on a module that normalises its batch."""

import functools
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate.nn import Module

import pure_batching as pb
from pure_batching import testing
from pure_batching.errors import CaptureError, OptionError, SampleCouplingError, StrategyError

from .alive import assert_gradients_alive
from .models import MODELS, N_REC
from .modules import Normalized
from .trees import assert_close, assert_differ, joined, sample

MODEL = MODELS["normalized"]
SAMPLES, STEPS, WINDOW, AXIS = 3, 4, 2, "batch"
RULES = {
    "ES_D_RTRL": pb.ES_D_RTRL(0.9),
    "D_RTRL": pb.D_RTRL(),
    "BPTT": pb.BPTT(),
}
ALONG = {"vmap": pb.vmap, "manual": pb.manual}

every_rule = pytest.mark.parametrize("rule", RULES)
every_strategy = pytest.mark.parametrize("strategy", ALONG)


class Leaking(Normalized):
    """The output leaves the normalisation out, and loses its mean over the first axis."""

    def update(self, x: jax.Array) -> jax.Array:
        super().update(x)
        return x - x.mean(0)


class Averaged(Module):
    """The mean over a named axis, and over no axis of its own."""

    def __init__(self, cell: Module) -> None:
        super().__init__()
        self.cell = cell

    def update(self, x: jax.Array) -> jax.Array:
        return jax.lax.pmean(self.cell(x), AXIS)


def data() -> tuple[Any, Any]:
    return MODEL.inputs(0, STEPS, SAMPLES), MODEL.targets(0, STEPS, SAMPLES)


def built(axis_name: str | None = AXIS) -> Module:
    """The module of the registry, or the same that names an axis."""
    with brainstate.random.seed_context(0):
        return Normalized((6, 2), N_REC, axis_name)


@functools.cache
def captured(rule: str, axis_name: str | None = AXIS) -> tuple[pb.Learner, Any]:
    """The module with the weights of the registry's, which names no axis."""
    example, settings = MODEL.inputs(0), MODEL.settings
    _, params = pb.capture(MODEL.build(0), *example, algorithm=RULES[rule], environ=settings)
    return pb.capture(built(axis_name), *example, algorithm=RULES[rule], environ=settings, axis_name=axis_name)[
        0
    ], params


@functools.cache
def gradient(rule: str, strategy: str, reduction: str, window: int | None = WINDOW) -> Any:
    learner, params = captured(rule)
    batched = ALONG[strategy](learner, SAMPLES)
    return pb.sequence_grad(batched, MODEL.loss, reduction=reduction, window=window, outputs=True)(
        params, None, *data()
    )


class TestGradients:
    @every_strategy
    @every_rule
    def test_equal_the_module_s_own_batch(self, rule: str, strategy: str) -> None:
        """`manual` of the same module without an axis normalises over the batch by itself."""
        learner, params = captured(rule, None)
        batched = pb.manual(learner, SAMPLES, allow_coupling=True)
        want = pb.sequence_grad(batched, MODEL.loss, reduction="sum", window=WINDOW, outputs=True)(
            params, None, *data()
        )
        assert_gradients_alive(want[0])
        assert_close(gradient(rule, strategy, "sum"), want)

    @every_rule
    def test_of_each_sample(self, rule: str) -> None:
        """A sample's gradient is its share of the batch's, in both strategies."""
        each, other, whole = (gradient(rule, *run) for run in (("vmap", "none"), ("manual", "none"), ("vmap", "sum")))
        assert_close(each, other)
        assert_close(jax.tree.map(lambda x: x.sum(0), each[0]), whole[0])
        assert_differ(sample(each[0], 0), sample(each[0], 1))

    def test_is_the_derivative(self) -> None:
        """BPTT's, by `jax.grad` through a loop of the module's own batched arithmetic."""
        learner, params = captured("ES_D_RTRL", None)
        execute = pb.manual(learner, SAMPLES, allow_coupling=True).execute
        (inputs,), targets = data()

        def total(weights: Any) -> Any:
            batched = pb.manual(learner, SAMPLES, allow_coupling=True)
            states, zero, losses = batched.init().states, batched.zero_perturbation(), []
            for t in range(STEPS):
                done = execute(weights, states, (inputs[t],), zero)
                states = done.states
                losses += [MODEL.loss(done.output[i], targets[t, i]) for i in range(SAMPLES)]
            return sum(losses)

        assert_close(gradient("BPTT", "vmap", "sum", None)[0], jax.grad(total)(params))

    @every_strategy
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "BPTT"])
    def test_norms_and_clipping(self, rule: str, strategy: str) -> None:
        learner, params = captured(rule)
        batched, each = ALONG[strategy](learner, SAMPLES), gradient(rule, strategy, "none", None)[0]
        want = jnp.sqrt(sum((leaf**2).reshape(SAMPLES, -1).sum(1) for leaf in jax.tree.leaves(each)))
        assert_close(pb.sample_norms(batched, MODEL.loss)(params, None, *data())[0], want)


class TestOneSample:
    def test_is_a_batch_of_one(self) -> None:
        learner, params = captured("ES_D_RTRL")
        (inputs,), _ = data()
        _, output = learner.step(params, learner.init(), inputs[0, 0])
        _, outputs = pb.vmap(learner, 1).step(params, pb.vmap(learner, 1).init(), inputs[0, :1])
        assert_close(output, outputs[0])

    def test_reaches_others_in_a_batch(self) -> None:
        learner, params = captured("ES_D_RTRL")
        (inputs,), _ = data()
        alone = joined([learner.step(params, learner.init(), one)[1] for one in inputs[0]])
        batched = pb.vmap(learner, SAMPLES)
        assert_differ(batched.step(params, batched.init(), inputs[0])[1], alone)


class TestLaws:
    def test_those_of_independent_samples_are_excused_by_name(self) -> None:
        report = testing.assert_interchangeable(
            built, RULES["ES_D_RTRL"], *data(), MODEL.loss, environ=MODEL.settings, axis_name=AXIS
        )
        assert set(report.excused) == {"locality", "algebra", "mask_and_reset", "parity", "exactness"}
        assert set(report.excused.values()) == {"samples reach each other along the axis 'batch'"}
        assert list(report.refused) == ["loop"]


class TestAudit:
    @every_strategy
    def test_speaks_of_the_axis(self, strategy: str) -> None:
        """What is meant is no mistake, and no option of `pb.manual`."""
        found = pb.audit(ALONG[strategy](captured("ES_D_RTRL")[0], SAMPLES))
        assert found.axis_name == AXIS
        assert "captured with axis_name='batch': its samples are meant to reach each other" in str(found)
        assert "allow_coupling" not in str(found)

    @every_strategy
    def test_says_what_couples(self, strategy: str) -> None:
        found = pb.audit(ALONG[strategy](captured("ES_D_RTRL")[0], SAMPLES))
        assert not found.is_independent
        assert {leaf.kind for leaf in found.leaves.values()} == {"coupled"}
        assert "_BatchNorm.update" in found.leaves["output"].where


class TestRefusals:
    def test_loop(self) -> None:
        with pytest.raises(StrategyError, match=r"pb\.loop: got a learner whose samples reach each other .* 'batch'"):
            pb.loop(captured("ES_D_RTRL")[0], SAMPLES)

    def test_an_axis_without_a_name(self) -> None:
        with pytest.raises(CaptureError, match=r"unbound axis name: batch.*capture\(\.\.\., axis_name='batch'\)"):
            pb.capture(built(), *MODEL.inputs(0), algorithm=RULES["ES_D_RTRL"], environ=MODEL.settings)

    def test_no_name(self) -> None:
        with pytest.raises(OptionError, match="axis_name: got 0, expected a name"):
            pb.capture(built(), *MODEL.inputs(0), algorithm=RULES["ES_D_RTRL"], axis_name=0)  # type: ignore[arg-type]

    def test_a_mask(self) -> None:
        learner, params = captured("ES_D_RTRL")
        grad_fn = pb.sequence_grad(pb.vmap(learner, SAMPLES), MODEL.loss)
        with pytest.raises(OptionError, match=r"mask: got a module whose samples reach each other .*'batch'"):
            grad_fn(params, None, *data(), mask=np.ones((STEPS, SAMPLES), bool))

    def test_what_the_axis_does_not_couple(self) -> None:
        """Running statistics are coupled by the axis; the output also by a mean that only a batch has."""
        example, settings = MODEL.inputs(0), MODEL.settings
        net = Leaking((6, 2), N_REC, AXIS)
        learner, _ = pb.capture(net, *example, algorithm=RULES["ES_D_RTRL"], environ=settings, axis_name=AXIS)
        with pytest.raises(
            SampleCouplingError, match=r"output: got other numbers than pb\.vmap gives along .* 'batch'"
        ):
            pb.manual(learner, SAMPLES)
