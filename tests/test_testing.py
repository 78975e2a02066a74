"""The testing kit: it finds what is broken, says where, and does not pass what is dead."""

import dataclasses
import functools
import gc
import weakref
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import pure_batching as pb
from pure_batching import testing
from pure_batching.errors import StructureError
from pure_batching.testing import (
    DeadComparisonError,
    LawViolation,
    assert_interchangeable,
    laws,
    modules,
    strategies,
)
from pure_batching.testing._stepped import step_gradient, stepped
from pure_batching.testing.modules import SETTINGS, Cell, Leaky, Net, Readout, squared

from .bench import bench, bench_of
from .models import MODELS
from .test_stand_alone import executed

SMALL = Net((Leaky("linear", 6), Readout("linear")))
AN_ALGORITHM = pb.ES_D_RTRL(0.9)


class Centred(brainstate.nn.Module):
    """The mean over the first axis is that of features, or that of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = SMALL()

    def update(self, x: jax.Array) -> jax.Array:
        y = self.inner(x)
        return y - 0.5 * y.mean(axis=0)


def check(net: Any, algorithm: pb.Algorithm = AN_ALGORITHM, scale: float = 1.5, **options: Any) -> testing.Report:
    data = SMALL.data(0, 4, 3, scale)
    return assert_interchangeable(net, algorithm, data.inputs, data.targets, squared, environ=dict(SETTINGS), **options)


def check_model(name: str, **options: Any) -> testing.Report:
    """Laws on a model of the registry."""
    model = MODELS[name]
    data = (model.inputs(0, 4, 2), model.targets(0, 4, 2), model.loss)
    return assert_interchangeable(lambda: model.build(0), pb.ES_D_RTRL(0.9), *data, environ=model.settings, **options)


class TestInterchangeable:
    def test_what_holds_and_what_does_not_apply(self) -> None:
        report = check(SMALL, pb.D_RTRL(rule="published"), is_exact=True)
        assert set(report.held) == set(laws.ALL) - {"parity"}
        assert list(report.excused) == ["parity"]
        assert report.refused == {}
        assert report.unshown == ()
        assert str(report).startswith(f"{len(report.held)} laws hold: init, locality, equality")

    def test_a_weight_in_front_is_not_exact(self) -> None:
        """As in BrainScale, a weight whose way leads through another weight learns within a step only."""
        normalized = dataclasses.replace(SMALL, is_normalized=True)
        assert SMALL.is_exact
        assert not normalized.is_exact
        with pytest.raises(LawViolation, match=r"^exactness does not hold under loop: gradients\['norm\.weight'\]"):
            check(normalized, pb.D_RTRL(rule="published"), is_exact=True, laws=("exactness",))

    def test_a_strategy_that_cannot_run_it(self) -> None:
        report = check_model("group_state", laws=("equality",))
        assert list(report.refused) == ["manual"]
        assert "\nno law was checked under manual, which refuses the module: pb.manual: got the traced" in str(report)

    def test_a_mean_over_samples(self) -> None:
        with pytest.raises(LawViolation) as caught:
            check(Centred)
        text = str(caught.value)
        assert text.startswith("locality does not hold under manual: outputs, step ")
        assert ", sample " in text
        assert "smallest case that fails: B = 2, T = 1" in text
        assert caught.value.strategy == "manual"

    def test_batch_normalisation(self) -> None:
        with pytest.raises(LawViolation, match=r"locality does not hold under manual: .*, sample 0: got .*, expected"):
            check_model("normalized")

    def test_a_normalisation_that_is_dead_alone(self) -> None:
        """Of one sample, nothing is left; what the batch does is found out before."""
        data = SMALL.data(0, 4, 3)

        def net() -> Any:
            with brainstate.random.seed_context(0):
                return brainstate.nn.Sequential(brainscale.nn.BatchNorm0d((3,)), brainscale.nn.MinimalRNNCell(3, 4))

        with pytest.raises(LawViolation, match="locality does not hold under manual"):
            assert_interchangeable(net, pb.D_RTRL(), data.inputs, data.targets, squared, environ={"fit": True})

    def test_other_weights_at_each_call(self) -> None:
        x = np.ones((4, 2, 3))
        text = r"^net_factory: params\['W_u\.weight_op'\].*: got other values at the second call, .*seed_context\(0\)"
        with pytest.raises(StructureError, match=text):
            assert_interchangeable(lambda: brainscale.nn.MinimalRNNCell(3, 4), AN_ALGORITHM, x, x[..., :1], squared)

    def test_a_window_over_everything(self) -> None:
        with pytest.raises(DeadComparisonError, match="window=4 holds all 4 steps"):
            check(SMALL, window=4, laws=("equality",))

    def test_a_trace_that_brainscale_adds_up(self) -> None:
        """The carry of such a module has no place there."""
        net = Net((Leaky("lora", 6),))
        assert check(net, pb.D_RTRL(), laws=("round_trip",)).held == ("round_trip",)
        excused = check(net, pb.D_RTRL(), laws=("parity",)).excused
        assert excused["parity"].startswith("brainscale's D_RTRL adds up the trace of 'layers.0.operation.weight_op'")

    def test_small_traces(self) -> None:
        """A user's data may be small; the report says what that leaves open."""
        report = check(SMALL, laws=("init",), scale=0.2)
        assert str(report).startswith("1 laws hold: init\nno trace exceeds 1 (the largest entry is 0.")
        assert report.unshown[0].endswith("so no normalisation of traces was shown")
        assert check(SMALL, pb.BPTT(), laws=("init",), scale=0.2).unshown == ()

    def test_dead_data(self) -> None:
        data = jax.tree.map(np.zeros_like, Net((Cell("MiniGRU", 6),)).data(0, 3, 2))
        with pytest.raises(DeadComparisonError, match=r"never left zero|is zero"):
            assert_interchangeable(
                Net((Leaky("lora", 6),)), pb.D_RTRL(), data.inputs, data.targets, squared, laws=("init",)
            )


class Broken:
    """A strategy with one fault."""

    def __init__(self, fault: Any, learner: pb.Learner, samples: int) -> None:
        self.learner, self.fault = pb.vmap(learner, samples), fault

    def init(self, key: Any = None) -> pb.Carry:
        return self.learner.init(key)

    def run(self, request: Any, params: Any, carry: Any, data: Any, flags: Any) -> testing.Result:
        grad_fn = pb.sequence_grad(
            self.learner, squared, reduction=request.reduction, window=request.window, outputs=True
        )
        gradients, aux = grad_fn(params, carry, data.inputs, data.targets, **flags)
        return self.fault(testing.Result(aux.outputs, aux.losses, gradients, aux.carry), flags)


def tenth(tree: Any) -> Any:
    return jax.tree.map(lambda x: x * 1.1, tree)


FAULTS = {
    "equality": lambda result, _: result._replace(gradients=tenth(result.gradients)),
    "swap": lambda result, _: result._replace(carry=result.carry._replace(hidden=tenth(result.carry.hidden))),
    "locality": lambda result, _: result._replace(outputs=result.outputs + jnp.nanmean(result.outputs)),
    "algebra": lambda result, _: result._replace(losses=result.losses + jnp.arange(result.losses.shape[1])),
    "reduction": lambda result, _: result._replace(gradients=jax.tree.map(lambda x: x + x.size, result.gradients)),
    "time": lambda result, _: result._replace(losses=result.losses + result.losses.shape[0]),
    "mask_and_reset": lambda result, flags: result._replace(losses=result.losses + len(flags)),
}


@functools.cache
def subject() -> testing.Subject:
    return testing.Subject.of(SMALL, pb.ES_D_RTRL(0.9), SMALL.example(), squared, environ=dict(SETTINGS))


@pytest.mark.parametrize("law", FAULTS)
def test_each_law_finds_a_fault(law: str) -> None:
    strategies = {"vmap": pb.vmap, "broken": functools.partial(Broken, FAULTS[law])}
    broken = dataclasses.replace(subject(), strategies=strategies)
    with pytest.raises(LawViolation, match=rf"^{law} does not hold under .*broken") as caught:
        laws.ALL[law](testing.Case(broken, broken.params, SMALL.data(0, 4, 3)))
    with pytest.raises(LawViolation) as again:
        executed(caught.value.as_test(), law, FAULTS[law])
    assert str(again.value) == str(caught.value)


def from_samples(least: int, result: Any, flags: Any) -> Any:
    """A fault of batches that are not too small."""
    is_wrong = result.losses.shape[1] >= least
    return result._replace(losses=result.losses + is_wrong)


def test_the_smallest_case_is_of_the_same_violation() -> None:
    """A smaller batch fails under another strategy."""
    broken = {str(least): functools.partial(Broken, functools.partial(from_samples, least)) for least in (3, 2)}
    with pytest.raises(LawViolation, match=r"equality does not hold under 3: .*\nsmallest case .*: B = 3, T = 1$"):
        check(SMALL, laws=("equality",), strategies={"vmap": pb.vmap, **broken})


class TestTolerances:
    def test_by_type_and_by_what_is_compared(self) -> None:
        assert testing.tolerance("gradient", np.float64) == 1e-12
        assert testing.tolerance("gradient", np.float32) == 1e-5
        assert testing.tolerance("native", np.float64) == 1e-10
        assert testing.tolerance("exact", np.float64) == 1e-9
        assert testing.tolerance("nothing", np.float64) == testing.tolerance("forward", np.int32) == 0


@pytest.mark.parametrize("operator", ["linear", "lora", "masked", "signed", "element_wise", "conv"])
def test_descriptions_can_be_pasted(operator: str) -> None:
    net = Net((Leaky(operator, 6), Readout("untraced")), n_inputs=2, is_shared=True)
    assert eval(repr(net)) == net
    assert jax.tree.structure(pb.read_states(net())) == jax.tree.structure(pb.read_states(eval(repr(net))()))


few = settings(max_examples=10, derandomize=True, deadline=None, database=None)


class TestStrategies:
    @few
    @given(strategies.modules(), strategies.algorithms())
    def test_what_is_drawn_can_be_pasted(self, net: Net, algorithm: pb.Algorithm) -> None:
        scope = {**vars(modules), **vars(pb)}
        assert eval(repr(net), scope) == net
        assert eval(repr(algorithm), scope) == algorithm

    @few
    @given(st.data(), strategies.batch_sizes())
    def test_a_batch_is_cut_and_ordered(self, data: st.DataObject, samples: int) -> None:
        sizes, order = data.draw(strategies.partitions(samples)), data.draw(strategies.permutations(samples))
        assert sum(sizes) == samples
        assert min(sizes) >= 1
        assert sorted(order) == list(range(samples))

    def test_carries_are_fresh_or_have_seen_steps(self, seed: int) -> None:
        made, counts = bench("two_inputs", seed), set()

        @few
        @given(strategies.carries(made.batched("vmap"), made.params))
        def drawn(carry: pb.Carry) -> None:
            made.batched("vmap").check_carry(carry)
            counts.update(carry.update_count.tolist())

        drawn()
        assert counts > {0}

    @few
    @given(strategies.sequences(SMALL, 3, 2))
    def test_sequences_are_data_of_the_module(self, data: testing.Data) -> None:
        assert (data.steps, data.samples) == (3, 2)
        assert jax.tree.map(lambda x: x[0, 0].shape, data.inputs) == jax.tree.map(jnp.shape, SMALL.example())


class TestKept:
    """Results live as long as what they belong to."""

    def test_a_result_is_computed_once(self) -> None:
        found = bench_of(MODELS["LRUCell"], 0)
        case = found.case(found.data(2, 2))
        assert case.result("vmap") is case.result("vmap")
        assert case.subject.runner("vmap", 2) is case.subject.runner("vmap", 2)
        assert step_gradient(case.subject) is step_gradient(case.subject)

    def test_a_case_is_freed_with_its_results(self) -> None:
        found = bench_of(MODELS["LRUCell"], 0)
        case = found.case(found.data(2, 2))
        gradients = case.result("vmap").gradients
        stepped(case, case.init("loop"), case.data, {})
        held = (case, case.subject, case.subject.runner("vmap", 2), step_gradient(case.subject))
        references = [weakref.ref(one) for one in (*held, *jax.tree.leaves(gradients))]
        del found, case, gradients, held
        gc.collect()
        assert [reference() for reference in references] == [None] * len(references)
