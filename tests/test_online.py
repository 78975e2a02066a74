"""Updates while a sequence runs equal those made between its pieces."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pure_batching as pb
from pure_batching.errors import LossError, OptionError, StructureError

from .bench import RULES, SAMPLES, STEPS, Bench, bench
from .trees import assert_close, assert_differ

OPTIMIZER = optax.adam(1e-2)


def in_pieces(made: Bench, strategy: str | None, every: int, optimizer: Any = OPTIMIZER, **flags: Any) -> Any:
    """The program of the docstring of `online`."""
    learner, data = made.batched(strategy), made.data(STEPS, SAMPLES) if strategy else made.data(STEPS)
    grad_fn = pb.sequence_grad(learner, made.model.loss)
    params, state, carry, losses = made.params, optimizer.init(made.params), learner.init(), []
    for start in range(0, STEPS, every):
        piece = jax.tree.map(lambda x, k=start: x[k : k + every], (tuple(data), flags))
        gradients, aux = grad_fn(params, carry, *piece[0], key=jax.random.key(0), **piece[1])
        extra = {"value": aux.losses.sum() / SAMPLES, "grad": gradients} if optimizer is not OPTIMIZER else {}
        updates, state = optimizer.update(gradients, state, params, **extra)
        params, carry = optax.apply_updates(params, updates), aux.carry
        losses.append(aux.losses)
    return params, state, pb.Aux(carry, jnp.concatenate(losses), None)


def at_once(made: Bench, strategy: str | None, every: int, optimizer: Any = OPTIMIZER, **flags: Any) -> Any:
    learner, data = made.batched(strategy), made.data(STEPS, SAMPLES) if strategy else made.data(STEPS)
    train = pb.online(learner, made.model.loss, optimizer, every=every)
    return train(made.params, optimizer.init(made.params), None, *data, key=jax.random.key(0), **flags)


@pytest.mark.parametrize("every", [1, 4, STEPS, STEPS + 1])
@pytest.mark.parametrize("strategy", [None, "vmap", "manual"])
@pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published", "D_RTRL multi-step", "BPTT"])
def test_equals_its_meaning(rule: str, strategy: str | None, every: int) -> None:
    made = bench("tutorial", 0, RULES[rule])
    got, want = at_once(made, strategy, every), in_pieces(made, strategy, every)
    assert_close(got, want)
    assert jax.tree.structure(got[0]) == jax.tree.structure(made.params)  # units included


def test_masks_and_resets() -> None:
    made = bench("LSTMCell", 0, RULES["D_RTRL published"])
    mask, reset = np.ones((STEPS, SAMPLES), bool), np.zeros((STEPS, SAMPLES), bool)
    mask[1, 0], reset[3, 1] = False, True
    flags = {"mask": mask, "reset": reset}
    assert_close(at_once(made, "vmap", 2, **flags), in_pieces(made, "vmap", 2, **flags))


def by_loss(gradients: Any, state: Any, params: Any = None, *, value: Any, grad: Any) -> Any:
    """A rule that names what it takes, without `**extra_args`."""
    del params
    return jax.tree.map(lambda g, same: -0.005 * (g + same) / value, gradients, grad), state + 1


TAKE_THE_LOSS = {
    "reduce_on_plateau": optax.chain(optax.sgd(1e-2), optax.contrib.reduce_on_plateau(factor=0.5, patience=1)),
    "polyak_sgd": optax.polyak_sgd(),
    "its own": optax.GradientTransformationExtraArgs(lambda _: jnp.zeros((), int), by_loss),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", TAKE_THE_LOSS)
def test_an_optimizer_that_takes_the_loss(name: str) -> None:
    """It gets that of the steps since the last update, of which the gradient is taken; masked steps have none."""
    made, optimizer = bench("LSTMCell", 0, RULES["D_RTRL published"]), TAKE_THE_LOSS[name]
    mask = np.ones((STEPS, SAMPLES), bool)
    mask[1, 0] = False
    with jax.numpy_dtype_promotion("standard"):  # optax counts in 32 bits
        got, want = (run(made, "vmap", 1, optimizer, mask=mask) for run in (at_once, in_pieces))
    assert_close(got, want)
    assert_differ(got[0], made.params)
    if name == "reduce_on_plateau":
        assert 0.5**STEPS < float(got[1][1].scale) < 1


def test_an_optimizer_that_runs_the_loss_is_refused() -> None:
    made = bench("LSTMCell", 0, RULES["D_RTRL published"])

    def unknown(gradients: Any, state: Any, params: Any = None, *, hessian: Any) -> Any:
        del params
        return gradients, state, hessian

    for optimizer, text in (
        (optax.lbfgs(), r"^optimizer: got one that calls value_fn=.*run the steps again\. Leave the search out"),
        (
            optax.GradientTransformationExtraArgs(optax.sgd(1e-2).init, unknown),  # type: ignore[arg-type]
            r"^optimizer: got TypeError: .*'hessian', expected one whose update takes",
        ),
    ):
        with pytest.raises(OptionError, match=text):
            at_once(made, "vmap", 2, optimizer)
    trained, *_ = at_once(made, "vmap", 2, optax.lbfgs(1e-2, linesearch=None))
    assert_differ(trained, made.params)


def test_a_plain_function() -> None:
    def step(params: Any, h: Any, x: Any) -> Any:
        h = 0.8 * h + jnp.tanh(x @ params["w"])
        return h, h.sum()

    learner, params = pb.capture_function(
        step, {"w": jnp.eye(3)}, jnp.zeros(3), jnp.zeros(3), algorithm=RULES["D_RTRL published"]
    )
    inputs, targets = jnp.ones((20, 2, 3)), jnp.ones((20, 2))
    train = pb.online(pb.vmap(learner, 2), lambda o, t: (o - t) ** 2, optax.sgd(1e-2))
    trained, _, aux = train(params, optax.sgd(1e-2).init(params), None, inputs, targets)
    assert jax.tree.structure(trained) == jax.tree.structure(params)
    assert float(aux.losses[-1].mean()) < 0.1 * float(aux.losses[3].mean())


def test_memory_does_not_grow_with_time() -> None:
    made = bench("LSTMCell", 0, RULES["D_RTRL published"])
    train = pb.online(made.batched("vmap"), made.model.loss, OPTIMIZER, every=2)
    state = OPTIMIZER.init(made.params)

    def temporary(steps: int) -> int:
        lowered = jax.jit(lambda *data: train(made.params, state, None, *data)).lower(*made.data(steps, SAMPLES))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(200) <= temporary(20) + 200 * SAMPLES * 2 * 8  # the losses


def test_refused() -> None:
    made = bench("LSTMCell", 0)
    with pytest.raises(OptionError, match="every: got 0, expected an integer >= 1"):
        pb.online(made.learner, made.model.loss, OPTIMIZER, every=0)
    with pytest.raises(OptionError, match="optimizer: got float, expected one with a method update"):
        pb.online(made.learner, made.model.loss, 1e-3)  # type: ignore[arg-type]
    with pytest.raises(LossError, match="expected a function"):
        pb.online(made.learner, None, OPTIMIZER)  # type: ignore[arg-type]


def test_a_state_of_another_optimizer() -> None:
    made = bench("LSTMCell", 0, RULES["D_RTRL published"])
    train = pb.online(made.batched("vmap"), made.model.loss, OPTIMIZER)
    for state in (optax.sgd(1e-2, momentum=0.9).init(made.params), OPTIMIZER.init({"w": jnp.zeros(3)}), None):
        with pytest.raises(StructureError, match=r"opt_state: got .*Pass optimizer\.init\(params\)"):
            train(made.params, state, None, *made.data(STEPS, SAMPLES))
