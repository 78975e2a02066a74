"""What is masked or abandoned may hold NaN or infinity: everything else keeps every bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, strategies as st

import pure_batching as pb
from tests.bench import RULES, SAMPLES, STEPS, STRATEGIES, WINDOW, Bench, Request, bench
from tests.trees import assert_identical, sample

from .subjects import IS_NIGHT

# A traced weight, one that learns by the gradient of the step, and an ordinary one.
MODEL = "readouts"

# By day every window with one strategy, and the other strategies in turn with one window; at night all of both.
WINDOWS = (1, WINDOW, None)


def runs_of(place: int) -> list[tuple[str, int | None]]:
    """The strategies and windows for the rule at a place of the registry."""
    if IS_NIGHT:
        return [(strategy, window) for strategy in STRATEGIES for window in WINDOWS]
    return [*(("vmap", window) for window in WINDOWS), (("manual", "loop")[place % 2], WINDOW)]


RUNS = [
    pytest.param(rule, *run, marks=pytest.mark.xdist_group(rule))
    for place, rule in enumerate(RULES)
    for run in runs_of(place)
]
POISONS = (np.nan, np.inf, -np.inf)

flags = st.lists(st.lists(st.booleans(), min_size=SAMPLES, max_size=SAMPLES), min_size=STEPS, max_size=STEPS).map(
    np.array
)
poisons = st.sampled_from(POISONS)

# Two masked steps and a reset inside a window; a reset at the start of one; a sample without a step.
MASK = np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]], bool)
RESET = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], bool)


def trained(made: Bench) -> pb.Carry:
    """A carry whose traces count, with what samples share for each of them."""
    return pb.apart(made.result(Request("vmap")).aux.carry)


def poisoned(tree: Any, where: np.ndarray, poison: float) -> Any:
    """A tree whose real numbers are the poison where a flag says so."""

    def replace(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return jnp.where(where.reshape(*where.shape, *(1 for _ in leaf.shape[where.ndim :])), poison, leaf)

    return jax.tree.map(replace, tree)


def lives(mask: np.ndarray, reset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which samples forget their carry before their first step, `[B]`, and which steps a later reset ends, `[T, B]`."""
    is_first_life = np.cumsum(reset, 0) == 0
    forgets = ~(mask & is_first_life).any(0) & reset.any(0)
    return forgets, np.cumsum(reset[::-1], 0)[::-1] - reset > 0


def run(
    made: Bench, request: Request, carry: pb.Carry, data: Any, mask: np.ndarray, reset: np.ndarray
) -> tuple[Any, pb.Aux]:
    return made.grad_fn(request)(made.params, carry, *data, mask=mask, reset=reset)


@pytest.mark.parametrize(("rule", "strategy", "window"), RUNS)
@given(mask=flags, reset=flags, poison=poisons)
@example(mask=MASK, reset=RESET, poison=np.nan)
@example(mask=MASK, reset=RESET, poison=np.inf)
def test_a_gradient(rule: str, strategy: str, window: int | None, mask: Any, reset: Any, poison: float) -> None:
    made, request = bench(MODEL, 0, RULES[rule]), Request(strategy, window=window)
    carry, data = trained(made), made.data(STEPS, SAMPLES)
    want = run(made, request, carry, data, mask, reset)
    _, want_aux = want
    assert np.isfinite(want_aux.losses).all()
    forgets, ended = lives(mask, reset)

    forgotten = poisoned(carry, forgets, poison), poisoned(data, ~mask, poison)
    assert_identical(run(made, request, *forgotten, mask, reset), want)

    # A life with steps, whose numbers are no gradient; the next life, and every other sample, is as it was.
    gradients, aux = run(made, request, carry, poisoned(data, ended, poison), mask, reset)
    assert_identical(aux.carry, want_aux.carry)
    assert (np.asarray(aux.losses) == want_aux.losses)[~(ended & mask)].all()
    for i in np.flatnonzero(~(ended & mask).any(0)):
        assert_identical(sample(gradients, i), sample(want[0], i))


@pytest.mark.parametrize("rule", [pytest.param(rule, marks=pytest.mark.xdist_group(rule)) for rule in RULES])
@given(mask=flags, reset=flags, poison=poisons)
@example(mask=MASK, reset=RESET, poison=np.nan)
def test_sums_and_norms(rule: str, mask: Any, reset: Any, poison: float) -> None:
    made = bench(MODEL, 0, RULES[rule])
    carry, data = trained(made), made.data(STEPS, SAMPLES)
    forgets, _ = lives(mask, reset)
    forgotten = poisoned(carry, forgets, poison), poisoned(data, ~mask, poison)
    learner, loss = made.batched("vmap"), made.model.loss
    for fun in (pb.sequence_grad(learner, loss), pb.clipped_grad(learner, loss, 0.5)):
        want = fun(made.params, carry, *data, mask=mask, reset=reset)
        assert_identical(fun(made.params, *_split(forgotten), mask=mask, reset=reset), want)
    fresh = pb.sample_norms(learner, loss)
    want = fresh(made.params, None, *data, mask=mask, reset=reset)
    assert_identical(fresh(made.params, None, *forgotten[1], mask=mask, reset=reset), want)


def _split(forgotten: tuple[pb.Carry, Any]) -> tuple[Any, ...]:
    return forgotten[0], *forgotten[1]
