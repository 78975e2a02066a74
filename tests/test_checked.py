"""Checks of arguments are remembered, and nothing wrong comes of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching._learning.checked import checked
from pure_batching.errors import DtypeError, PureBatchingError, ShapeError

from .trees import assert_identical, assert_not_identical

N, STEPS = 3, 4


def step(weight: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    new = 0.5 * h + jnp.tanh(weight @ x)
    return new, new


def learner_of() -> pb.Learner:
    args = jnp.ones((N, N), jnp.float32), jnp.zeros(N, jnp.float32), jnp.ones(N, jnp.float32)
    return pb.capture_function(step, *args, algorithm=pb.ES_D_RTRL(0.9))[0]


def floats(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


def squared(output: jax.Array, target: jax.Array) -> jax.Array:
    return ((output - target) ** 2).sum()


class Counter:
    """A check that says how often it ran."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, learner: pb.Learner, first: Any, second: Any, flag: Any = None) -> Any:
        del learner
        self.calls += 1
        return {"second": second, "first": first if flag is None else jnp.asarray(first, jnp.float32)}


class TestMemory:
    def test_a_call_like_the_one_before_is_not_checked(self) -> None:
        learner, check = learner_of(), Counter()
        for seed in range(3):
            first, second = floats(2, seed=seed), floats(3, seed=seed)
            assert_identical(checked(learner, check, first, [second]), {"first": first, "second": [second]})
        assert check.calls == 1

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (floats(3), [floats(3)]),
            (floats(2).astype(jnp.bfloat16), [floats(3)]),
            (np.zeros(2, np.float32), [floats(3)]),
            (floats(2), (floats(3),)),
            (1.0, [floats(3)]),
        ],
        ids=["shape", "dtype", "numpy", "structure", "number"],
    )
    def test_another_one_is(self, first: Any, second: Any) -> None:
        learner, check = learner_of(), Counter()
        checked(learner, check, floats(2), [floats(3)])
        for calls in (2, 3 if isinstance(first, float) else 2):
            assert checked(learner, check, first, second)["first"] is first
            assert check.calls == calls

    def test_one_array_in_two_places(self) -> None:
        """It does not say which place a result is from."""
        learner, check = learner_of(), Counter()
        one, other = floats(2), floats(2, seed=1)
        checked(learner, check, one, one)
        assert_identical(checked(learner, check, one, other), {"first": one, "second": other})

    def test_what_is_converted_is_converted_again(self) -> None:
        learner, check = learner_of(), Counter()
        for seed in range(2):
            first = jnp.arange(seed, seed + 2)
            got = checked(learner, check, first, floats(3), flag=floats(1))["first"]
            assert_identical(got, first.astype(jnp.float32))
        assert check.calls == 2

    def test_another_learner_remembers_for_itself(self) -> None:
        check = Counter()
        for learner in (learner_of(), learner_of()):
            checked(learner, check, floats(2), floats(3))
        assert check.calls == 2


class TestCalls:
    def test_wrong_arguments_behind_right_ones_are_refused(self) -> None:
        batched = pb.vmap(learner_of(), 2)
        grad_fn, weight, data = pb.sequence_grad(batched, squared), floats(N, N), floats(STEPS, 2, N)
        want = grad_fn(weight, None, data, data)[0]
        with pytest.raises(ShapeError, match="inputs"):
            grad_fn(weight, None, floats(STEPS, 2, N + 1), data)
        with pytest.raises(DtypeError, match="params"):
            grad_fn(weight.astype(complex), None, data, data)
        with pytest.raises(PureBatchingError):
            batched.step(weight, None, data[0])  # type: ignore[arg-type]
        assert_identical(grad_fn(weight, None, data, data)[0], want)

    def test_inputs_and_targets_that_were_one_array_once(self) -> None:
        grad_fn, weight = pb.sequence_grad(pb.vmap(learner_of(), 2), squared), floats(N, N)
        one, other = floats(STEPS, 2, N), floats(STEPS, 2, N, seed=1)
        same = grad_fn(weight, None, one, one)[0]
        assert_not_identical(grad_fn(weight, None, one, other)[0], same)
        assert_not_identical(grad_fn(weight, None, other, one)[0], same)
        assert_identical(grad_fn(weight, None, one, jnp.array(one))[0], same)
