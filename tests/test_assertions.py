"""An assertion about constants is no part of a step: brainstate's dropout has one, by an ordered callback."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from brainstate.transform import jit_error_if

import pure_batching as pb
from pure_batching.errors import StrategyError


def learner_that_asserts(is_wrong: Any) -> pb.Learner:
    def step(params: Any, h: Any, x: Any) -> Any:
        jit_error_if(is_wrong(x), "wrong")
        h = 0.5 * h + x @ params
        return h, h

    return pb.capture_function(step, jnp.ones((3, 4)), jnp.zeros(4), jnp.zeros(3), algorithm=pb.BPTT())[0]


def effects(learner: pb.Learner) -> Any:
    program = learner.program
    given = (program.params, program.states, program.inputs, program.zero_perturbation(is_complete=False))
    return jax.make_jaxpr(program.execute)(*given).effects


def shared_out(learner: pb.Learner) -> pb.Learner:
    return pb.sharded(learner, 2, mesh=jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2]))


def test_what_always_holds_is_left_out() -> None:
    probability = jnp.asarray(0.4)
    learner = learner_that_asserts(lambda _: (probability < 0) | (probability > 1))
    assert not effects(learner)
    carry, _ = shared_out(learner).step(jnp.ones((3, 4)), shared_out(learner).init(), jnp.ones((2, 3)))
    assert carry.hidden["state"].tolist() == [[3.0] * 4] * 2


@pytest.mark.parametrize("is_wrong", [lambda x: x.sum() > 5, lambda _: jnp.ones((), bool)], ids=["inputs", "wrong"])
def test_what_may_fail_stays(is_wrong: Any) -> None:
    learner = learner_that_asserts(is_wrong)
    assert effects(learner)
    with pytest.raises(StrategyError, match=r"callback that keeps its order, debug_callback.* at test_assertions\.py"):
        shared_out(learner)
