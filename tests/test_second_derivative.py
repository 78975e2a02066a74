"""A derivative of a gradient: an error for online rules, and right where credit is backpropagated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import pure_batching as pb
from pure_batching.errors import AlgorithmError

from .bench import ONLINE_RULES, RULES, SAMPLES, STEPS, bench
from .trees import assert_close

NAME = "MinimalRNNCell"


def through_step(made: Any) -> Callable[[Any], Any]:
    """The gradient of one step from a fresh start."""
    batched, inputs = made.batched("vmap"), [x[0] for x in made.data(STEPS, SAMPLES).inputs]
    return jax.grad(lambda params: (batched.step(params, batched.init(), *inputs)[1] ** 2).sum())


def through_sequence(made: Any) -> Callable[[Any], Any]:
    """The gradient of a sequence in one window."""
    grad_fn = pb.sequence_grad(made.batched("vmap"), made.model.loss, reduction="sum")
    return lambda params: grad_fn(params, None, *made.data(STEPS, SAMPLES))[0]


def norms(made: Any) -> Callable[[Any], Any]:
    """The norms of the samples' gradients."""
    fun = pb.sample_norms(made.batched("vmap"), made.model.loss)
    return lambda params: fun(params, None, *made.data(STEPS, SAMPLES))[0]


def slope(gradient: Callable[[Any], Any]) -> Callable[[Any], jax.Array]:
    """The sum of a gradient's entries."""
    return lambda params: sum((leaf.sum() for leaf in jax.tree.leaves(gradient(params))), start=jnp.zeros(()))


@pytest.mark.parametrize("through", [through_step, through_sequence, norms])
@pytest.mark.parametrize("rule", ONLINE_RULES)
def test_of_an_online_rule_is_refused(rule: str, through: Callable[..., Any]) -> None:
    made = bench(NAME, 0, RULES[rule])
    total = slope(through(made))
    for derive in (jax.grad, jax.hessian, lambda fun: jax.jit(jax.grad(fun))):
        with pytest.raises(AlgorithmError, match=r"the second would be wrong\. Use pb\.BPTT\(\)"):
            derive(total)(made.params)
    total(made.params)


@pytest.mark.parametrize("rule", ["BPTT", "D_RTRL multi-step"])
@pytest.mark.parametrize("through", [through_step, through_sequence])
def test_is_that_of_finite_differences(rule: str, through: Callable[..., Any]) -> None:
    made = bench(NAME, 0, RULES[rule])
    total = slope(through(made))
    assert_is_derivative(sum_of(jax.grad(total)(made.params)), total, made.params)


def sum_of(tree: Any) -> Any:
    return sum(leaf.sum() for leaf in jax.tree.leaves(tree))


def assert_is_derivative(got: Any, total: Callable[[Any], Any], params: Any) -> None:
    """It is that of a number by all params at once, by finite differences."""

    def moved(by: float) -> Any:
        return jax.tree.map(lambda leaf: leaf + by, params)

    want = (total(moved(1e-5)) - total(moved(-1e-5))) / 2e-5
    assert abs(want) > 1e-3
    assert abs(got - want) < 1e-6 * abs(want) + 1e-7


def test_of_a_trace_between_windows_is_refused() -> None:
    """The trace depends on the weights, and is held constant; truncated BPTT has none."""
    made, windowed = bench(NAME, 0, RULES["D_RTRL multi-step"]), bench(NAME, 0, RULES["BPTT"])

    def total(one: Any) -> Callable[[Any], Any]:
        grad_fn = pb.sequence_grad(one.batched("vmap"), one.model.loss, window=2)
        return slope(lambda params: grad_fn(params, None, *one.data(STEPS, SAMPLES))[0])

    with pytest.raises(AlgorithmError, match=r"the trace of the carry: .* the derivative would be wrong"):
        jax.grad(total(made))(made.params)
    jax.grad(total(windowed))(windowed.params)


def test_a_first_derivative_is_left_alone() -> None:
    """In a scan, with a checkpoint, and under vmap."""
    made = bench(NAME, 0, RULES["D_RTRL"])
    batched, data = made.batched("vmap"), made.data(STEPS, SAMPLES)

    def total(params: Any, step: Any) -> Any:
        def one(carry: Any, inputs: Any) -> Any:
            after, output = step(params, carry, *inputs)
            return after, (output**2).sum()

        return jax.lax.scan(one, batched.init(), data.inputs)[1].sum()

    plain = jax.grad(total)(made.params, batched.step)
    assert_close(jax.grad(total)(made.params, jax.checkpoint(batched.step)), plain)


class Calls:
    """Several calls from one carry to the next, each of which gives a gradient or an update."""

    def __init__(self, rule: str) -> None:
        self.made = bench(NAME, 0, RULES[rule])
        self.batched, self.data = self.made.batched("vmap"), self.made.data(STEPS, SAMPLES)

    def part(self, steps: slice) -> Any:
        return jax.tree.map(lambda x: x[steps], self.data)

    def of_steps(self, params: Any, carry: pb.Carry) -> Any:
        """The gradient of three calls of `step`."""

        def total(params: Any) -> Any:
            def one(carry: Any, inputs: Any) -> Any:
                after, output = self.batched.step(params, carry, *inputs)
                return after, (output**2).sum()

            return jax.lax.scan(one, carry, self.part(slice(3)).inputs)[1].sum()

        return jax.grad(total)(params)

    def of_sequences(self, params: Any, carry: pb.Carry) -> Any:
        """The gradient of the second of two calls of `sequence_grad`."""
        grad_fn = pb.sequence_grad(self.batched, self.made.model.loss)
        between = grad_fn(params, carry, *self.part(slice(3)))[1].carry
        return grad_fn(params, between, *self.part(slice(3, None)))[0]

    def of_online(self, params: Any, carry: pb.Carry, every: int = 3) -> Any:
        """The params after two updates, as in meta-learning of their start."""
        optimizer = optax.sgd(0.5)
        train = pb.online(self.batched, self.made.model.loss, optimizer, every=every)
        return train(params, optimizer.init(params), carry, *self.data)[0]


WAYS = {"step": Calls.of_steps, "sequence_grad": Calls.of_sequences, "online": Calls.of_online}
BACK = ("RTRL", "D_RTRL multi-step", "D_RTRL published multi-step")
every_way = pytest.mark.parametrize("way", WAYS)


class TestThroughACarry:
    @every_way
    @pytest.mark.parametrize("rule", BACK)
    def test_of_a_trace_is_refused(self, rule: str, way: str) -> None:
        """The trace of the carry depends on the params, and its derivative is not known: backwards and forwards."""
        calls = Calls(rule)
        start, params = calls.batched.init(), calls.made.params
        total = slope(lambda params: WAYS[way](calls, params, start))
        with pytest.raises(AlgorithmError, match=r"the trace of the carry: .* would be wrong\. Use pb\.BPTT\(\)"):
            jax.grad(total)(params)
        with pytest.raises(AlgorithmError, match="the trace of the carry"):
            jax.jvp(total, (params,), (params,))
        assert total(params) != 0

    @every_way
    def test_without_a_trace_is_that_of_finite_differences(self, way: str) -> None:
        calls = Calls("BPTT")
        total = slope(lambda params: WAYS[way](calls, params, calls.batched.init()))
        assert_is_derivative(sum_of(jax.grad(total)(calls.made.params)), total, calls.made.params)

    def test_by_the_inputs_of_an_earlier_call_is_refused(self) -> None:
        """The trace depends on all that the states depend on."""
        calls = Calls("RTRL")
        grad_fn = pb.sequence_grad(calls.batched, calls.made.model.loss)

        def total(scale: Any) -> Any:
            scaled = jax.tree.map(lambda x: scale * x, calls.data.inputs)
            carry = grad_fn(calls.made.params, None, scaled, calls.data.targets)[1].carry
            return sum_of(grad_fn(calls.made.params, carry, *calls.data)[0])

        with pytest.raises(AlgorithmError, match="the trace of the carry"):
            jax.grad(total)(1.0)


class TestFromACarryThatStays:
    """Inside one window from a carry that does not depend on the params, credit is propagated back."""

    @pytest.mark.parametrize("rule", BACK)
    def test_is_that_of_finite_differences(self, rule: str) -> None:
        calls = Calls(rule)
        grad_fn, params = pb.sequence_grad(calls.batched, calls.made.model.loss), calls.made.params
        carry = grad_fn(params, None, *calls.data)[1].carry
        assert all(leaf.any() for leaf in jax.tree.leaves(carry.trace))

        def total(params: Any) -> Any:
            return sum_of(grad_fn(params, carry, *calls.data)[0])

        def stopped(params: Any) -> Any:
            after = grad_fn(params, None, *calls.data)[1].carry
            return sum_of(grad_fn(params, jax.lax.stop_gradient(after), *calls.data)[0])

        got = sum_of(jax.grad(total)(params))
        assert_is_derivative(got, total, params)
        ones = jax.tree.map(jnp.ones_like, params)
        assert_close(jax.linearize(jax.checkpoint(total), params)[1](ones), got)
        two = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
        assert_close(sum_of(jax.vmap(jax.grad(total))(two)), 2 * got)
        assert_close(sum_of(jax.grad(stopped)(params)), got)

    def test_of_one_update(self) -> None:
        calls = Calls("RTRL")
        start, params = calls.batched.init(), calls.made.params
        total = slope(lambda params: calls.of_online(params, start, every=STEPS))
        assert_is_derivative(sum_of(jax.grad(total)(params)), total, params)

    def test_by_the_targets_of_several_windows(self) -> None:
        """No trace depends on a target."""
        calls = Calls("RTRL")
        whole, windowed = (pb.sequence_grad(calls.batched, calls.made.model.loss, window=w) for w in (STEPS, 2))

        def total(targets: Any, grad_fn: Any) -> Any:
            return sum_of(grad_fn(calls.made.params, None, calls.data.inputs, targets)[0])

        got, want = (jax.grad(total)(calls.data.targets, one) for one in (windowed, whole))
        assert all(leaf.any() for leaf in jax.tree.leaves(want))
        assert_close(got, want)
