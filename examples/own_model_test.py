"""Tests of a model of one's own: every law once, and some of them under Hypothesis with drawn weights and data.

Run it as it stands, or with `python -m pytest examples/own_model_test.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings, strategies as st

import pure_batching as pb
from pure_batching import testing
from pure_batching.testing import strategies as drawn

FEATURES, HIDDEN, STEPS, SAMPLES = 3, 5, 4, 3


def step(params: Any, state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    """The model: a recurrent layer whose neurons tire; one step of one sample."""
    drive = x @ params["in"] + state["rate"] @ params["recurrent"] - state["tired"]
    rate = 0.6 * state["rate"] + 0.4 * jax.nn.relu(drive)
    return {"rate": rate, "tired": 0.9 * state["tired"] + 0.1 * rate}, rate @ params["out"]


def make_model() -> testing.Function:  # each call gives the same weights
    rng = np.random.default_rng(0)
    sizes = {"in": (FEATURES, HIDDEN), "recurrent": (HIDDEN, HIDDEN), "out": (HIDDEN, 2)}
    params = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    return testing.Function(step, params, {"rate": jnp.zeros(HIDDEN), "tired": jnp.zeros(HIDDEN)})


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    return ((output - target) ** 2).sum()


def make_data(seed: int) -> testing.Data:
    rng = np.random.default_rng(seed)
    return testing.Data((rng.normal(size=(STEPS, SAMPLES, FEATURES)),), rng.normal(size=(STEPS, SAMPLES, 2)))


RULE = pb.D_RTRL(rule="published")
# Captured and compiled once, then run on whatever Hypothesis draws.
subject = testing.Subject.of(make_model, RULE, (jnp.zeros(FEATURES),), loss)


def test_every_law_holds() -> None:
    data = make_data(0)
    report = testing.assert_interchangeable(make_model, RULE, data.inputs[0], data.targets, loss)
    print(report)
    assert not report.refused  # every strategy runs the model


@settings(deadline=None, max_examples=20)
@given(weights=st.integers(0, 2**32 - 1), data=st.integers(0, 2**32 - 1))
def test_strategies_agree_for_any_weights(weights: int, data: int) -> None:
    case = testing.Case(subject, drawn.near(subject, weights), make_data(data))
    testing.laws.equality(case)
    testing.laws.locality(case)


@settings(deadline=None, max_examples=20)
@given(order=drawn.permutations(SAMPLES), data=st.integers(0, 2**32 - 1))
def test_the_order_of_samples_does_not_matter(order: list[int], data: int) -> None:
    case = testing.Case(subject, subject.params, make_data(data))
    turned = jax.tree.map(lambda leaf: leaf[:, order], case.data)
    there = case.with_data(turned).result("vmap")
    for one, other in zip(*map(jax.tree.leaves, (case.result("vmap").gradients, there.gradients)), strict=True):
        np.testing.assert_allclose(one[np.array(order)], other, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    for test in (
        test_every_law_holds,
        test_strategies_agree_for_any_weights,
        test_the_order_of_samples_does_not_matter,
    ):
        test()
    print("forty batches were drawn, and every law held")
