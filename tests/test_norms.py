"""Norms and clipped gradients are those of the per-sample gradients, which they do without."""

import dataclasses
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Linear

import pure_batching as pb
from pure_batching._algorithms.base import Factors, Parts, contract
from pure_batching._learning import norms as _norms
from pure_batching.errors import LossError, OptionError, StrategyError

from .alive import assert_gradients_alive
from .bench import RULES, SAMPLES, STEPS, STRATEGIES, Bench, Request, bench
from .models import squared
from .modules import Leaky, UsedTwice
from .trees import assert_close

every_rule = pytest.mark.parametrize("rule", RULES)


def true_norms(gradients: Any) -> jax.Array:
    """`[B]`, from per-sample gradients."""
    return jnp.sqrt(sum((leaf**2).reshape(SAMPLES, -1).sum(1) for leaf in jax.tree.leaves(gradients)))


def run(made: Bench, strategy: str = "vmap", carry: pb.Carry | None = None) -> tuple[jax.Array, pb.Aux]:
    fun = pb.sample_norms(made.batched(strategy), made.model.loss)
    return fun(made.params, carry, *made.data(STEPS, SAMPLES))


class TestSampleNorms:
    @every_rule
    @pytest.mark.parametrize("name", ["readouts", "used_twice"])
    def test_equal_the_gradients(self, name: str, rule: str, seed: int) -> None:
        made = bench(name, seed, RULES[rule])
        each = made.result(Request("vmap", window=None))
        norms, aux = run(made)
        assert_close(norms, true_norms(each.gradients))
        assert_close(aux.losses, each.aux.losses)
        assert_close(aux.carry, each.aux.carry)
        assert (np.asarray(norms) > 0).all()

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_in_every_strategy(self, strategy: str, seed: int) -> None:
        made = bench("tutorial", seed)
        assert_close(run(made, strategy)[0], true_norms(made.result(Request("loop", window=None)).gradients))

    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published"])
    def test_from_a_carry(self, rule: str, seed: int) -> None:
        made = bench("LSTMCell", seed, RULES[rule])
        carry = made.result(Request("vmap")).aux.carry
        each = made.run(Request("vmap", window=None), carry, made.data(STEPS, SAMPLES))
        assert_close(run(made, carry=carry)[0], true_norms(each.gradients))

    @every_rule
    def test_with_masks_and_resets(self, rule: str, seed: int) -> None:
        made = bench("LSTMCell", seed, RULES[rule])
        flags = {"mask": np.arange(STEPS)[:, None] < np.array([STEPS, 2, 4]), "reset": np.zeros((STEPS, SAMPLES), bool)}
        flags["reset"][1, 0] = flags["reset"][2, 2] = True
        data = made.data(STEPS, SAMPLES)
        each = made.grad_fn(Request("vmap", window=None))(made.params, None, *data, **flags)[0]
        norms, _ = pb.sample_norms(made.batched("vmap"), made.model.loss)(made.params, None, *data, **flags)
        assert_gradients_alive(each)
        assert_close(norms, true_norms(each))

    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL"])
    def test_gram_form(self, rule: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a few steps a matrix is never multiplied out; both forms give one number."""
        made = bench("LSTMCell", seed, RULES[rule])
        inputs, targets = jax.tree.map(lambda x: x[:2], made.data(STEPS, SAMPLES))
        assert any(
            _norms._gram_leaves(relation, _factors_of(relation, 2)) for relation in made.learner.program.relations
        )
        fun = pb.sample_norms(made.batched("vmap"), made.model.loss)
        short, _ = fun(made.params, None, inputs, targets)
        monkeypatch.setattr(_norms, "_gram_leaves", lambda *_: [])
        jax.clear_caches()
        assert_close(short, fun(made.params, None, inputs, targets)[0])

    def test_needs_a_batch(self, seed: int) -> None:
        with pytest.raises(StrategyError, match=r"pb.sample_norms: got a learner of one sample"):
            pb.sample_norms(bench("LSTMCell", seed).learner, lambda out, _: out.sum())


def _factors_of(relation: Any, steps: int) -> Any:
    return Factors({}, {relation.name: (jnp.zeros((steps, 1)),)})


class Dense(pb.ES_D_RTRL):
    """The same gradient, of which no part is an outer product."""

    def window_gradient(self, program: Any, params: Any, trace_before: Any, records: Any) -> Parts:
        factors = super().window_gradient(program, params, trace_before, records).factors
        return Parts((), contract(program, params, factors))


def test_a_rule_without_outer_products(seed: int) -> None:
    made, want = (bench("LSTMCell", seed, rule) for rule in (Dense(0.9), pb.ES_D_RTRL(0.9)))
    assert_close(run(made), run(want))


# Sizes at which a gradient of every sample outweighs all else, and how many bytes of them may be held at once.
WIDE, MANY = 192, 128
GRADIENTS, BUDGET = MANY * WIDE * WIDE * 8, 2**20


def temporary_bytes(make: Any, rule: str, strategy: str) -> int:
    """Of the norms of a short sequence of a wide layer, as compiled."""
    with brainstate.random.seed_context(0):
        learner, params = pb.capture(make(), jnp.ones(WIDE), algorithm=RULES[rule])
    norms = pb.sample_norms(STRATEGIES[strategy](learner, MANY), squared)
    specs = (jax.ShapeDtypeStruct((4, MANY, *shape), jnp.float64) for shape in ((WIDE,), ()))
    lowered = jax.jit(lambda params, *data: norms(params, None, *data)[0]).lower(params, *specs)
    return lowered.compile().memory_analysis().temp_size_in_bytes


class TestMemory:
    """By Gram matrices, by tiles of what is contracted, and by tiles of samples."""

    CASES = (
        *(("ES_D_RTRL", lambda: Leaky(Linear(WIDE, WIDE), (WIDE,), is_recurrent=False)),),
        *(("D_RTRL published", lambda: UsedTwice(WIDE)), ("BPTT", lambda: UsedTwice(WIDE))),
    )

    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    @pytest.mark.parametrize(("rule", "make"), CASES, ids=["gram", "contracted", "samples"])
    def test_no_gradient_of_every_sample(
        self, rule: str, make: Any, strategy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_norms, "TILE_BUDGET", BUDGET)
        assert temporary_bytes(make, rule, strategy) < GRADIENTS / 2

    @pytest.mark.parametrize(("rule", "make"), CASES[1:], ids=["contracted", "samples"])
    def test_half_of_them_where_they_fit(self, rule: str, make: Any) -> None:
        """The statement above is one: the tiles are what keeps the memory small."""
        assert temporary_bytes(make, rule, "vmap") >= GRADIENTS / 2


class TestClippedGrad:
    @every_rule
    def test_equal_the_clipped_gradients(self, rule: str, seed: int) -> None:
        made = bench("readouts", seed, RULES[rule])
        each = made.result(Request("vmap", window=None)).gradients
        norms = true_norms(each)
        bound = float(np.sort(np.asarray(norms))[-2:].mean())
        fun = pb.clipped_grad(made.batched("vmap"), made.model.loss, bound, reduction="sum")
        clipped, aux = fun(made.params, None, *made.data(STEPS, SAMPLES))
        scales = jnp.minimum(1, bound / norms)
        assert_close(clipped, jax.tree.map(lambda leaf: jnp.einsum("b...,b->...", leaf, scales), each))
        assert int(aux.clipped) == int((np.asarray(norms) > bound).sum()) == 1

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_in_every_strategy(self, strategy: str, seed: int) -> None:
        made, mask = bench("tutorial", seed), np.arange(STEPS)[:, None] < np.array([STEPS, 2, 4])
        data, flags = made.data(STEPS, SAMPLES), {"mask": mask}
        each = made.grad_fn(Request(strategy, window=None))(made.params, None, *data, **flags)[0]
        norms = true_norms(each)
        bound = float(np.median(np.asarray(norms)))
        clipped, aux = pb.clipped_grad(made.batched(strategy), made.model.loss, bound, reduction="sum")(
            made.params, None, *data, **flags
        )
        assert_close(aux.norms, norms)
        scales = jnp.minimum(1, bound / norms)
        assert_close(clipped, jax.tree.map(lambda leaf: jnp.einsum("b...,b->...", leaf, scales), each))

    def test_mean(self, seed: int) -> None:
        made = bench("tutorial", seed)
        by = {r: pb.clipped_grad(made.batched("manual"), made.model.loss, 0.1, reduction=r) for r in ("mean", "sum")}
        results = {r: fun(made.params, None, *made.data(STEPS, SAMPLES))[0] for r, fun in by.items()}
        assert_close(results["mean"], jax.tree.map(lambda leaf: leaf / SAMPLES, results["sum"]))

    def test_a_large_bound_clips_nothing(self, seed: int) -> None:
        made = bench("tutorial", seed)
        fun = pb.clipped_grad(made.batched("vmap"), made.model.loss, 1e6, reduction="sum")
        gradients, aux = fun(made.params, None, *made.data(STEPS, SAMPLES))
        assert_close(gradients, made.result(Request("vmap", "sum")).gradients)
        assert int(aux.clipped) == 0

    def test_a_traced_bound(self, seed: int) -> None:
        """One compiled function for every bound, as an adaptive one needs."""
        made = bench("tutorial", seed)

        def clipped(bound: Any) -> Any:
            fun = pb.clipped_grad(made.batched("vmap"), made.model.loss, bound)
            return fun(made.params, None, *made.data(STEPS, SAMPLES))

        assert_close(jax.jit(clipped)(jnp.float32(0.25)), clipped(0.25))

    @pytest.mark.parametrize("bound", [0, -1.0, float("nan"), "1.0", None, np.ones(3), 1.0 * u.mV])
    def test_bound(self, bound: Any, seed: int) -> None:
        with pytest.raises(OptionError, match=r"bound: got .*, expected a number above 0"):
            pb.clipped_grad(bench("tutorial", seed).batched("vmap"), lambda out, _: out.sum(), bound)

    def test_reduction(self, seed: int) -> None:
        with pytest.raises(OptionError, match=r"reduction: got 'none', expected 'mean' or 'sum'"):
            pb.clipped_grad(bench("tutorial", seed).batched("vmap"), lambda out, _: out.sum(), 1.0, reduction="none")


@pytest.mark.parametrize("make", [pb.sample_norms, lambda learner, loss: pb.clipped_grad(learner, loss, 1.0)])
def test_a_loss_that_cannot_be_called_is_refused_at_once(make: Any, seed: int) -> None:
    with pytest.raises(LossError, match="loss: got NoneType, expected a function"):
        make(bench("GRUCell", seed).batched("vmap"), None)


# Operations of a user's own that add their product to itself: the derivative is no outer product of `x` and `dy`.
ADDED_TWICE = {
    "after a number": lambda x, w: ((y := x @ w) + 1.0) + y,
    "in part": lambda x, w: ((y := x @ w) + 1.0) + y[..., :1],
    "with numbers": lambda x, w: ((y := x @ w) + 1.0) + (y + 2.0),
}


class AddedTwice(brainstate.nn.Module):
    """A leaky layer with such an operation; its matrix is large enough that norms are made by the Gram form."""

    def __init__(self, form: str) -> None:
        super().__init__()

        class Operation(brainscale.ETraceOp):
            def xw_to_y(self, inputs: Any, weights: Any) -> Any:
                return ADDED_TWICE[form](inputs, weights["weight"])

        weight = 0.1 * np.random.default_rng(3).standard_normal((30, 40))
        self.w = brainscale.ETraceParam({"weight": jnp.asarray(weight)}, Operation())

    def init_state(self, *_: Any, **__: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(40))

    def update(self, x: jax.Array) -> Any:
        y: Any = self.w.execute(x)
        self.h.value = 0.5 * self.h.value + jnp.tanh(y)
        return self.h.value


@pytest.mark.parametrize("form", ADDED_TWICE)
def test_of_a_product_that_is_added_to_itself(form: str) -> None:
    x, t = (np.random.default_rng(1).standard_normal((3, 2, size)) for size in (30, 40))
    learner, params = pb.capture(AddedTwice(form), x[0, 0], algorithm=RULES["D_RTRL published"])
    batched = pb.vmap(learner, 2)
    exact = pb.vmap(pb.capture(AddedTwice(form), x[0, 0], algorithm=RULES["BPTT"])[0], 2)
    each, _ = pb.sequence_grad(exact, squared, reduction="none")(params, None, x, t)
    norms, _ = pb.sample_norms(batched, squared)(params, None, x, t)
    assert_gradients_alive(each)
    assert_close(norms, jnp.sqrt((each["w"]["weight"] ** 2).sum((1, 2))))
    total, _ = pb.sequence_grad(batched, squared, window=1, reduction="sum")(params, None, x, t)
    assert_close(total["w"]["weight"], each["w"]["weight"].sum(0))


@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (lambda x, w: x @ w, ((5,), (5,), ())),
        (lambda x, w: jnp.tensordot(x, w, (0, 0)), ((6, 4), (6, 9), (4, 9))),
    ],
    ids=["of vectors", "of matrices"],
)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_of_other_products(product: Any, shapes: Any, steps: int) -> None:
    """Whose gradient is no sum of outer products of a vector and a vector."""
    of_x, of_w, of_h = shapes
    rng = np.random.default_rng(2)
    weight, x, t = (rng.standard_normal(shape) for shape in (of_w, (steps, 2, *of_x), (steps, 2, *of_h)))

    def step(p: Any, h: Any, x: Any) -> Any:
        new = 0.9 * h + product(x, p)
        return new, new

    learner, params = pb.capture_function(step, weight, np.zeros(of_h), x[0, 0], algorithm=RULES["D_RTRL published"])
    batched = pb.vmap(learner, 2)
    each, _ = pb.sequence_grad(batched, squared, reduction="none")(params, None, x, t)
    norms, _ = pb.sample_norms(batched, squared)(params, None, x, t)
    assert_close(norms, jnp.sqrt((each.reshape(2, -1) ** 2).sum(1)))


def test_of_complex_weights_and_of_weights_without_entries() -> None:
    def step(p: Any, h: Any, x: Any) -> Any:
        new = 0.9 * h + (p["turn"] * x).real
        return new, new + p["turn"].imag + p["none"].sum()

    rng = np.random.default_rng(2)
    x, t = rng.standard_normal((2, 3, 2, 2))
    weights = {"turn": np.array([1 + 2j, 0.5 - 1j]), "none": np.zeros((0, 3))}
    learner, params = pb.capture_function(step, weights, np.zeros(2), x[0, 0], algorithm=RULES["D_RTRL published"])
    batched = pb.vmap(learner, 2)
    each, _ = pb.sequence_grad(batched, squared, reduction="none")(params, None, x, t)
    norms, _ = pb.sample_norms(batched, squared)(params, None, x, t)
    want = jnp.sqrt((jnp.abs(each["turn"]) ** 2).sum(1))
    assert_close(norms, want)
    clipped, _ = pb.clipped_grad(batched, squared, 0.5, reduction="sum")(params, None, x, t)
    assert_close(clipped["turn"], (each["turn"] * (0.5 / want)[:, None]).sum(0))


class TestLossesWithoutAHash:
    def made(self) -> Any:
        def step(p: Any, h: Any, x: Any) -> Any:
            new = 0.9 * h + p @ x
            return new, new

        learner, params = pb.capture_function(
            step, np.ones((2, 3)), np.zeros(2), np.zeros(3), algorithm=RULES["D_RTRL"]
        )
        return pb.vmap(learner, 2), params, np.ones((4, 2, 3)), np.zeros((4, 2, 2))

    def test_are_compiled_once(self) -> None:
        @dataclasses.dataclass
        class Scaled:
            scale: float
            traced: int = 0

            def __call__(self, output: Any, target: Any) -> Any:
                self.traced += 1
                return self.scale * ((output - target) ** 2).sum()

        batched, params, *data = self.made()
        loss = Scaled(2.0)
        grad_fn = pb.clipped_grad(batched, loss, 1.0)
        grad_fn(params, None, *data)
        count = loss.traced
        grad_fn(params, None, *data)
        assert loss.traced == count > 0

    def test_may_give_a_number_of_python(self) -> None:
        batched, params, *data = self.made()
        gradients, _ = pb.clipped_grad(batched, lambda output, target: 0.0, 1.0)(params, None, *data)
        assert not gradients.any()
