"""Traces that follow the steps of a window after all of them: what they give, and the memory that they take."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import pure_batching as pb
from pure_batching._learning import following
from pure_batching._learning.following import follows_later
from pure_batching._tree import nbytes

from .alive import assert_gradients_alive
from .bench import MULTI_STEP_RULES, RULES
from .models import squared
from .test_boundary import learner_of
from .trees import assert_close

SIZE, STEPS, SAMPLES = 12, 6, 5


@pytest.mark.parametrize("name", RULES)
def test_which_rules_follow_later(name: str) -> None:
    """Those by whose trace credit goes, which is as large as a weight and changes at each step; of a batch alone."""
    learner = learner_of(RULES[name], SIZE)
    assert follows_later(pb.vmap(learner, SAMPLES)) == (name == "D_RTRL")
    assert not follows_later(learner)


def data(seed: int) -> tuple[jax.Array, jax.Array]:
    weight, x = jax.random.split(jax.random.key(seed))
    return (
        jax.random.normal(weight, (SIZE, SIZE), jnp.float32) / SIZE,
        3 * jax.random.normal(x, (STEPS, SAMPLES, SIZE), jnp.float32),
    )


@pytest.mark.parametrize("window", [2, 4, STEPS])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_gradient_is_that_of_single_steps(
    reduction: str, window: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample by sample and all at once, from a carry, one trace of which is broken before its sample starts anew.

    Windows of one step follow at each step.
    """
    weight, x = data(seed)
    flags = {
        "mask": jnp.ones((STEPS, SAMPLES), bool).at[1, 0].set(False).at[3:, 1].set(False),
        "reset": jnp.zeros((STEPS, SAMPLES), bool).at[0, 2].set(True).at[3, 1].set(True),
    }

    def result(window: int) -> Any:
        batched = pb.vmap(learner_of(pb.D_RTRL(), SIZE), SAMPLES)
        grad_fn = pb.sequence_grad(batched, squared, reduction=reduction, window=window, outputs=True)
        assert follows_later(batched)
        _, aux = grad_fn(weight, None, x, x)
        broken = jax.tree.map(lambda leaf: leaf.at[2].set(jnp.nan), aux.carry.trace)
        return grad_fn(weight, aux.carry._replace(trace=broken), x[::-1], x, **flags)

    want = result(1)
    assert_close(result(window), want)
    monkeypatch.setattr(following, "_CACHED", 1)
    assert_close(result(window), want)
    assert_gradients_alive(want[0])
    assert max(scale.max() for scale in jax.tree.leaves(want[1].carry.trace.scales)) > 1


@pytest.mark.parametrize("name", [*MULTI_STEP_RULES, "RTRL"])
def test_the_trace_behind_a_window(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where credit goes back through the window, the trace that goes out is the same however many samples follow."""
    weight, x = data(seed)

    def result() -> Any:
        batched = pb.vmap(learner_of(RULES[name], SIZE), SAMPLES)
        return pb.sequence_grad(batched, squared, window=3)(weight, None, x, x)

    want = result()
    monkeypatch.setattr(following, "_CACHED", 1)
    assert_close(result(), want)
    assert_gradients_alive(want[0])


def test_a_fresh_gradient_holds_the_trace_of_a_few_samples() -> None:
    """And no other: of 64 samples whose traces have 64 KiB each, four follow at a time."""
    batched = pb.vmap(learner_of(RULES["D_RTRL"], 128), 64)
    grad_fn = pb.sequence_grad(batched, squared, window=4)
    specs = [jax.ShapeDtypeStruct((4, 64, 128), jnp.float32)] * 2
    lowered = jax.jit(lambda w, *data: grad_fn(w, None, *data)[0]).lower(batched.program.params["params"], *specs)
    memory: Any = lowered.compile().memory_analysis()
    of_all = nbytes(batched.carry_spec().trace)
    assert of_all == 64 * (2**16 + 4)
    assert memory.temp_size_in_bytes < of_all / 2
