"""Modules of BrainTrace: the same uses, groups and gradients as BrainTrace's own learners have."""

from collections.abc import Generator

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.testing._alive import assert_gradients_alive

pytest.importorskip("braintrace", reason="the extra `braintrace` is not installed")

from . import braintrace_conformance as conformance, braintrace_runs as native
from .braintrace_models import CELLS, LAYERS, MIXED, MODELS, OPERATIONS, Model, braintrace, operation

STRATEGIES = 1e-12

# D_RTRL is exact for a hidden state that no weight leads back to itself.
FEED_FORWARD = [*LAYERS, *OPERATIONS]
FEED_FORWARD.remove("braintrace.nn.Embedding, braintrace.nn.MGUCell")


@pytest.fixture(autouse=True)
def kernels() -> Generator[None, None, None]:
    """brainevent's kernels that need no further package."""
    with native.kernels():
        yield


def models(names: object) -> list[object]:
    """All of them, in the default run too."""
    return [pytest.param(Model(*MODELS[name]), id=name) for name in names]


def name_of(model: Model) -> str:
    return next(name for name, known in MODELS.items() if known == model)


class TestStructure:
    """What `pb.explain` says."""

    @pytest.mark.parametrize("model", models([*CELLS, *LAYERS, *OPERATIONS]))
    def test_uses_and_groups_are_those_of_its_compiler(self, model):
        with native.quiet():
            theirs = native.related(name_of(model))
        assert theirs
        assert native.traced(name_of(model)) == theirs

    def test_a_module_of_both_packages_has_the_traces_of_both(self):
        (name,) = MIXED
        with native.quiet():
            theirs = native.related(name)
        of_brainscale = {(f"first.{weight}.weight_op", ("first.h",)) for weight in ("W_u", "phi")}
        assert native.traced(name) == theirs | of_brainscale

    @pytest.mark.parametrize(
        ("name", "weight", "reason"),
        [
            (
                "braintrace.nn.GRUCell",
                "cell.Wr.weight",
                "only through another weight's use at braintrace/nn/_linear.py",
            ),
            ("braintrace.nn.Embedding, braintrace.nn.MGUCell", "layers.0.weight", "only through another weight's use"),
            ("braintrace.nn.LRUCell", "cell.D", "its output reaches no hidden state"),
            ("braintrace.nn.ScaledWSLinear", "layer.weight", "the step reads it outside its operation"),
        ],
    )
    def test_what_has_no_trace_has_a_reason(self, name, weight, reason):
        rows = [row for row in explained(native.made(name), name).rows if row.weight == weight and row.reason]
        assert all(row.way == "gradient of the step" for row in rows)
        assert any(reason in row.reason for row in rows)

    def test_a_weight_that_no_operation_reads(self):
        layer = operation(lambda x, w, v: braintrace.matmul(x, w) + x @ v, (3, 4), (3, 4))
        plain = explained(layer, "braintrace.matmul").rows[1]
        assert (plain.weight, plain.way) == ("layer.weights.1", "gradient of the step")
        assert plain.reason.startswith("no operation of BrainTrace reads it; a ParamState is no ETraceParam")

    def test_an_operation_inside_a_loop(self):
        def looped(x: jax.Array, w: jax.Array) -> jax.Array:
            return jax.lax.scan(lambda y, _: (y + braintrace.matmul(x, w), None), jnp.zeros(4), None, 3)[0]

        (row,) = explained(operation(looped, (3, 4)), "braintrace.matmul").rows
        assert (row.way, row.reason) == ("gradient of the step", "its use is inside a scan or a loop")

    def test_a_mask_belongs_to_the_use(self):
        mask = jnp.asarray(np.eye(3, 4))
        layer = operation(lambda x, w: braintrace.matmul(x, jnp.exp(w) * mask), (3, 4))
        (row,) = explained(layer, "braintrace.matmul").rows
        assert row.traces == {"weight of h": (3, 4, 1)}

    def test_no_trace_goes_through_a_product_with_a_constant(self):
        """A recurrent product is no way of its own, whether its matrix is trained or not."""
        fixed = jnp.asarray(np.random.RandomState(0).randn(4, 4))
        layer = operation(lambda x, w: braintrace.matmul(braintrace.matmul(x, w), fixed), (3, 4))
        (row,) = explained(layer, "braintrace.matmul").rows
        assert row.way == "gradient of the step"


class TestMixed:
    """A product whose elements are mixed: a complete rule has no trace of it, another one says what it does."""

    def test_one_step_is_exact(self):
        learner, got = self.gradient(pb.D_RTRL(rule="published"))
        (row,) = pb.explain(learner).rows
        assert row.way == "gradient of the step"
        assert row.reason.startswith("its output is mixed or copied at ")
        _, exact = self.gradient(pb.BPTT())
        assert_gradients_alive(got)
        for leaf, value in got.items():
            assert native.distance(value, exact[leaf]) < native.EQUAL

    def test_the_default_rule_has_a_trace_and_says_what_is_wrong(self):
        (row,) = pb.explain(self.gradient(pb.D_RTRL())[0]).rows
        assert row.way == "trace"
        assert "although its output is mixed or copied at " in row.incomplete

    def gradient(self, rule: pb.Algorithm) -> tuple[pb.Learner, dict[str, jax.Array]]:
        with brainstate.random.seed_context(0):
            layer = operation(lambda x, w: jax.nn.softmax(braintrace.matmul(x, w)), (3, 4))
        x = jnp.asarray(np.random.RandomState(0).randn(1, 3))
        learner, params = pb.capture(layer, x[0], algorithm=rule)
        return learner, pb.sequence_grad(learner, native.loss)(params, None, x, jnp.arange(4.0)[None])[0]


def explained(module: brainstate.nn.Module, name: str) -> pb.Explanation:
    example = native.inputs(MODELS[name])[0, 0]
    return pb.explain(pb.capture(module, example, algorithm=pb.D_RTRL(rule="published"))[0])


class TestNumbers:
    """Gradients of every sample alone, in double precision; the window is shorter than the sequence."""

    @pytest.mark.parametrize("algorithm", native.ALGORITHMS)
    @pytest.mark.parametrize(("name", "mode"), [(n, m) for n in MODELS for m in native.MODES if native.runs(n, m)])
    def test_equal_those_of_braintrace(self, name, mode, algorithm):
        if native.raises(name, algorithm, mode):
            with pytest.raises(ValueError, match=r"shape of the hidden states should be the same|Custom VJP bwd rule"):
                native.theirs(name, algorithm, mode)
            return
        found = native.differences(name, algorithm, mode)
        for leaf, distance in found.items():
            is_known = native.reason(name, leaf) != 0
            assert (distance > 1e-3) if is_known else (distance < native.EQUAL), leaf

    def test_a_sequence_of_one_step_is_exact(self):
        """BrainTrace counts the way from one hidden state to another within a step twice."""
        name = native.DOUBLED[0]
        (one, _), (exact, _) = (native.ours(name, rule, steps=1) for rule in (pb.D_RTRL(rule="published"), pb.BPTT()))
        twice = native.theirs(name, "D_RTRL", "one sample", steps=1)
        for leaf, value in one.items():
            if native.reason(name, leaf) == 3 and jnp.abs(value).max() > 0:
                assert native.distance(value, exact[leaf]) < native.EQUAL
                assert native.distance(2 * value, twice[leaf]) < native.EQUAL

    @pytest.mark.parametrize("name", FEED_FORWARD)
    def test_d_rtrl_is_exact_without_recurrent_weights(self, name):
        found, carry = native.ours(name, pb.D_RTRL(rule="published"))
        exact, _ = native.ours(name, pb.BPTT(), window=None)
        assert_gradients_alive(found)
        assert any(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(carry.trace))
        for leaf, value in found.items():
            is_beside = native.reason(name, leaf) == 5  # read outside of the operation, so that it has no trace
            assert is_beside or native.distance(value, exact[leaf]) < native.EQUAL, leaf

    @pytest.mark.parametrize(
        ("name", "strategy"),
        [*((name, pb.loop) for name in MODELS), *((name, pb.manual) for name in MODELS if MODELS[name].by_hand)],
    )
    def test_strategies_are_interchangeable(self, name, strategy):
        for algorithm, _ in native.ALGORITHMS.values():
            (one, _), (other, _) = (native.ours(name, algorithm, by) for by in (pb.vmap, strategy))
            assert_gradients_alive(one)
            for leaf, value in one.items():
                assert native.distance(value, other[leaf]) < STRATEGIES, leaf


class TestLookup:
    """`braintrace.embedding`: an index selects a row, in the trace as in the output."""

    def run(self, index: int) -> jax.Array:
        layer = operation(braintrace.embedding, (5, 4))
        learner, params = pb.capture(layer, jnp.asarray(0), algorithm=pb.D_RTRL(rule="published"))
        carry = learner.init()
        _, output = learner.step(params, carry, jnp.asarray(index))
        return output - jnp.tanh(params["layer.weights.0"][index])

    def test_an_index_below_zero_counts_from_the_end(self):
        assert jnp.abs(self.run(-2)).max() < STRATEGIES

    def test_an_index_out_of_range_is_not_a_number(self):
        assert jnp.isnan(self.run(7)).all()


class TestPage:
    def test_is_what_the_command_prints(self):
        text = conformance.PAGE.read_text(encoding="utf-8")
        assert all(f"| {name} |" in text for name in MODELS)
        assert all(why in text for why in native.REASONS.values())
