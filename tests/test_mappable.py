"""Operations written out: sparse products give the dense model's numbers, convolutions keep samples apart."""

import dataclasses
import functools
from typing import Any

import brainscale
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Linear, SparseLinear
from brainstate.nn import Module
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

import pure_batching as pb
from pure_batching._reader.written_out import written_out

from .alive import assert_gradients_alive, assert_traces_alive
from .bench import ONLINE_RULES, RULES, SAMPLES, STEPS, STRATEGIES, WINDOW, Request, bench
from .models import N_IN, N_REC, squared
from .modules import Leaky, zeros
from .trees import Tree, assert_close, assert_differ, assert_identical, sample, sample_of_carry
from .versions import needs_its_faults

FORMATS = {"CSR": u.sparse.CSR, "COO": u.sparse.COO, "CSC": u.sparse.CSC}
SOME_RULES = (*ONLINE_RULES, "D_RTRL multi-step", "BPTT")

# How many of the possible connections there are.
DENSITY = 0.6

WEIGHT = "layer.weight_op"

every_format = pytest.mark.parametrize("kind", FORMATS)


def matrix(seed: int) -> jax.Array:
    """Weights from inputs and states to states, with connections missing."""
    rng = np.random.default_rng(seed)
    shape = (N_IN + N_REC, N_REC)
    return jnp.asarray(rng.normal(size=shape) * (rng.random(shape) < DENSITY))


def places(sparse: Any) -> tuple[np.ndarray, ...]:
    """The row and the column of each stored number."""
    number = np.asarray(sparse.with_data(1.0 + jnp.arange(sparse.data.shape[0])).todense())
    order = np.argsort(number[number > 0])
    return tuple(index[order] for index in np.nonzero(number))


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """One model twice: with a sparse matrix and with a dense one whose missing connections are masked."""

    sparse: pb.Learner
    dense: pb.Learner
    sparse_params: Tree
    dense_params: Tree
    places: tuple[np.ndarray, ...]

    def stored(self, gradients: Tree, lead: int) -> Tree:
        """The dense model's gradients at the stored numbers."""
        axes = (slice(None),) * lead
        weight = gradients[WEIGHT]
        return {WEIGHT: {**weight, "weight": weight["weight"][*axes, *self.places]}}


@functools.cache
def pair(kind: str, rule: str, seed: int, *, is_recurrent: bool = True) -> Pair:
    """Both models, captured."""
    weights = matrix(seed) if is_recurrent else matrix(seed)[:N_IN]
    stored = FORMATS[kind].fromdense(weights)
    sparse = capture(SparseLinear(stored, b_init=zeros()), rule, is_recurrent=is_recurrent)
    layer = Linear(*weights.shape, w_init=weights, b_init=zeros(), w_mask=(weights != 0) * 1.0)
    dense = capture(layer, rule, is_recurrent=is_recurrent)
    return Pair(sparse[0], dense[0], sparse[1], dense[1], places(stored))


def capture(layer: Module, rule: str, *, is_recurrent: bool) -> tuple[pb.Learner, Tree]:
    net = Leaky(layer, (N_REC,), is_recurrent=is_recurrent)
    return pb.capture(net, np.zeros(N_IN), algorithm=RULES[rule], environ={"dt": 1.0 * u.ms})


def data(seed: int, *lead: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((seed, *lead))
    return rng.uniform(0.0, 3.0, (*lead, N_IN)), rng.uniform(0.5, 1.5, lead)


def run(learner: pb.Learner, params: Tree, seed: int, reduction: str = "none") -> tuple[Tree, pb.Aux]:
    grad_fn = pb.sequence_grad(learner, squared, reduction=reduction, window=WINDOW, outputs=True)
    lead = (STEPS,) if learner.batch_size is None else (STEPS, SAMPLES)
    return grad_fn(params, None, *data(seed, *lead))


class TestLikeTheDenseModel:
    @pytest.mark.parametrize(
        ("rule", "strategy"),
        [*(("ES_D_RTRL", strategy) for strategy in STRATEGIES), ("D_RTRL", "vmap"), ("D_RTRL multi-step", "manual")],
    )
    @every_format
    def test_of_each_sample(self, kind: str, rule: str, strategy: str, seed: int) -> None:
        made, make = pair(kind, rule, seed), STRATEGIES[strategy]
        got, aux = run(make(made.sparse, SAMPLES), made.sparse_params, seed)
        want, dense = run(pb.vmap(made.dense, SAMPLES), made.dense_params, seed)
        assert_gradients_alive(got)
        assert_traces_alive(aux.carry.trace)
        assert_close(got, made.stored(want, lead=1))
        assert_close((aux.outputs, aux.losses, aux.carry.hidden), (dense.outputs, dense.losses, dense.carry.hidden))

    @pytest.mark.parametrize("rule", [rule for rule in SOME_RULES if not rule.startswith("Hybrid")])
    @pytest.mark.parametrize("kind", ["CSR", "COO"])
    def test_of_every_rule(self, kind: str, rule: str, seed: int) -> None:
        """But Hybrid, which chooses by the size of the weight, and so by how it is stored."""
        made = pair(kind, rule, seed)
        want, _ = run(pb.vmap(made.dense, SAMPLES), made.dense_params, seed, "sum")
        assert_close(
            run(pb.manual(made.sparse, SAMPLES), made.sparse_params, seed, "sum")[0], made.stored(want, lead=0)
        )

    @every_format
    def test_of_one_sample(self, kind: str, seed: int) -> None:
        made = pair(kind, "D_RTRL published", seed, is_recurrent=False)
        want, _ = run(made.dense, made.dense_params, seed)
        assert_close(run(made.sparse, made.sparse_params, seed)[0], made.stored(want, lead=0))

    def test_rules_differ(self, seed: int) -> None:
        """A sparse gradient knows which rule it comes from."""
        made = [pair("CSR", rule, seed) for rule in ("ES_D_RTRL", "D_RTRL", "BPTT")]
        one, other, exact = (run(pb.vmap(it.sparse, SAMPLES), it.sparse_params, seed)[0] for it in made)
        assert_differ(one, other)
        assert_differ(other, exact)

    def test_hybrid_follows_the_stored_size(self, seed: int) -> None:
        made = pair("CSR", "Hybrid", seed)
        rule = made.sparse.algorithm
        assert rule.choice(made.sparse.program) == {WEIGHT: "ES_D_RTRL"}
        got, _ = run(pb.manual(made.sparse, SAMPLES), made.sparse_params, seed)
        want, _ = run(pb.loop(made.sparse, SAMPLES), made.sparse_params, seed)
        assert_gradients_alive(got)
        assert_close(got, want)


class TestAlone:
    def test_weight_function(self, seed: int) -> None:
        """`SpMatMulOp` differentiates through what it does to the stored numbers."""
        stored = u.sparse.CSR.fromdense(matrix(seed))
        plain, through = (captured_op(stored, fn) for fn in (jnp.tanh, lambda w: w))
        grad_fn = pb.sequence_grad(plain[0], squared, window=WINDOW)
        got, aux = grad_fn(plain[1], None, *data(seed, STEPS))
        inner = jax.tree.map(jnp.tanh, plain[1])
        want, other = pb.sequence_grad(through[0], squared, window=WINDOW)(inner, None, *data(seed, STEPS))
        slopes = jax.tree.map(lambda w: 1 - jnp.tanh(w) ** 2, plain[1])
        assert_gradients_alive(got)
        assert_close(got, jax.tree.map(jnp.multiply, want, slopes))
        assert_close(aux.losses, other.losses)


class Own(Module):
    """A layer around one operation."""

    def __init__(self, op: brainscale.ETraceOp, weight: Tree) -> None:
        super().__init__()
        self.weight_op = brainscale.ETraceParam(weight, op=op)

    def update(self, x: jax.Array) -> jax.Array:
        return self.weight_op.execute(x)


def captured_op(stored: Any, weight_fn: Any) -> tuple[pb.Learner, Tree]:
    op = brainscale.SpMatMulOp(stored, weight_fn=weight_fn)
    return capture(Own(op, {"weight": stored.data}), "ES_D_RTRL", is_recurrent=True)


class TestConvolutions:
    """The derivative by the kernel of one image, mapped over samples."""

    @pytest.mark.parametrize("window", [1, WINDOW])
    @pytest.mark.parametrize("rule", ["D_RTRL", "D_RTRL published", "Hybrid", "D_RTRL multi-step", "BPTT"])
    @pytest.mark.parametrize("name", ["conv_rates", "conv_spikes"])
    def test_what_is_no_number_stays_with_its_sample(self, name: str, rule: str, window: int, seed: int) -> None:
        made, request = bench(name, seed, RULES[rule]), Request("vmap", window=window)
        data, want = made.data(STEPS, SAMPLES), made.result(request)
        got = made.run(request, None, jax.tree.map(lambda x: jnp.asarray(x).at[:, 1].set(jnp.nan), data))
        assert_gradients_alive(want.gradients)
        for i in (0, 2):
            assert_identical(sample(got.gradients, i), sample(want.gradients, i))
            assert_identical(sample_of_carry(got.aux.carry, i), sample_of_carry(want.aux.carry, i))

    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL", "BPTT"])
    def test_with_groups_of_channels(self, rule: str, seed: int) -> None:
        net = Leaky(brainscale.nn.Conv1d((6, 4), 4, 3, groups=4), (6, 4), is_recurrent=False)
        learner, params = pb.capture(net, np.zeros((6, 4)), algorithm=RULES[rule])
        run = pb.sequence_grad(pb.vmap(learner, SAMPLES), lambda y, _: (y**2).sum(), reduction="none", window=WINDOW)
        x, targets = np.random.default_rng(seed).normal(size=(STEPS, SAMPLES, 6, 4)), np.zeros((STEPS, SAMPLES))
        want, _ = run(params, None, x, targets)
        broken = x.copy()  # JAX may still be reading x
        broken[:, 1] = np.nan
        got, _ = run(params, None, broken, targets)
        assert_gradients_alive(want)
        for i in (0, 2):
            assert_identical(sample(got, i), sample(want, i))

    def test_derivatives(self, seed: int) -> None:
        """By image and by kernel, forwards and backwards, of the first order and of the second."""
        rng, params = np.random.default_rng(seed), convolution(jnp.ones((1, 6, 2)), jnp.ones((3, 2, 4))).params
        image, kernel = jnp.asarray(rng.normal(size=(1, 6, 2))), jnp.asarray(rng.normal(size=(3, 2, 4)))

        def plain(image: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.tanh(jax.lax.conv_general_dilated(image, kernel, **params)).sum()

        def ours(image: jax.Array, kernel: jax.Array) -> jax.Array:
            eqn = convolution(image, kernel)
            written = written_out(Jaxpr((), eqn.invars, eqn.outvars, [eqn]))
            (out,) = jaxpr_as_fun(ClosedJaxpr(written, ()))(image, kernel)
            return jnp.tanh(out).sum()

        for derive in (jax.value_and_grad, jax.jacfwd, jax.hessian):
            for argument in (0, 1):
                assert_close(derive(ours, argument)(image, kernel), derive(plain, argument)(image, kernel))


def convolution(image: jax.Array, kernel: jax.Array) -> JaxprEqn:
    """An equation of one image and a kernel."""
    numbers = ("NWC", "WIO", "NWC")
    spec = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (image, kernel)]
    traced = jax.make_jaxpr(lambda *x: jax.lax.conv_general_dilated(*x, (2,), "SAME", dimension_numbers=numbers))(*spec)
    return traced.jaxpr.eqns[-1]


class TestUpstream:
    """Why operations are written out. A test that fails here says that upstream is mended, and what may go."""

    @needs_its_faults
    @pytest.mark.parametrize(
        ("kind", "compare"), [("CSR", assert_differ), ("COO", assert_differ), ("CSC", assert_close)]
    )
    @pytest.mark.parametrize("samples", [1, SAMPLES])
    def test_derivative_of_rows_times_a_matrix(self, kind: str, compare: Any, samples: int, seed: int) -> None:
        stored = FORMATS[kind].fromdense(matrix(seed))
        rng = np.random.default_rng(seed)
        x, dy = jnp.asarray(rng.normal(size=(samples, N_IN + N_REC))), jnp.asarray(rng.normal(size=(samples, N_REC)))
        if samples == 1:
            x, dy = x[0], dy[0]
        got = jax.grad(lambda values: ((x @ stored.with_data(values)) * dy).sum())(stored.data)
        want = np.atleast_2d(x).T @ np.atleast_2d(dy)
        compare(got, jnp.asarray(want[places(stored)]))

    @pytest.mark.parametrize("kind", ["CSR", "COO"])
    def test_mapping_over_samples(self, kind: str, seed: int) -> None:
        stored = FORMATS[kind].fromdense(matrix(seed))
        with pytest.raises(NotImplementedError, match="Batching rule"):
            jax.vmap(lambda x: x @ stored)(jnp.ones((SAMPLES, N_IN + N_REC)))

    def test_a_mapped_derivative_by_the_kernel(self, seed: int) -> None:
        """Finite numbers of another sample are multiplied by zero, and so is NaN."""
        rng = np.random.default_rng(seed)
        x, dy = jnp.asarray(rng.normal(size=(SAMPLES, 1, 6, 2))), jnp.asarray(rng.normal(size=(SAMPLES, 1, 3, 4)))

        def of_kernel(x: jax.Array, dy: jax.Array) -> jax.Array:
            params = convolution(x, jnp.ones((3, 2, 4))).params
            return jax.vjp(lambda k: jax.lax.conv_general_dilated(x, k, **params), jnp.ones((3, 2, 4)))[1](dy)[0]

        assert jnp.isfinite(jax.vmap(of_kernel)(x, dy)).all()
        assert jnp.isnan(jax.vmap(of_kernel)(x.at[1].set(jnp.nan), dy)[0]).any()
