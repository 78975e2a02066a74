"""`key=`: a fresh start draws new random numbers at each call, and every life of a sample its own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.errors import CaptureError, CarryError, DtypeError, OptionError

from .alive import assert_gradients_alive
from .bench import SAMPLES, STEPS, STRATEGIES, Bench, Request, bench
from .trees import assert_close, assert_identical, assert_not_identical, sample

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


def drawing_in_a_loop(params: Any, state: Any, x: Any) -> Any:
    """A step whose key is carried by a loop, so that another kind of key would not fit into it."""

    def one(_: Any, held: Any) -> Any:
        key, own = jax.random.split(held[0])
        return key, held[1] + jax.random.normal(own, state["h"].shape)

    key, noise = jax.lax.fori_loop(0, 2, one, (state["key"], jnp.zeros(state["h"].shape)))
    h = 0.8 * state["h"] + jnp.tanh(x @ params + 0.3 * noise)
    return {"key": key, "h": h}, (h, noise)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_a_key_of_another_implementation(impl: str) -> None:
    """Of such keys JAX draws other numbers in a batch than alone; here every strategy draws what each sample draws."""
    state, x = {"key": jax.random.key(0, impl=impl), "h": jnp.zeros(4)}, np.ones((STEPS, SAMPLES, 3))
    learner, params = pb.capture_function(
        drawing_in_a_loop, jnp.ones((3, 4)), state, jnp.zeros(3), algorithm=pb.D_RTRL("published")
    )
    found = {}
    for name in ("loop", "manual", "sharded") if impl == "rbg" else ("loop", "vmap"):
        grad_fn = pb.sequence_grad(STRATEGIES[name](learner, SAMPLES), _size, reduction="none", outputs=True)
        key = jax.random.key(5, impl=impl)
        found[name] = jax.device_get(grad_fn(params, None, x, np.zeros((STEPS, SAMPLES)), key=key))
        assert_close(found[name][0], found["loop"][0])
        assert_identical(found[name][1].outputs[1], found["loop"][1].outputs[1])
    draws = found["loop"][1].outputs[1]
    assert len({draw.tobytes() for draw in draws.reshape(-1, draws.shape[-1])}) == STEPS * SAMPLES
    alone, _ = learner.step(params, learner.init(jax.random.key(5, impl=impl)), x[0, 0])
    other, _ = learner.step(params, learner.init(jax.random.key(6, impl=impl)), x[0, 0])
    assert_not_identical(alone.hidden, other.hidden)


def _size(output: Any, target: Any) -> Any:
    return (output[0] ** 2).sum() + target


def test_a_reset_by_a_key_of_another_implementation(seed: int) -> None:
    made, reset = bench("random_start", seed), np.ones((STEPS, SAMPLES), bool)
    key = jax.random.key(seed, impl="rbg")
    got, want = (
        pb.sequence_grad(made.batched(strategy), made.model.loss)(
            made.params, None, *made.data(STEPS, SAMPLES), reset=reset, key=key
        )
        for strategy in ("vmap", "loop")
    )
    assert_close(got, want)
    assert_not_identical(sample(got[1].carry.hidden, 0), sample(got[1].carry.hidden, 1))


def test_other_keys_are_refused_where_they_cannot_be_made_over() -> None:
    """In a carry that someone else made, and where the step makes them itself."""
    state = {"key": jax.random.key(0), "h": jnp.zeros(4)}
    learner, params = pb.capture_function(drawing_in_a_loop, jnp.ones((3, 4)), state, jnp.zeros(3), algorithm=pb.BPTT())
    batched = pb.vmap(learner, SAMPLES)
    keys = {path: jax.random.split(jax.random.key(0, impl="rbg"), SAMPLES) for path in batched.init().keys}
    with pytest.raises(CarryError, match=r"^carry\.keys\['state\.key'\]: got key<rbg>, expected key<fry>\."):
        batched.step(params, batched.init()._replace(keys=keys), np.ones((SAMPLES, 3)))

    def own(params: Any, state: Any, x: Any) -> Any:
        key = jax.random.key(jax.random.bits(state["key"]), impl="rbg")
        return drawing_in_a_loop(params, {**state, "h": state["h"] + jax.random.normal(key, state["h"].shape)}, x)

    text = r"^own: got random keys of another implementation at test_key\.py:\d+ \(own\), expected keys of threefry2x32"
    with pytest.raises(CaptureError, match=text):
        pb.capture_function(own, jnp.ones((3, 4)), state, jnp.zeros(3), algorithm=pb.BPTT())


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
