"""A derivative of a gradient: an error for online rules, and right where credit is backpropagated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
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
    direction = jax.tree.map(jnp.ones_like, made.params)

    def moved(by: float) -> Any:
        return jax.tree.map(lambda leaf, way: leaf + by * way, made.params, direction)

    got = sum(leaf.sum() for leaf in jax.tree.leaves(jax.grad(total)(made.params)))
    want = (total(moved(1e-5)) - total(moved(-1e-5))) / 2e-5
    assert abs(want) > 1e-3
    assert abs(got - want) < 1e-6 * abs(want) + 1e-7


def test_of_a_trace_between_windows_is_refused() -> None:
    """The trace depends on the weights, and is held constant; truncated BPTT has none."""
    made, windowed = bench(NAME, 0, RULES["D_RTRL multi-step"]), bench(NAME, 0, RULES["BPTT"])

    def total(one: Any) -> Callable[[Any], Any]:
        grad_fn = pb.sequence_grad(one.batched("vmap"), one.model.loss, window=2)
        return slope(lambda params: grad_fn(params, None, *one.data(STEPS, SAMPLES))[0])

    with pytest.raises(AlgorithmError, match="the second would be wrong"):
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
