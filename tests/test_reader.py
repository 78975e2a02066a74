"""The reader of steps: against BrainScale's compiler, through everything around a weight, and its report."""

import contextlib
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import HiddenState

import pure_batching as pb
from pure_batching._sources.blueprint import Blueprint
from pure_batching._sources.paths import path_of
from pure_batching.errors import CaptureError

from .models import N_IN, N_REC, Model
from .modules import state_of
from .registry import EVERY, captured
from .trees import assert_close, assert_differ
from .upstream import NOT_COMPILED
from .versions import needs_its_compiler
from .wrapped import (
    SEEN_THROUGH,
    Kinds,
    LoopedReadout,
    Wrapped,
    in_cond,
    in_scan,
    in_while,
    rounded,
    scaled,
    with_own_jvp,
)

Tree = Any


# What BrainScale's compiler raises for; a cell without a path from state to state fails later, in its algorithms.
UNREADABLE = sorted(set(NOT_COMPILED) - {"ValinaRNNCell"})


def of_the_compiler(model: Model, seed: int) -> tuple[Any, Any]:
    """The hidden groups and, for each use of a weight, the groups that it reaches, by BrainScale's compiler."""
    blueprint, inputs = Blueprint(model.build(seed), model.settings), model.inputs(seed)
    with blueprint.environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = blueprint.build()
        with contextlib.redirect_stdout(io.StringIO()):
            graph = brainscale.compile_etrace_graph(net, *inputs, include_hidden_perturb=True)

    def paths_of(group: Any) -> tuple[str, ...]:
        return tuple(sorted(path_of(net, path) for path in group.hidden_paths))

    uses = [(path_of(net, r.path), sorted(map(paths_of, r.hidden_groups))) for r in graph.hidden_param_op_relations]
    return sorted(map(paths_of, graph.hidden_groups)), sorted(uses)


@needs_its_compiler
class TestAgainstTheCompiler:
    @pytest.mark.parametrize("name", [name for name in EVERY if name not in UNREADABLE])
    def test_groups_and_uses_are_the_same(self, name: str, seed: int) -> None:
        program = captured(name, seed).learner.program
        groups, uses = of_the_compiler(EVERY[name], seed)
        assert sorted(group.paths for group in program.groups) == groups
        assert sorted((r.weight, sorted(link.group.paths for link in r.links)) for r in program.relations) == uses

    @pytest.mark.parametrize("name", UNREADABLE)
    def test_what_it_cannot_compile_is_read(self, name: str, seed: int) -> None:
        """Here it raises (docs/conformance.md lists why)."""
        raised = NOT_COMPILED[name]
        with pytest.raises(raised.error, match=raised.text):
            of_the_compiler(EVERY[name], seed)
        assert captured(name, seed).learner.program.relations


class TestDerivatives:
    @pytest.mark.parametrize("name", EVERY)
    def test_have_the_specifications_of_the_program(self, name: str, seed: int) -> None:
        learner = captured(name, seed).learner
        program, zero = learner.program, learner.zero_perturbation()
        step = jax.eval_shape(learner.execute, program.params, program.states, program.inputs, zero)
        assert jax.tree.map(shape_and_dtype, step.jacobians) == jax.tree.map(shape_and_dtype, program.derivatives)


def shape_and_dtype(x: Any) -> tuple[tuple[int, ...], Any]:
    return x.shape, x.dtype


ALGORITHMS = [pb.D_RTRL(rule="published"), pb.D_RTRL(), pb.ES_D_RTRL(0.9), pb.BPTT()]


def gradient(make: Callable[[], Any], algorithm: pb.Algorithm, seed: int, window: int = 2) -> Tree:
    """The gradient of a short sequence of one sample."""
    with brainstate.random.seed_context(seed):
        net = make()
    xs = np.random.default_rng(seed).uniform(0, 3, (5, N_IN))
    learner, params = pb.capture(net, xs[0], algorithm=algorithm)
    gradients, _ = pb.sequence_grad(learner, loss, window=window)(params, None, xs, np.ones(5))
    return gradients


def loss(out: jax.Array, target: jax.Array) -> jax.Array:
    return ((out - target) ** 2).sum()


class TestSeenThrough:
    """What stands around a weight or a state changes nothing."""

    @pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
    @pytest.mark.parametrize("name", [*SEEN_THROUGH, "custom_jvp"])
    def test_around_a_weight(self, name: str, algorithm: pb.Algorithm, seed: int) -> None:
        around = with_own_jvp if name == "custom_jvp" else SEEN_THROUGH[name]
        got = gradient(lambda: Wrapped(N_IN, N_REC, around_layer=around), algorithm, seed)
        assert_close(got, gradient(lambda: Wrapped(N_IN, N_REC), algorithm, seed))

    @pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
    @pytest.mark.parametrize("name", [*SEEN_THROUGH, "custom_jvp", "cond", "scan"])
    def test_around_a_hidden_state(self, name: str, algorithm: pb.Algorithm, seed: int) -> None:
        around = {"custom_jvp": with_own_jvp, "cond": in_cond, "scan": in_scan, **SEEN_THROUGH}[name]
        got = gradient(lambda: Wrapped(N_IN, N_REC, around_state=around), algorithm, seed)
        assert_close(got, gradient(lambda: Wrapped(N_IN, N_REC), algorithm, seed))

    @pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
    def test_around_a_weight_with_a_number(self, algorithm: pb.Algorithm, seed: int) -> None:
        """A number among the operands is no input of the operation."""
        got = gradient(lambda: Wrapped(N_IN, N_REC, around_layer=scaled), algorithm, seed)
        assert_close(got, gradient(lambda: Wrapped(N_IN, N_REC), algorithm, seed))

    def test_without_jit(self, seed: int) -> None:
        """A module is read alike where its user runs it without compilation."""
        want = gradient(lambda: Wrapped(N_IN, N_REC), ALGORITHMS[0], seed)
        with jax.disable_jit():
            learner, _ = pb.capture(Wrapped(N_IN, N_REC), np.ones(N_IN), algorithm=ALGORITHMS[0])
        assert [relation.name for relation in learner.program.relations] == ["layer.weight_op", "other.weight_op"]
        assert_close(gradient(lambda: Wrapped(N_IN, N_REC), ALGORITHMS[0], seed), want)

    def test_a_reverse_derivative_of_its_own_leads_to_the_state(self, seed: int) -> None:
        """A surrogate gradient by `custom_vjp` has no forward derivative, which JAX would refuse."""
        with_vjp = gradient(lambda: Wrapped(N_IN, N_REC, between=rounded), ALGORITHMS[0], seed)
        with_jvp = gradient(lambda: Wrapped(N_IN, N_REC, between=_rounded_forward), ALGORITHMS[0], seed)
        assert_close(with_vjp, with_jvp)


@jax.custom_jvp
def _rounded_forward(x: jax.Array) -> jax.Array:
    return jnp.round(x)


@_rounded_forward.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return jnp.round(x), dx * (1 - jnp.tanh(x) ** 2)


class TestInsideALoop:
    """A weight inside a branch or loop gets the ordinary gradient of the step; every other weight keeps its trace."""

    @pytest.mark.parametrize(("kind", "around"), [("cond", in_cond), ("scan", in_scan)])
    def test_gradient_of_the_step(self, kind: str, around: Any, seed: int) -> None:
        def make() -> Wrapped:
            return Wrapped(N_IN, N_REC, around_layer=around)

        got, whole = gradient(make, ALGORITHMS[0], seed), gradient(lambda: Wrapped(N_IN, N_REC), ALGORITHMS[0], seed)
        want = gradient(make, pb.BPTT(), seed, window=1)
        assert_close(got["layer.weight_op"], want["layer.weight_op"])
        assert_differ(got["layer.weight_op"], whole["layer.weight_op"])
        assert_close(got["other.weight_op"], whole["other.weight_op"])

    @pytest.mark.parametrize(
        ("around", "reason"),
        [(in_cond, "a cond or a switch"), (in_scan, "a scan or a loop")],
    )
    def test_is_said_with_its_line(self, around: Any, reason: str, seed: int) -> None:
        learner, _ = pb.capture(Wrapped(N_IN, N_REC, around_layer=around), np.ones(N_IN), algorithm=ALGORITHMS[0])
        rows = [row for row in pb.explain(learner).rows if row.weight == "layer.weight_op"]
        assert reason in rows[0].reason
        assert "wrapped.py" in rows[0].where
        assert {row.way for row in rows} == {"gradient of the step"}

    def test_a_while_loop_that_moves_hidden_states_is_refused(self) -> None:
        """JAX has no reverse derivative of it, so that its weight would learn nothing."""
        text = r"^layer\.weight_op: got a use inside a while loop at .*wrapped\.py.*, which reaches h, .*Use jax\.lax"
        with pytest.raises(CaptureError, match=text):
            pb.capture(Wrapped(N_IN, N_REC, around_layer=in_while), np.ones(N_IN), algorithm=ALGORITHMS[0])

    def test_one_that_reaches_outputs_alone_leaves_the_others_trainable(self, seed: int) -> None:
        """Its weight learns nothing, which `pb.explain` says."""
        got = gradient(lambda: LoopedReadout(N_IN, N_REC), ALGORITHMS[0], seed)
        assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(got["read.weight_op"]))
        assert all((np.asarray(leaf) != 0).any() for leaf in jax.tree.leaves(got["cell.layer.weight_op"]))
        learner, _ = pb.capture(LoopedReadout(N_IN, N_REC), np.ones(N_IN), algorithm=ALGORITHMS[0])
        (row,) = [row for row in pb.explain(learner).rows if row.weight == "read.weight_op"]
        assert row.way == "none"
        assert "a while loop" in row.reason


class TestExplain:
    def rows(self, algorithm: pb.Algorithm) -> dict[str, Any]:
        learner, _ = pb.capture(Kinds(N_IN, N_REC), np.ones(N_IN), algorithm=algorithm)
        return {row.weight: row for row in reversed(pb.explain(learner).rows)}

    def test_every_kind_has_its_reason(self) -> None:
        rows = self.rows(pb.D_RTRL())
        want = {
            "traced.weight_op": ("trace", ""),
            "plain.weight": ("gradient of the step", "is no ETraceParam"),
            "untraced": ("gradient of the step", "NonTempParam"),
            "wide.weight_op": ("gradient of the step", f"shape ({2 * N_REC},) does not fit h of shape ({N_REC},)"),
            "stopped.weight_op": ("gradient of the step", "only through a stop_gradient"),
            "before.weight_op": ("gradient of the step", "only through another weight's use at "),
            "readout.weight_op": ("gradient of the step", "reaches no hidden state"),
            "idle.weight_op": ("none", "the step does not read it"),
        }
        assert set(rows) == set(want)
        for path, (way, reason) in want.items():
            assert rows[path].way == way, path
            assert reason in rows[path].reason, path
            assert ("wrapped.py" in rows[path].where) == (path != "idle.weight_op"), path

    def test_a_trace_has_groups_and_shapes(self) -> None:
        row = self.rows(pb.D_RTRL())["traced.weight_op"]
        assert row.groups == ("h",)
        assert row.traces == {"weight of h": (N_IN, N_REC, 1), "bias of h": (N_REC, 1)}
        row = self.rows(pb.ES_D_RTRL(0.9))["traced.weight_op"]
        assert row.traces == {"x": (N_IN,), "df of h": (N_REC, 1)}

    def test_a_value_that_is_read_beside_its_operation(self) -> None:
        """BrainScale gives that part no gradient, and the trace stays."""
        learner, params = pb.capture(Decayed(N_IN, N_REC), np.ones(N_IN), algorithm=pb.D_RTRL())
        rows = {row.way: row for row in pb.explain(learner).rows if row.weight == "layer.weight_op"}
        assert set(rows) == {"trace", "none"}
        assert rows["none"].reason == "the step reads it outside its operation"
        assert learner.program.direct == ("read.weight",)
        assert set(params) == {"layer.weight_op", "other.weight_op", "read.weight"}

    def test_is_a_table(self) -> None:
        learner, _ = pb.capture(Kinds(N_IN, N_REC), np.ones(N_IN), algorithm=pb.D_RTRL())
        text = str(pb.explain(learner))
        header = " ".join(text.splitlines()[0].split())
        assert header == "weight learns by hidden states trace for one sample where"
        assert "idle.weight_op" in text
        rows = pb.explain(learner).rows
        item = learner.program.groups[0].dtype.itemsize
        assert [row.nbytes for row in rows] == [item * sum(map(math.prod, row.traces.values())) for row in rows]
        assert any(f"{row.nbytes:,} B" in text for row in rows if row.nbytes > 0)
        assert "the step does not read it" in text


class Decayed(Wrapped):
    """The output also depends on the size of a weight."""

    def update(self, x: jax.Array) -> jax.Array:
        return super().update(x) + (self.layer.weight_op.value["weight"] ** 2).sum()


class Held(Wrapped):
    """Two states of one result, a state that stays as it was, and one that is a number."""

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        super().init_state(batch_size)
        self.same, self.kept, self.fixed = (HiddenState(state_of((self.n_rec,), batch_size)) for _ in range(3))

    def update(self, x: jax.Array) -> jax.Array:
        super().update(x)
        self.same.value, self.fixed.value = self.h.value, jnp.zeros_like(self.h.value)
        return self.read(self.h.value + self.same.value + self.kept.value)


class TestOwnResults:
    """Hidden states whose new value is another variable's."""

    def test_each_has_a_signal(self, seed: int) -> None:
        got = gradient(lambda: Held(N_IN, N_REC), pb.D_RTRL(rule="published"), seed, window=1)
        whole = gradient(lambda: Twice(N_IN, N_REC), pb.D_RTRL(rule="published"), seed, window=1)
        assert_close(got["layer.weight_op"], whole["layer.weight_op"])


class Twice(Wrapped):
    """The same without the further states."""

    def update(self, x: jax.Array) -> jax.Array:
        super().update(x)
        return self.read(2 * self.h.value)
