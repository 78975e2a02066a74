"""`key=`: a fresh start draws new random numbers at each call, and every life of a sample its own."""

import jax
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.errors import DtypeError, OptionError

from .alive import assert_gradients_alive
from .bench import SAMPLES, STEPS, Bench, Request, bench
from .trees import assert_identical, assert_not_identical, sample

DRIVERS = {
    "sequence_grad": pb.sequence_grad,
    "sample_norms": pb.sample_norms,
    "clipped_grad": lambda learner, loss: pb.clipped_grad(learner, loss, 1.0),
}
every_driver = pytest.mark.parametrize("driver", DRIVERS)
random_models = pytest.mark.parametrize("name", ["noisy", "random_start"])


def run(made: Bench, driver: str, seed: int | None, carry: pb.Carry | None = None, **flags: np.ndarray) -> tuple:
    key = None if seed is None else jax.random.key(seed)
    return DRIVERS[driver](made.batched("vmap"), made.model.loss)(
        made.params, carry, *made.data(STEPS, SAMPLES), key=key, **flags
    )


@every_driver
@random_models
def test_a_fresh_start_draws_anew(name: str, driver: str, seed: int) -> None:
    made = bench(name, seed)
    first, second = run(made, driver, 1), run(made, driver, 2)
    assert_not_identical(first[0], second[0])
    assert_identical(run(made, driver, 1), first)


@random_models
def test_it_is_the_start_of_that_key(name: str, seed: int) -> None:
    made = bench(name, seed)
    got, want = (
        run(made, "sequence_grad", 5),
        run(made, "sequence_grad", None, made.batched("vmap").init(jax.random.key(5))),
    )
    assert_gradients_alive(want[0])
    assert_identical(got, want)


@every_driver
@random_models
def test_a_fresh_start_needs_one(name: str, driver: str, seed: int) -> None:
    made = bench(name, seed)
    with pytest.raises(
        OptionError, match=r"^key: got None, expected a random key, since \w+ draws random numbers\. Pass"
    ):
        run(made, driver, None)


def test_a_reset_needs_one_where_the_start_is_random(seed: int) -> None:
    made, reset = bench("random_start", seed), np.ones((STEPS, SAMPLES), bool)
    carry = made.start("vmap")
    with pytest.raises(OptionError, match=r"in its initial state, and a reset starts samples anew\. Pass key="):
        run(made, "sequence_grad", None, carry, reset=reset)
    run(made, "sequence_grad", 0, carry, reset=reset)
    noisy = bench("noisy", seed)
    run(noisy, "sequence_grad", None, noisy.start("vmap"), reset=reset)  # its keys go on


def test_no_key_is_needed_where_nothing_is_drawn(seed: int) -> None:
    made = bench("tutorial", seed)
    assert_identical(run(made, "sequence_grad", 3), run(made, "sequence_grad", None))
    with pytest.raises(DtypeError, match=r"^key: got .*, expected one random key"):
        made.grad_fn(Request("vmap"))(made.params, None, *made.data(STEPS, SAMPLES), key=3.0)


@pytest.mark.parametrize("strategy", ["loop", "vmap", "manual"])
def test_every_life_starts_differently(strategy: str, seed: int) -> None:
    """Of a sample that starts anew at each step, and of two samples."""
    made = bench("random_start", seed)
    starts = []
    for last in (STEPS - 2, STEPS - 1):
        reset, mask = np.zeros((STEPS, SAMPLES), bool), np.ones((STEPS, SAMPLES), bool)
        reset[last], mask[last:] = True, False  # the carry is what the reset drew
        grad_fn = pb.sequence_grad(made.batched(strategy), made.model.loss)
        _, aux = grad_fn(
            made.params, None, *made.data(STEPS, SAMPLES), mask=mask, reset=reset, key=jax.random.key(seed)
        )
        starts.append(aux.carry.hidden)
    assert_not_identical(*starts)
    assert_not_identical(sample(starts[0], 0), sample(starts[0], 1))
