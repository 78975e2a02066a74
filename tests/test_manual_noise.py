"""`pb.manual` draws for each sample what `pb.loop` draws, whatever the shape in which the step asks for it."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import brainpy.state
import brainscale
import brainstate
import braintrace
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import MinimalRNNCell
from brainstate import HiddenState
from brainstate.nn import Dropout, Module

import pure_batching as pb
from pure_batching.errors import RandomnessError, SampleCouplingError

from .bench import RULES
from .layers import Driven, linear
from .models import N_IN, N_REC
from .modules import DeltaProj, Normalized
from .trees import assert_close, assert_identical, assert_not_identical, sample

Tree = Any
STEPS, SAMPLES, WINDOW = 4, 3, 2
D = RULES["D_RTRL published"]
RATE: Any = 300.0 * u.Hz
ENVIRON = {"fit": True, "dt": 1.0 * u.ms}


def numbers(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape))


def squared(output: Any, target: Any) -> Any:
    return ((output[0] - target) ** 2).sum()


PARAMS = {"w": numbers(3, 4), "sigma": 0.1 + numbers(4) ** 2, "v": numbers(2, 4)}
STATE = {"key": jax.random.key(0), "h": jnp.zeros(4), "count": jnp.zeros((), jnp.int32)}

# `(params, key, x, state) -> (what is added to h, what is shown of the draw)`.
Draw = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def batched(draw: Draw) -> Any:
    """A function of one sample whose state is a key, a hidden state that the draw moves, and a count."""

    def step(p: Any, s: Any, x: Any) -> Any:
        key, own = jax.random.split(s["key"])
        noise, shown = draw(p, own, x, s)
        h = 0.8 * s["h"] + jnp.tanh(x @ p["w"] + noise)
        return {"key": key, "h": h, "count": s["count"] + 1}, (h, shown)

    return step


def same(noise: Any, factor: float = 1.0) -> tuple[Any, Any]:
    return factor * noise, noise


def two_draws(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    one, other = jax.random.split(key)
    a, b = jax.random.uniform(one, s["h"].shape), jax.random.bernoulli(other, 0.4, s["h"].shape)
    return a * b, (a, b)


def one_key_twice(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    a, b = jax.random.normal(key, s["h"].shape), jax.random.uniform(key, (4,))
    return a - b, (a, b)


def of_a_fixed_key(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return same(jax.random.normal(key, s["h"].shape) + jax.random.normal(jax.random.key(3), s["h"].shape))


def of_several_keys(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    """A batch that makes its own keys draws, for all that, what one sample draws."""
    draw = functools.partial(jax.random.uniform, shape=(4,))
    return same(draw(key) if x.ndim == 1 else jax.vmap(draw)(jax.random.split(key, len(x))[::-1]))


def of_a_drawn_rate(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    """A draw that is the rate of another, and meets the state elsewhere."""
    one, other = jax.random.split(key)
    rate = jax.random.uniform(one, s["h"].shape, minval=1.0, maxval=4.0)
    spikes = jax.random.poisson(other, rate)
    return 0.2 * s["h"] * rate + 0.2 * spikes, (rate, spikes)


def of_raw_keys(p: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return of_several_keys(p, jax.random.split(jax.random.key_data(key))[1], x, s)


def in_a_loop(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    def one(_: Any, held: tuple[Any, Any]) -> tuple[Any, Any]:
        key, own = jax.random.split(held[0])
        return key, held[1] + jax.random.uniform(own, s["h"].shape)

    return same(jax.lax.fori_loop(0, 3, one, (key, jnp.zeros(s["h"].shape)))[1], 0.3)


def in_a_branch(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    def drawn(key: Any) -> Any:
        return jax.random.uniform(key, s["h"].shape)

    return same(jax.lax.cond(s["count"] % 2 == 0, drawn, lambda _: jnp.zeros(s["h"].shape), key))


def through_a_weight(p: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    noise = jax.random.normal(key, (2,))
    return noise @ p["v"], noise


def beside_the_input(p: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    noise = jax.random.normal(key, (2,))
    both = jnp.concatenate([x, jnp.broadcast_to(noise, (*x.shape[:-1], 2))], -1)
    return both @ jnp.concatenate([p["w"], p["v"]]), noise


def of_the_count(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return same(jax.random.uniform(jax.random.fold_in(key, s["count"]), x.shape)[..., :1])


def of_the_input(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    """A key that is folded with a number of the input."""

    def drawn(row: Any) -> Any:
        return jax.random.uniform(jax.random.fold_in(key, row[0] > 0), (4,))

    return same(drawn(x) if x.ndim == 1 else jax.vmap(drawn)(x))


def with_an_axis_in_front(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    noise = jax.random.normal(key, (4,))
    return jnp.expand_dims(noise, tuple(range(x.ndim - 1))), noise


def spread(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    noise = jax.random.normal(key, (4,))
    return jnp.exp(jnp.broadcast_to(noise, s["h"].shape)), noise


def scaled_by_a_weight(p: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    noise = jax.random.normal(key, (4,))
    return p["sigma"] * noise, noise


def chosen(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    noise = jax.random.bernoulli(key, 0.5, (4,))
    return jnp.where(noise, s["h"], 1.0), noise


DRAWS: dict[str, Draw] = {
    "normal": lambda _, key, x, s: same(jax.random.normal(key, s["h"].shape), 0.5),
    "bounded by inputs": lambda _, key, x, s: same(jax.random.uniform(key, s["h"].shape, maxval=x[..., :1], minval=-1)),
    "bernoulli": lambda _, key, x, s: same(jax.random.bernoulli(key, 0.3, s["h"].shape)),
    "randint": lambda _, key, x, s: same(jax.random.randint(key, s["h"].shape, -2, 3), 0.3),
    "truncated normal": lambda _, key, x, s: same(jax.random.truncated_normal(key, -1.0, 0.5, s["h"].shape)),
    "categorical": lambda _, key, x, s: same(jax.random.categorical(key, x)[..., None]),
    "Poisson": lambda _, key, x, s: same(jax.random.poisson(key, jnp.exp(x[..., :1]) * jnp.ones(4)), 0.2),
    "gamma": lambda _, key, x, s: same(jax.random.gamma(key, 1.5, s["h"].shape)),
    "two draws": two_draws,
    "one key twice": one_key_twice,
    "a key of the count": of_the_count,
    "a key of the input": of_the_input,
    "a fixed key": of_a_fixed_key,
    "a drawn rate": of_a_drawn_rate,
    "raw keys": of_raw_keys,
    "several keys": of_several_keys,
    "in a loop": in_a_loop,
    "in a branch": in_a_branch,
    # What the samples would share, if a batch had one key.
    "shared": lambda _, key, x, s: same(jax.random.normal(key, (4,))),
    "shared number": lambda _, key, x, s: same(jax.random.normal(key)),
    "shared, with an axis in front": with_an_axis_in_front,
    "shared, spread": spread,
    "shared, scaled by a weight": scaled_by_a_weight,
    "shared, chosen": chosen,
    "shared, through a weight": through_a_weight,
    "shared, beside the input": beside_the_input,
}  # fmt: skip

# Samplers that compute with floats, whose rounding depends on how XLA groups the operations.
ROUNDED = ("gamma",)


def captured(draw: Draw, rule: pb.Algorithm = D) -> tuple[pb.Learner, Any]:
    return pb.capture_function(batched(draw), PARAMS, STATE, jnp.zeros(3), algorithm=rule)


def data(*shape: int) -> tuple[Any, Any]:
    return numbers(STEPS, SAMPLES, *shape, seed=7), np.zeros((STEPS, SAMPLES))


def run(learner: pb.Learner, params: Any, strategy: Any, loss: Any, given: Any, **options: Any) -> tuple[Any, Any]:
    grad_fn = pb.sequence_grad(
        strategy(learner, SAMPLES), loss, reduction="none", window=WINDOW, outputs=True, **options
    )
    return grad_fn(params, None, *given, key=jax.random.key(5))


def assert_as_loop(learner: pb.Learner, params: Any, loss: Any, given: Any) -> Any:
    """The same keys and integers bit for bit, and the same gradients, outputs, states and traces up to rounding."""
    (want, loop), (got, aux) = (run(learner, params, by, loss, given) for by in (pb.loop, pb.manual))
    assert_close(got, want)
    assert_close(aux, loop)
    assert_identical(aux.carry.keys, loop.carry.keys)
    assert any(np.abs(np.asarray(leaf)).max() > 1e-3 for leaf in jax.tree.leaves(got))  # the comparison is alive
    return aux, loop


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_is_that_of_the_loop(name: str) -> None:
    learner, params = captured(DRAWS[name])
    aux, loop = assert_as_loop(learner, params, squared, data(3))
    shown, want = aux.outputs[1], loop.outputs[1]
    (assert_close if name in ROUNDED else assert_identical)(shown, want)
    for leaf in jax.tree.leaves(shown):
        assert_not_identical(sample(leaf, 0, axis=1), sample(leaf, 1, axis=1))  # each sample has noise of its own
        assert_not_identical(leaf[0], leaf[1])  # and so has each step


@pytest.mark.parametrize("name", ["Poisson", "gamma", "shared, spread", "shared, through a weight"])
def test_the_samples_are_proved_independent(name: str) -> None:
    found = pb.audit(captured(DRAWS[name])[0], probe=False)
    assert found.is_independent, str(found)
    assert found.strategy == "pb.manual"


def test_keys_that_a_step_does_not_change_or_gives_out() -> None:
    def step(p: Any, s: Any, x: Any) -> Any:
        own = jax.random.fold_in(s["key"], s["count"])
        h = 0.8 * s["h"] + jnp.tanh(x @ p["w"]) + jax.random.normal(own, s["h"].shape)
        moved = jax.random.fold_in(s["moving"], 1)
        return {"key": s["key"], "moving": moved, "h": h, "count": s["count"] + 1}, (h, own, s["moving"])

    learner, params = pb.capture_function(
        step, PARAMS, {**STATE, "moving": jax.random.key(1)}, jnp.zeros(3), algorithm=D
    )
    aux, loop = assert_as_loop(learner, params, squared, data(3))
    start = pb.manual(learner, SAMPLES).init(jax.random.key(5)).keys
    assert_identical(*(jax.tree.map(jax.random.key_data, one.outputs[1:]) for one in (aux, loop)))
    assert_identical(aux.carry.keys["state.key"], start["state.key"])
    assert_not_identical(aux.carry.keys["state.moving"], start["state.moving"])


def test_keys_of_a_sample_are_its_own_already() -> None:
    """A batch that makes a key of what each sample has draws what it drew before."""

    def step(p: Any, s: Any, x: Any) -> Any:
        def drawn(seed: Any) -> Any:
            return jax.random.normal(jax.random.key(seed), (4,))

        noise = drawn(s["seed"]) if x.ndim == 1 else jax.vmap(drawn)(s["seed"])
        h = 0.8 * s["h"] + jnp.tanh(x @ p["w"]) + noise
        return {"h": h, "seed": 7 * s["seed"] + jnp.floor(9 * x[..., 0]).astype(int)}, (h, noise)

    state = {"h": jnp.zeros(4), "seed": jnp.zeros((), int)}
    learner, params = pb.capture_function(step, PARAMS, state, jnp.zeros(3), algorithm=D)
    aux, loop = assert_as_loop(learner, params, squared, data(3))
    assert "state.seed" in aux.carry.other
    assert_identical(aux.outputs[1], loop.outputs[1])
    assert_not_identical(aux.outputs[1][1, 0], aux.outputs[1][1, 1])


class Membrane(Module):
    """Noise in a membrane, of the size that the layer has for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.noise = brainscale.nn.Linear(N_IN, N_REC), brainstate.random.RandomState(0)

    def init_state(self, batch_size: int | None = None) -> None:
        self.v = HiddenState(jnp.zeros(N_REC if batch_size is None else (batch_size, N_REC)))

    def update(self, x: Any) -> Any:
        self.v.value = 0.9 * self.v.value + self.weight(x) + 0.3 * self.noise.randn(N_REC)
        return self.v.value


class Between(Module):
    """Dropout between two recurrent layers, and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MinimalRNNCell(N_IN, N_REC), MinimalRNNCell(N_REC, N_REC)
        self.drop, self.last = Dropout(0.6), Dropout(0.8)

    def update(self, x: Any) -> Any:
        return self.last(self.second(self.drop(self.first(x))))


class Background(Module):
    """Spikes at random that reach neurons through a weight of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Driven(brainpy.state.LIF)
        self.spikes = brainpy.state.PoissonSpike(N_IN, RATE)
        self.syn = DeltaProj(comm=linear(N_IN, u.mV, 8.0), post=self.inner.neu)

    def update(self, x: Any) -> Any:
        self.syn(self.spikes() * 1.0)
        return self.inner(x)


class Traced(Module):
    """A cell of BrainTrace behind dropout, and noise that reaches it through an operation of BrainTrace."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.drop = braintrace.nn.MinimalRNNCell(N_IN, N_REC), Dropout(0.6)
        self.weight = braintrace.nn.Linear(N_REC, N_IN)

    def update(self, x: Any) -> Any:
        return self.cell(self.drop(x) + self.weight(brainstate.random.randn(N_REC)))


MODULES = (Membrane, Between, Background, Traced)


def of_module(make: Callable[[], Module], rule: str, *shape: int, **options: Any) -> tuple[pb.Learner, Any]:
    with brainstate.environ.context(precision=64, **ENVIRON), brainstate.random.seed_context(0):
        net = make()
        return pb.capture(net, jnp.zeros(shape), algorithm=RULES[rule], environ=ENVIRON, **options)


def of_output(output: Any, target: Any) -> Any:
    return ((output - 0.5 * target) ** 2).sum()


@pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published"])
@pytest.mark.parametrize("kind", MODULES)
def test_a_module_is_as_the_loop(kind: type[Module], rule: str) -> None:
    learner, params = of_module(kind, rule, N_IN)
    xs, targets = data(N_IN)
    aux, loop = assert_as_loop(learner, params, of_output, (3 * np.abs(xs), targets + 1))
    if kind is Background:
        assert_identical(aux.outputs, loop.outputs)
        assert np.unique(aux.outputs).size > 1  # some neurons fire


def test_explain_and_cost_tell_of_one_sample() -> None:
    learner, _ = of_module(Membrane, "D_RTRL published", N_IN)
    batched = pb.manual(learner, SAMPLES)
    assert pb.explain(batched).rows == pb.explain(learner).rows
    assert "noise" in str(batched.carry_spec().keys)
    assert {spec.shape[0] for spec in batched.carry_spec().keys.values()} == {SAMPLES}


class Rows(Module):
    """Dropout and batch normalisation along a named axis, and noise of a key that the place along it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = Normalized((6, 2), N_REC, axis_name="batch"), Dropout(0.6)

    def update(self, x: Any) -> Any:
        key = jax.random.fold_in(brainstate.random.split_key(), jax.lax.axis_index("batch"))
        return self.inner(self.drop(x) + jax.random.uniform(key, (6, 2)))


def test_along_a_named_axis() -> None:
    learner, params = of_module(Rows, "ES_D_RTRL", 6, 2, axis_name="batch")
    given = data(6, 2)
    (want, one), (got, other) = (run(learner, params, by, of_output, given) for by in (pb.vmap, pb.manual))
    assert_close(got, want)
    assert_close(other, one)
    assert_identical(other.carry.keys, one.carry.keys)


def drops_weights(p: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return x @ (p["w"] * jax.random.bernoulli(key, 0.5, (3, 4))), ()


def drops_inputs(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return x[..., jax.random.permutation(key, 3)][..., :1], ()


def turned(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return (s["h"].T * jax.random.normal(key)).T, ()


def flattened(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return jax.random.normal(key, (s["h"].size,)).reshape(s["h"].shape), ()


def two_for_a_batch(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    noise = jax.random.normal(key, s["h"].shape)
    return noise + (jax.random.normal(key, (4,)) if x.ndim > 1 else 0.0), ()


def of_a_state(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return jax.random.poisson(key, jnp.exp(s["h"])) * 1.0, ()


def of_a_weight(p: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    return jax.random.gamma(key, p["sigma"], s["h"].shape), ()


def beside_a_state(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    def one(held: Any, key: Any) -> Any:
        return held + 0.1 * jax.random.normal(key, held.shape), None

    return jax.lax.scan(one, s["h"], jax.random.split(key, 3))[0], ()


def of_several_steps(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    keys = jax.random.split(key, 5)
    return jax.lax.scan(lambda c, key: (c, jax.random.normal(key, s["h"].shape)), None, keys)[1].sum(0), ()


REFUSED: dict[str, tuple[Draw, str]] = {
    "a weight": (drops_weights, r"that the samples share, until dot_general at \S+:\d+ \(drops_weights\) brings it"),
    "columns": (drops_inputs, r"that the samples share, until gather at \S+:\d+ \(drops_inputs\) brings it"),
    "turned samples": (turned, r"that the samples share, until mul at \S+:\d+ \(turned\) brings it"),
    "a flat array": (flattened, r"of shape \(12,\) at \S+:\d+ \(flattened\) with .*expected the shape \(3, 4\), or"),
    "another number": (two_for_a_batch, "got 2 draws of random numbers with a batch axis, expected 1, as for one"),
    "a state": (of_a_state, r"of shape \(4,\) at \S+:\d+ \(of_a_state\) that depends on 'state.h', expected"),
    "the dose of a weight": (of_a_weight, r"at \S+:\d+ \(of_a_weight\) that depends on 'params.sigma', expected"),
    "a loop over a state": (beside_a_state, r"at \S+:\d+ \(beside_a_state\) that depends on 'state.h', expected"),
    "rows of a scan": (of_several_steps, r"got a draw of shape \(5, 3, 4\) at .*expected the shape \(3, 5, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_apart_is_refused(name: str) -> None:
    draw, text = REFUSED[name]
    learner, _ = captured(draw)
    with pytest.raises(RandomnessError, match=rf"^pb\.manual: .*{text}.*Use pb\.vmap"):
        pb.manual(learner, SAMPLES)
    assert pb.vmap(learner, SAMPLES).batch_size == SAMPLES


def behind_another(_: Any, key: Any, x: Any, s: Any) -> tuple[Any, Any]:
    early, late = jax.random.split(key)
    driven = s["h"] + jax.random.uniform(early, s["h"].shape)
    current = jnp.sin(driven)
    spikes = jax.random.poisson(late, jnp.exp(driven))
    return current + spikes, ()


def test_a_refusal_names_the_draw_that_cannot_be_done() -> None:
    """And not what reads the state and an earlier draw, as the rate of this one does."""
    lines, start = inspect.getsourcelines(behind_another)
    line = start + next(i for i, text in enumerate(lines) if "poisson" in text)
    learner, _ = captured(behind_another)
    text = rf"a draw of shape \(4,\) at \S+:{line} \(behind_another\) that depends on 'state.h', expected"
    with pytest.raises(RandomnessError, match=text):
        pb.manual(learner, SAMPLES)


def test_a_key_that_a_state_changes() -> None:
    def step(p: Any, s: Any, x: Any) -> Any:
        h = 0.8 * s["h"] + jnp.tanh(x @ p["w"] + jax.random.normal(s["key"], s["h"].shape))
        return {"key": jax.random.fold_in(s["key"], s["h"].sum() > 0), "h": h}, h

    state = {"key": STATE["key"], "h": STATE["h"]}
    learner, _ = pb.capture_function(step, PARAMS, state, jnp.zeros(3), algorithm=D)
    with pytest.raises(
        RandomnessError, match=r"got a random key that depends on 'state.h', expected draws of .*pb\.vmap"
    ):
        pb.manual(learner, SAMPLES)


class Kept(Membrane):
    """Noise that is filtered by a state of the layer, which all samples of a batch share."""

    def init_state(self, batch_size: int | None = None) -> None:
        super().init_state(batch_size)
        self.filtered = brainstate.ShortTermState(jnp.zeros(N_REC))

    def update(self, x: Any) -> Any:
        self.filtered.value = 0.5 * self.filtered.value + self.noise.randn(N_REC)
        return super().update(x) + self.filtered.value


class Checked(Membrane):
    """A chance that is drawn, and that BrainState checks in a way that JAX cannot map."""

    def update(self, x: Any) -> Any:
        return super().update(x) + brainstate.random.bernoulli(self.noise.rand(N_REC))


def test_what_no_strategy_can_map() -> None:
    learner, _ = of_module(Checked, "ES_D_RTRL", N_IN)
    text = r"until cond at .*\(Checked.update\) cannot be mapped, expected .* Draw an array .* in front\.$"
    with pytest.raises(RandomnessError, match=text):
        pb.manual(learner, SAMPLES)


def test_a_state_that_is_kept_once_has_no_room_for_noise() -> None:
    learner, _ = of_module(Kept, "ES_D_RTRL", N_IN)
    with pytest.raises(RandomnessError, match=r"got a draw that reaches 'filtered', which the samples share"):
        pb.manual(learner, SAMPLES)


class Sometimes(Between):
    """Dropout for one sample only."""

    def update(self, x: Any) -> Any:
        return super().update(x) if x.ndim == 1 else self.second(self.first(x))


def test_a_batch_that_draws_nothing() -> None:
    learner, _ = of_module(Sometimes, "ES_D_RTRL", N_IN)
    with pytest.raises(
        RandomnessError, match=r"draws from the random keys \[\] with a batch axis, expected \['brainstate"
    ):
        pb.manual(learner, SAMPLES)


def test_rows_that_look_like_samples_are_coupled() -> None:
    """A scan of as many rows as there are samples: the audit of the batch sees what shapes cannot."""
    learner, _ = captured(of_several_steps)
    with pytest.raises(SampleCouplingError, match=r"reduce_sum at .*of_several_steps"):
        pb.manual(learner, 5)
