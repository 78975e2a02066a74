"""What a learner owns is freed with it, and what it hands out belongs to the caller."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching._learning.learner import Learner
from pure_batching.errors import LossError

from .bench import RULES, SAMPLES, STEPS, bench
from .models import MODELS, N_REC
from .trees import assert_close, assert_identical

NAME = "MinimalRNNCell"


def squared(output: jax.Array, target: jax.Array) -> jax.Array:
    return ((output - target) ** 2).sum()


def mean_squared(batched: Learner) -> Any:
    """A loss that leads to the learner itself."""
    return lambda output, target: squared(output, target) / batched.lead[0]


def used(rule: str) -> list[weakref.ref[Any]]:
    """Capture, batch and train a module, and let go of everything but weak references."""
    model = MODELS[NAME]
    net = model.build(0)
    learner, params = pb.capture(net, *model.inputs(0), algorithm=RULES[rule])
    inputs, targets = model.inputs(0, STEPS, SAMPLES), model.targets(0, STEPS, SAMPLES)
    for strategy in (pb.loop, pb.vmap, pb.manual):
        batched = strategy(learner, SAMPLES)
        for fun in (pb.sequence_grad(batched, mean_squared(batched)), pb.clipped_grad(batched, squared, 1.0)):
            fun(params, None, inputs, targets)
        jax.jit(batched.step)(params, batched.init(), inputs[0][0])
        jax.grad(lambda p, one=batched: one.step(p, one.init(), inputs[0][0])[1].sum())(params)
    pb.audit(pb.vmap(learner, SAMPLES))
    return [weakref.ref(one) for one in (net, learner.source, learner.program, *jax.tree.leaves(params))]


class TestMemory:
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL multi-step"])
    def test_nothing_outlives_the_last_reference(self, rule: str) -> None:
        left = used(rule)
        gc.collect()
        assert [one() for one in left] == [None] * len(left)

    def test_equal_learners_share_what_was_compiled(self) -> None:
        made, traced = bench(NAME, 0), []

        def loss(output: jax.Array, target: jax.Array) -> jax.Array:
            traced.append(1)
            return squared(output, target)

        def run() -> Any:
            return pb.sequence_grad(pb.vmap(made.learner, SAMPLES), loss)(made.params, None, *made.data(STEPS, SAMPLES))

        first, count = run(), len(traced)
        assert_identical(run(), first)
        assert len(traced) == count > 0

    def test_a_step_traces_the_specification_of_its_carry_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        traced: Callable[..., Any] = Learner._carry_spec
        monkeypatch.setattr(Learner, "_carry_spec", lambda self, **flags: calls.append(1) or traced(self, **flags))
        model = MODELS[NAME]
        learner, params = pb.capture(model.build(0), *model.inputs(0), algorithm=pb.D_RTRL())
        carry = learner.init()
        for _ in range(3):
            carry, _ = learner.step(params, carry, *model.inputs(0))
        assert calls == [1]


class TestParams:
    def test_are_copies(self) -> None:
        model = MODELS[NAME]
        net = model.build(0)
        before = jax.tree.map(np.array, pb.read_states(net))
        learner, params = pb.capture(net, *model.inputs(0), algorithm=pb.ES_D_RTRL(0.9))
        jax.tree.map(lambda leaf: leaf.delete(), params)  # as jax.jit does with what is donated
        assert_identical(pb.read_states(net), before)
        pb.manual(learner, SAMPLES)


class Weighted(eqx.Module):
    """A loss with an array of its own."""

    weights: jax.Array
    power: int = eqx.field(static=True, default=2)

    def __call__(self, output: jax.Array, target: jax.Array) -> jax.Array:
        return (self.weights * (output - target) ** self.power).sum()


class WithArray:
    """A loss that JAX knows no parts of; its equality gives no bool."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, weights: Any) -> None:
        self.weights = weights

    def __eq__(self, other: object) -> Any:
        return self.weights == other

    def __call__(self, output: jax.Array, target: jax.Array) -> jax.Array:
        return (self.weights * (output - target) ** 2).sum()

    def method(self, output: jax.Array, target: jax.Array) -> jax.Array:
        return self(output, target)


WEIGHTS = np.linspace(0.5, 2.0, N_REC)
LOSSES: dict[str, Callable[[], Any]] = {
    "a module": lambda: Weighted(jnp.asarray(WEIGHTS)),
    "a module with an array of numpy": lambda: Weighted(WEIGHTS),  # type: ignore[arg-type]
    "an object that has no hash": lambda: WithArray(WEIGHTS),
    "a method": lambda: WithArray(WEIGHTS).method,
    "a partial function": lambda: eqx.Partial(lambda w, o, t: (w * (o - t) ** 2).sum(), jnp.asarray(WEIGHTS)),
    "a function over an array": lambda: lambda o, t: (WEIGHTS * (o - t) ** 2).sum(),
}


class TestLosses:
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "BPTT"])
    @pytest.mark.parametrize("name", LOSSES)
    def test_any_callable(self, name: str, rule: str) -> None:
        made = bench(NAME, 0, RULES[rule])
        batched, data = made.batched("vmap"), made.data(STEPS, SAMPLES)
        for make in (pb.sequence_grad, pb.sample_norms, lambda *args: pb.clipped_grad(*args, 0.1)):
            got = make(batched, LOSSES[name]())(made.params, None, *data)
            assert_close(got, make(batched, LOSSES["a function over an array"]())(made.params, None, *data))

    def test_arrays_of_a_module_are_arguments(self) -> None:
        """Other numbers give another gradient, and nothing is compiled for them."""
        made, traced = bench(NAME, 0), []

        class Counted(Weighted):
            def __call__(self, output: jax.Array, target: jax.Array) -> jax.Array:
                traced.append(1)
                return super().__call__(output, target)

        def run(factor: float) -> Any:
            loss = Counted(jnp.asarray(factor * WEIGHTS))
            return pb.sequence_grad(made.batched("vmap"), loss)(made.params, None, *made.data(STEPS, SAMPLES))[0]

        once, count = run(1.0), len(traced)
        assert_close(run(3.0), jax.tree.map(lambda leaf: 3 * leaf, once))
        assert len(traced) == count > 0

    def test_one_that_cannot_be_called(self) -> None:
        with pytest.raises(LossError, match="expected a function"):
            pb.sequence_grad(bench(NAME, 0).learner, WEIGHTS)  # type: ignore[arg-type]
