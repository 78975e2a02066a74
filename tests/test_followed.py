"""What lies between a product and the hidden states: which of it a trace follows, and what is said of the rest."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.testing._alive import assert_gradients_alive

from .bench import RULES
from .test_function import normal, squared
from .trees import assert_close

STEPS, INPUTS, NEURONS = 5, 3, 4
D, EXACT = RULES["D_RTRL published"], RULES["BPTT"]
STATE = jnp.zeros(NEURONS)
FIXED = np.asarray(normal(NEURONS, NEURONS, seed=5))


class Case(NamedTuple):
    """A step, with the weights and the states that it begins with; `mixing` is the line of the reason."""

    step: Callable[..., Any]
    params: Any
    state: Any = STATE
    mixing: str = ""


def normed(y: Any) -> Any:
    """A layer's norm without weights."""
    away = y - y.mean(-1, keepdims=True)  # the mean is mixed with its elements
    return away / jnp.sqrt((away**2).mean(-1, keepdims=True) + 1e-5)


def leaky(read: Callable[[Any], Any]) -> Callable[..., Any]:
    def step(p: Any, h: Any, x: Any) -> Any:
        new = 0.8 * h + read(x @ p["w"])
        return new, new * (1 - h)

    return step


def lstm(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Gates from one product, which is changed before it is split."""

    def step(p: Any, state: Any, x: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(change(x @ p["w"] + h @ p["u"]) * p["gain"] + p["b"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return step


def relu_gates(p: Any, state: Any, x: Any) -> Any:
    h, c = state
    i, f, g, o = jnp.split(jax.nn.relu(x @ p["w"] + p["b"]), 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return (jax.nn.sigmoid(o) * jnp.tanh(c), c), h + c


def substeps(y: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda _, r: r + 0.2 * (jnp.tanh(y) - r), jnp.zeros(NEURONS))


def turned(y: Any) -> Any:
    """Each round adds the neighbour, so that the first round alone is element by element."""
    return jax.lax.fori_loop(0, 3, lambda _, r: jnp.roll(r, 1) + y, jnp.zeros(NEURONS))


def chosen(y: Any) -> Any:
    return jax.lax.cond(y.shape[-1] > jnp.asarray(2), jnp.tanh, jnp.sin, y)


def without_memory(p: Any, state: Any, x: Any) -> Any:
    """The new value of one state is added to the other: it has no memory, and no group of its own either."""
    z, v = jnp.tanh(x @ p["w"]), state[1]
    return (z, 0.9 * v + z), (0.9 * v + z) * jnp.cos(z)


def beside(p: Any, state: Any, x: Any) -> Any:
    """The product reaches a layer, and its sum one number."""
    h, total = state
    y = x @ p["w"]
    h, total = 0.8 * h + jnp.tanh(y), 0.9 * total + y.sum(-1)
    return (h, total), h * total


def kept_by(change: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """The old state goes through the use of a weight, and the product is added behind it."""

    def step(p: Any, h: Any, x: Any) -> Any:
        new = change(p, h, x) + jnp.tanh(x @ p["w"])
        return new, new * (1 - h)

    return step


def dots_of_one(p: Any, h: Any, x: Any) -> Any:
    return jax.vmap(lambda a, b: jnp.dot(a[None], b[None]))(p["a"], h)


def euler(p: Any, h: Any, x: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda _, v: v - 0.2 * p["a"] * v, h)


def at_given_rates(p: Any, h: Any, x: Any) -> Any:
    """A scan over numbers that belong neither to the weights nor to the data, and a function of it that is jitted."""

    @jax.jit
    def moved(v: Any, rate: Any) -> Any:
        return jnp.where(x[0] > rate, v - rate * p["a"] * v, v + rate * p["a"])

    return jax.lax.scan(lambda v, rate: (moved(v, rate), None), h, np.array([0.1, 0.2]))[0]


def in_two_loops(p: Any, h: Any, x: Any) -> Any:
    return jax.lax.fori_loop(0, 2, lambda _, v: jax.lax.cond(x[0] > 0, lambda: p["a"] * v, lambda: v - p["a"]), h)


LSTM = {
    "w": normal(INPUTS, 4 * NEURONS),
    "u": normal(NEURONS, 4 * NEURONS),
    "gain": 1 + normal(4 * NEURONS, seed=2),
    "b": normal(4 * NEURONS, seed=3),
}
W = {"w": normal(INPUTS, NEURONS)}
KEPT = {**W, "a": 0.8 + 0.1 * normal(NEURONS)}
CHANGED = {**W, "a": 0.8 + 0.1 * normal(2)}

# D_RTRL is exact for these.
FOLLOWED = {
    "relu before the split": Case(relu_gates, {"w": normal(INPUTS, 16), "b": 1 + normal(16)}, (STATE, STATE)),
    "relu of a product": Case(leaky(lambda y: jax.nn.relu(y.reshape(2, 2)).reshape(-1)[::-1]), W),
    "a loop": Case(leaky(substeps), W),
    "a branch": Case(leaky(chosen), W),
    "one number for all": Case(leaky(jnp.tanh), {"w": W["w"][:, :1]}),
    "one number for all, in a loop": Case(leaky(substeps), {"w": W["w"][:, :1]}),
    "a state without memory": Case(without_memory, W, (STATE, STATE)),
    "its sum beside it": Case(beside, W, (STATE, jnp.zeros(()))),
    "some are changed": Case(
        leaky(lambda y: jnp.tanh(y).at[:2].add(0.1).at[1:].multiply(1.5).at[np.array([0, 0])].add(0.1)), W
    ),
    "one number for all, of which some are changed": Case(
        leaky(lambda y: jnp.broadcast_to(y, (NEURONS,)).at[:2].add(0.1)), {"w": W["w"][:, :1]}
    ),
    "pairs": Case(kept_by(lambda p, h, x: jnp.einsum("i,i->i", p["a"], h)), KEPT, 1 + STATE),
    "products of one": Case(kept_by(dots_of_one), KEPT, 1 + STATE),
    "a bias of some": Case(kept_by(lambda p, h, x: (0.8 * h).at[:2].add(p["a"])), CHANGED, 1 + STATE),
    "a gain of some": Case(kept_by(lambda p, h, x: (0.8 * h).at[:2].multiply(p["a"])), CHANGED, 1 + STATE),
    "beside a weight": Case(kept_by(lambda p, h, x: jnp.concatenate([p["a"], 0.8 * h[2:]])), CHANGED, 1 + STATE),
    "written over a weight": Case(
        kept_by(lambda p, h, x: jax.lax.dynamic_update_slice(p["a"], 0.8 * h[1:3], (1,))), KEPT, 1 + STATE
    ),
    "some are set": Case(kept_by(lambda p, h, x: (0.8 * h).at[:2].set(p["a"])), CHANGED, 1 + STATE),
}

# The weight inside gets the gradient of the step, and the other one keeps its trace.
AROUND_STATES = {
    "a branch": lambda p, h, x: jax.lax.cond(x[0] > 0, lambda: p["a"] * h, lambda: 0.5 * h),
    "a bias in a branch": lambda p, h, x: jax.lax.cond(x[0] > 0, lambda: 0.8 * h + p["a"], lambda: 0.8 * h),
    "rounds": euler,
    "a scan over numbers": at_given_rates,
    "a branch in a loop": in_two_loops,
}

# No diagonal rule has a trace for these: one element of the product reaches every neuron.
MIXED = {
    "a norm": Case(leaky(lambda y: jnp.tanh(normed(y))), W, mixing="(normed)"),
    "softmax": Case(leaky(jax.nn.softmax), W, mixing="(leaky.<locals>.step)"),
    "a running sum": Case(leaky(jnp.cumsum), W, mixing="(leaky.<locals>.step)"),
    "some added to others": Case(leaky(lambda y: y.at[:2].add(y[2:])), W, mixing="(<lambda>)"),
    "a fixed matrix": Case(leaky(lambda y: y @ FIXED), W, mixing="(<lambda>)"),
}


def gradients(case: Case, rule: pb.Algorithm, steps: int = STEPS) -> tuple[pb.Learner, Any]:
    learner, params = pb.capture_function(case.step, case.params, case.state, jnp.zeros(INPUTS), algorithm=rule)
    window = 2 if rule is D else None
    fun = pb.sequence_grad(learner, squared, window=window)
    return learner, fun(params, None, 2 * normal(steps, INPUTS, seed=1), np.zeros(steps))[0]


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_followed_equals_backpropagation(name: str) -> None:
    learner, got = gradients(FOLLOWED[name], D)
    ways = {row.weight: row.way for row in pb.explain(learner).rows}
    assert set(ways.values()) == {"trace"}
    assert_gradients_alive(got)
    assert_close(got, gradients(FOLLOWED[name], EXACT)[1])


@pytest.mark.parametrize("name", AROUND_STATES)
def test_a_weight_in_a_loop_leaves_the_others_their_traces(name: str) -> None:
    case = Case(kept_by(AROUND_STATES[name]), KEPT, 1 + STATE)
    learner, got = gradients(case, D)
    assert {row.weight: row.way for row in pb.explain(learner).rows} == {
        "params.a": "gradient of the step",
        "params.w": "trace",
    }
    assert_gradients_alive(got)
    assert_close(got["w"], gradients(case, EXACT)[1]["w"])


# Each of these is `h @ a` for the inputs of the test.
RECURRENT = {
    "in a branch": lambda p, h, x: jax.lax.cond(x[0] < 9, lambda: h @ p["a"], lambda: h),
    "copied in a branch": lambda p, h, x: jax.lax.cond(
        x[0] < 9, lambda: h[:, None] * p["a"], lambda: 2 * h[:, None] * p["a"]
    ).sum(0),
    "over neurons": lambda p, h, x: jax.lax.scan(
        lambda total, row: (total + row[0] * row[1], None), jnp.zeros(NEURONS), (h, p["a"])
    )[0],
    "over columns": lambda p, h, x: jax.lax.map(lambda column: (h * column).sum(), p["a"].T),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_product_in_a_loop_is_no_path_of_its_own(name: str) -> None:
    """As it is none outside: a diagonal trace has no place for what other neurons were."""
    matrix = {**W, "a": normal(NEURONS, NEURONS)}
    steps = RECURRENT[name], lambda p, h, x: h @ p["a"]
    got, want = (gradients(Case(kept_by(step), matrix, 1 + STATE), D)[1]["w"] for step in steps)
    assert_gradients_alive(got)
    assert_close(got, want)


@pytest.mark.parametrize("name", MIXED)
def test_what_is_mixed_gets_the_gradient_of_the_step(name: str) -> None:
    """With the line that mixes it; each step's gradient is that of backpropagation from the state before it."""
    case = MIXED[name]
    learner, got = gradients(case, D)
    (row,) = pb.explain(learner).rows
    assert row.way == "gradient of the step"
    assert row.reason.startswith("its output is mixed or copied at test_followed.py:")
    assert row.reason.endswith("before it reaches state")
    h, total = case.state, jnp.zeros_like(case.params["w"])
    for x in 2 * normal(STEPS, INPUTS, seed=1):
        total += jax.grad(lambda w, h=h, x=x: squared(case.step({"w": w}, h, x)[1], 0))(case.params["w"])
        h, _ = case.step(case.params, h, x)
    assert_gradients_alive(got)
    assert_close(got, {"w": total})
    assert float(jnp.abs(got["w"] - gradients(case, EXACT)[1]["w"]).max()) > 1e-3


def test_a_loop_that_turns_neurons_round_is_mixed() -> None:
    """The second round brings each element to another neuron."""
    learner, got = gradients(Case(leaky(turned), W), D, steps=1)
    (row,) = pb.explain(learner).rows
    assert row.way == "gradient of the step"
    assert row.reason.startswith("its output is mixed or copied at test_followed.py:")
    assert_close(got, gradients(Case(leaky(turned), W), EXACT, steps=1)[1])


def test_a_norm_before_the_gates_of_an_lstm() -> None:
    """Its gain and bias have traces, the two matrices before it the gradient of the step, and each row its line."""
    case = Case(lstm(normed), LSTM, (STATE, STATE))
    learner, got = gradients(case, D, steps=1)
    rows = {row.weight: row for row in pb.explain(learner).rows}
    assert {path: row.way for path, row in rows.items()} == {
        **dict.fromkeys(("params.b", "params.gain"), "trace"),
        **dict.fromkeys(("params.u", "params.w"), "gradient of the step"),
    }
    lines = {rows[path].reason for path in ("params.u", "params.w")}
    assert len(lines) == 1
    assert "(normed) before it reaches state[0]" in lines.pop()
    assert_gradients_alive({path: got[path] for path in ("w", "gain", "b")})
    assert_close(got, gradients(case, EXACT, steps=1)[1])


def test_without_the_norm_the_gates_have_traces() -> None:
    learner, _ = gradients(Case(lstm(jax.nn.relu), LSTM, (STATE, STATE)), D, steps=1)
    assert {row.way for row in pb.explain(learner).rows} == {"trace"}


def test_rtrl_follows_what_is_mixed() -> None:
    case = Case(lstm(normed), LSTM, (STATE, STATE))
    got, want = (gradients(case, rule)[1] for rule in (pb.RTRL(), EXACT))
    assert_gradients_alive(got)
    assert_close(got, want)


def test_a_way_through_another_state_counts_once() -> None:
    """The mean of the new state is a state too: its way belongs to the learning signal of the first."""

    def step(p: Any, state: Any, x: Any) -> Any:
        h, mean = state
        h = 0.5 * h + jnp.tanh(x @ p["w"])
        mean = 0.9 * mean + h.mean(-1)
        return (h, mean), h - mean

    case = Case(step, W, (STATE, jnp.zeros(())))
    learner, got = gradients(case, D, steps=1)
    (row,) = pb.explain(learner).rows
    assert row.groups == ("state[0]",)
    assert_close(got, gradients(case, EXACT, steps=1)[1])


def test_a_state_that_is_reached_in_two_ways_is_named() -> None:
    def step(p: Any, state: Any, x: Any) -> Any:
        h, mean = state
        y = x @ p["w"]
        h = 0.5 * h + jnp.tanh(y)
        mean = 0.9 * mean + h.mean(-1) + y.sum(-1)
        return (h, mean), h - mean

    case = Case(step, W, (STATE, jnp.zeros(())))
    learner, got = gradients(case, D, steps=1)
    (row,) = pb.explain(learner).rows
    assert row.reason == "its output reaches state[1] by itself and through state[0]"
    assert_close(got, gradients(case, EXACT, steps=1)[1])
