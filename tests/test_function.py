"""Plain JAX functions as learners: what is traced, and that it equals what is written by hand."""

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import brainstate
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from brainscale.nn import Linear

import pure_batching as pb
from pure_batching import testing
from pure_batching.errors import CaptureError, DtypeError, StrategyError, StructureError
from pure_batching.testing._alive import assert_gradients_alive

from .bench import RULES
from .modules import Leaky, conv_rates
from .trees import assert_close, assert_identical

STEPS, SAMPLES = 5, 3
D, ES, EXACT = RULES["D_RTRL published"], RULES["ES_D_RTRL published"], RULES["BPTT"]


def normal(*shape: int, seed: int = 0) -> Any:
    return jnp.asarray(np.random.default_rng((seed, *shape)).standard_normal(shape) / 2)


def squared(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).sum()


@jax.custom_jvp
def spike(v: Any) -> Any:
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return spike(primals[0]), tangents[0] / (1 + jnp.abs(primals[0])) ** 2


class Written(NamedTuple):
    """A function with its params and state; `shape` is that of one input."""

    step: Callable[..., Any]
    params: Any
    state: Any
    shape: tuple[int, ...] = (3,)

    def learner(self, rule: pb.Algorithm) -> tuple[pb.Learner, Any]:
        return pb.capture_function(self.step, self.params, self.state, jnp.zeros(self.shape), algorithm=rule)

    def data(self) -> Any:
        return normal(STEPS, SAMPLES, *self.shape, seed=7), np.zeros((STEPS, SAMPLES))


def leaky(arranged: Callable[[Any], Any]) -> Callable[..., Any]:
    def step(p: Any, h: Any, x: Any) -> Any:
        new = 0.8 * h + jnp.tanh(arranged(x @ p["w"]))
        return new, new * (1 - h)

    return step


def gates(p: Any, state: Any, x: Any) -> Any:
    """One product for four gates, as in an LSTM without recurrent weights."""
    h, c = state
    i, f, g, o = jnp.split(x @ p["w"] + p["b"], 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h @ p["out"]


def tied(p: Any, h: Any, x: Any) -> Any:
    h = 0.8 * h + jnp.tanh(x @ p["w"])
    return h, h @ p["w"].T


def normed(p: Any, h: Any, x: Any) -> Any:
    h = 0.8 * h + jnp.tanh(x @ (p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)))
    return h, h


def side_by_side(p: Any, h: Any, x: Any) -> Any:
    h = 0.8 * h + jnp.tanh(jnp.concatenate([x, x**2], -1) @ jnp.concatenate([p["a"], p["b"]]))
    return h, h


def spiking(p: Any, v: Any, x: Any) -> Any:
    v = 0.9 * v + x @ p["w"] + p["b"]
    z = spike(v - 0.5)
    return v - z, z @ p["out"]


def diagonal(p: Any, h: Any, x: Any) -> Any:
    """A linear recurrent unit, whose leak is an element-wise weight."""
    new = jax.nn.sigmoid(p["a"]) * h + jnp.tanh(x @ p["w"])
    return new, new + p["a"] * h


def by_hand(p: Any, h: Any, x: Any) -> Any:
    h = 0.8 * h + jnp.tanh((x[..., :, None] * p["w"]).sum(-2))
    return h, h


def taken_away(p: Any, h: Any, x: Any) -> Any:
    """A bias from which the product is taken: the derivatives by the two have opposite signs."""
    h = 0.8 * h + jnp.tanh(p["b"] - x @ p["w"])
    return h, h


def read_twice(p: Any, h: Any, x: Any) -> Any:
    """A product that the state reads with its bias and without."""
    y = x @ p["w"]
    h = 0.8 * h + jnp.tanh(y + p["b"]) * jnp.cos(y)
    return h, h * jnp.sin(y)


def mixed_bias(p: Any, h: Any, x: Any) -> Any:
    """A bias that has another use without a trace, and a product that has none."""
    y = x @ p["w"] + p["b"]
    h = 0.8 * h + jnp.tanh(y)
    return h, jnp.sin(y) + h @ jnp.diag(p["b"])


STATE = jnp.zeros(4)

# In each of these D_RTRL is exact: no neuron reaches another from one step to the next.
WRITTEN = {
    "a product": Written(leaky(lambda y: y), {"w": normal(3, 4)}, STATE),
    "its elements turned round": Written(leaky(lambda y: y[..., ::-1]), {"w": normal(3, 4)}, STATE),
    "its elements in rows": Written(
        leaky(lambda y: y.reshape(*y.shape[:-1], 2, 2)), {"w": normal(3, 4)}, jnp.zeros((2, 2))
    ),
    "gates": Written(gates, {"w": normal(3, 16), "b": normal(16), "out": normal(4, 2)}, (STATE, STATE)),
    "tied": Written(tied, {"w": normal(3, 4)}, STATE),
    "of two weights": Written(normed, {"g": normal(4), "v": normal(3, 4)}, STATE),
    "weights side by side": Written(side_by_side, {"a": normal(3, 4), "b": normal(3, 4, seed=1)}, STATE),
    "spikes": Written(spiking, {"w": 3 * normal(3, 4), "b": normal(4), "out": normal(4, 2)}, STATE),
    "diagonal": Written(diagonal, {"a": normal(4), "w": normal(3, 4)}, STATE),
    "a product by hand": Written(by_hand, {"w": normal(3, 4)}, STATE),
    "a product taken from its bias": Written(taken_away, {"w": normal(3, 4), "b": normal(4)}, STATE),
    "a product read with its bias and without": Written(read_twice, {"w": normal(3, 4), "b": normal(4)}, STATE),
    "a bias with a use that has no trace": Written(mixed_bias, {"w": normal(3, 4), "b": normal(4)}, STATE),
}


@pytest.mark.parametrize("window", [2, None])
@pytest.mark.parametrize("strategy", [pb.vmap, pb.manual])
@pytest.mark.parametrize("name", WRITTEN)
def test_equals_backpropagation(name: str, strategy: Any, window: int | None) -> None:
    written = WRITTEN[name]
    (learner, params), (exact, _) = written.learner(D), written.learner(EXACT)
    assert all(row.way == "trace" or row.weight == "params.out" for row in first_rows(learner))
    fun = pb.sequence_grad(strategy(learner, SAMPLES), squared, reduction="none", window=window)
    want = pb.sequence_grad(pb.loop(exact, SAMPLES), squared, reduction="none")
    assert_close(fun(params, None, *written.data())[0], want(params, None, *written.data())[0])


@pytest.mark.parametrize("rule", [D, ES], ids=["D_RTRL", "ES_D_RTRL"])
def test_a_product_and_its_bias_share_their_derivatives(rule: pb.Algorithm) -> None:
    """So that the gradient costs what that of a BrainScale module costs, whose layer holds both in one weight."""

    class Net(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with brainstate.random.seed_context(0):
                self.layer = Linear(70, 50)

        def init_state(self, *_: Any, **__: Any) -> None:
            self.h = brainstate.HiddenState(jnp.zeros(50))

        def update(self, x: Any) -> Any:
            self.h.value = 0.9 * self.h.value + jnp.tanh(self.layer(jnp.concatenate([x, self.h.value], -1)))
            return self.h.value

    def step(p: Any, h: Any, x: Any) -> Any:
        h = 0.9 * h + jnp.tanh(jnp.concatenate([x, h], -1) @ p["weight"] + p["bias"])
        return h, h

    module, params = pb.capture(Net(), jnp.zeros(20), algorithm=rule)
    plain, own = pb.capture_function(step, params["layer.weight_op"], jnp.zeros(50), jnp.zeros(20), algorithm=rule)
    costs = []
    for learner, values in ((module, params), (plain, own)):
        fun = pb.sequence_grad(pb.manual(learner, 8), squared)
        run = (
            jax.jit(lambda p, fun=fun: fun(p, None, jnp.zeros((6, 8, 20)), np.zeros((6, 8)))[0]).lower(values).compile()
        )
        costs.append((run.cost_analysis()["flops"], run.memory_analysis().temp_size_in_bytes))  # type: ignore[index]
    for of_module, of_function in zip(*costs, strict=True):
        assert of_function <= 1.05 * of_module


def test_an_empty_part_of_the_state_reaches_nothing() -> None:
    def step(p: Any, h: Any, x: Any) -> Any:
        h = 0.5 * h + jnp.tanh(x @ p["w"])
        return h, h + h[:0].sum()

    learner, params = Written(step, {"w": normal(3, 4)}, STATE).learner(D)
    exact, _ = Written(step, {"w": normal(3, 4)}, STATE).learner(EXACT)
    data = normal(STEPS, 3), np.zeros(STEPS)
    got, want = (pb.sequence_grad(one, squared)(params, None, *data)[0] for one in (learner, exact))
    assert_close(got, want)


@pytest.mark.parametrize("rule", ["D_RTRL", "D_RTRL published", "ES_D_RTRL", "RTRL", "BPTT"])
def test_a_weight_that_is_compared_with_data_learns_nothing(rule: str) -> None:
    """A hard reset at a threshold: what reaches the state is a bool, which has no derivative."""

    def step(p: Any, v: Any, x: Any) -> Any:
        v = 0.9 * v + x @ p["w"]
        v = jnp.where(v > p["theta"], 0.0, v)
        return v, v

    written = Written(step, {"w": normal(3, 4), "theta": normal(4)}, STATE)
    learner, params = written.learner(RULES[rule])
    rows = {row.weight: row for row in pb.explain(learner).rows}
    if rule not in ("RTRL", "BPTT"):
        assert rows["params.theta"].reason == "its output is bool, no float"
    got, _ = pb.sequence_grad(pb.vmap(learner, SAMPLES), squared)(params, None, *written.data())
    assert not np.asarray(got["theta"]).any()
    assert_gradients_alive({"w": got["w"]})


@pytest.mark.parametrize("window", [1, 2, None])
@pytest.mark.parametrize("rule", ["D_RTRL", "D_RTRL published", "ES_D_RTRL", "RTRL", "BPTT"])
def test_a_function_without_a_state(rule: str, window: int | None) -> None:
    written = Written(lambda p, state, x: (state, x @ p["w"]), {"w": normal(3, 4)}, ())
    learner, params = written.learner(RULES[rule])
    inputs, targets = written.data()
    got, _ = pb.sequence_grad(pb.vmap(learner, SAMPLES), squared, reduction="sum", window=window)(
        params, None, inputs, targets
    )
    assert_close(got, jax.grad(lambda p: ((inputs @ p["w"]) ** 2).sum())(params))


@pytest.mark.parametrize(
    "rule", ["D_RTRL", "D_RTRL published", "ES_D_RTRL", "Hybrid multi-step", "EProp", "OTTT", "RTRL", "BPTT"]
)
def test_a_weight_without_entries_changes_nothing(rule: str) -> None:
    def step(p: Any, h: Any, x: Any) -> Any:
        h = 0.5 * h + x @ p["w"]
        h = h + x[..., :0] @ p["none"] if "none" in p else h
        return h, h

    def results(params: Any) -> Any:
        written = Written(step, params, STATE)
        learner, params = written.learner(RULES[rule])
        batched = pb.chunked(learner, SAMPLES, chunk=2)
        gradients = pb.sequence_grad(batched, squared, window=2)(params, None, *written.data())[0]
        norms = pb.sample_norms(pb.vmap(learner, SAMPLES), squared)(params, None, *written.data())[0]
        return gradients, norms

    got, want = results({"w": normal(3, 4), "none": jnp.zeros((0, 4))}), results({"w": normal(3, 4)})
    assert got[0].pop("none").shape == (0, 4)
    assert_gradients_alive(got[0])
    assert_close(got, want)


def first_rows(learner: pb.Learner) -> list[Any]:
    """The first use of each weight."""
    rows = pb.explain(learner).rows
    return [row for i, row in enumerate(rows) if row.weight not in {one.weight for one in rows[:i]}]


def test_a_recurrent_product_by_hand_is_no_path_of_its_own() -> None:
    """`(h[:, None] * u).sum(0)` mixes neurons as `h @ u` does, so that no trace follows it either."""
    rows = np.repeat(np.arange(4), 4)
    products = (
        lambda h, u: h @ u,
        lambda h, u: (h[..., :, None] * u).sum(-2),
        lambda h, u: (h[..., rows].reshape(*h.shape, 4) * u).sum(-2),
    )
    data, found = WRITTEN["a product"].data(), []
    for product in products:

        def step(p: Any, h: Any, x: Any, product: Any = product) -> Any:
            h = 0.5 * h + jnp.tanh(x @ p["w"] + product(h, p["u"]))
            return h, h

        params = {"w": normal(3, 4), "u": normal(4, 4)}
        learner, weights = pb.capture_function(step, params, STATE, jnp.zeros(3), algorithm=D)
        assert {row.way for row in pb.explain(learner).rows} == {"trace"}
        found.append(pb.sequence_grad(pb.vmap(learner, SAMPLES), squared)(weights, None, *data)[0])
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


def test_a_trace_of_gates_has_the_weight_s_size() -> None:
    learner, _ = WRITTEN["gates"].learner(D)
    shapes = {row.weight: list(row.traces.values()) for row in pb.explain(learner).rows}
    assert shapes == {"params.b": [(16, 2)], "params.out": [], "params.w": [(3, 16, 2)]}


def test_a_gru_of_equinox_equals_diagonal_rtrl_by_hand() -> None:
    cell = jax.tree.map(lambda leaf: leaf.astype(float), eqx.nn.GRUCell(3, 4, key=jax.random.key(0)))
    params, static = eqx.partition(cell, eqx.is_array)

    def step(params: Any, h: Any, x: Any) -> Any:
        new = eqx.combine(params, static)(x, h)
        return new, new

    learner, weights = pb.capture_function(step, params, STATE, jnp.zeros(3), algorithm=D)
    xs = 2 * normal(STEPS, 3)
    got, _ = pb.sequence_grad(learner, squared)(weights, None, xs, np.zeros(STEPS))

    h = STATE
    eps = jax.tree.map(lambda w: jnp.zeros((4, *w.shape)), params)
    total = jax.tree.map(jnp.zeros_like, params)
    for x in xs:
        added = jax.jacrev(lambda p, h=h, x=x: step(p, h, x)[0])(params)
        update = jax.nn.sigmoid(jnp.split(cell.weight_ih @ x + cell.bias + cell.weight_hh @ h, 3)[1])
        eps = jax.tree.map(lambda e, a, u=update: u.reshape(4, *(1 for _ in e.shape[1:])) * e + a, eps, added)
        h, _ = step(params, h, x)
        total = jax.tree.map(lambda t, e, h=h: t + jnp.tensordot(2 * h, e, 1), total, eps)
    assert_close(got, total)
    assert jax.tree.structure(got) == jax.tree.structure(params)


class Encoded(eqx.Module):
    """An encoder in front of a cell; beside its weights a function, a float, a flag, and integers of 64 bits."""

    encoder: eqx.nn.MLP
    cell: eqx.nn.GRUCell
    leak: float
    order: Any
    is_leaky: bool

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0))
        self.encoder = eqx.nn.MLP(3, 4, 5, depth=1, key=keys[0])
        self.cell = eqx.nn.GRUCell(4, 4, key=keys[1])
        self.leak, self.order, self.is_leaky = 0.5, jnp.array([2, 0, 3, 1]) << 33, True

    def __call__(self, h: Any, x: Any) -> Any:
        new = self.cell(self.encoder(x), h)
        h = self.leak * h + new if self.is_leaky else new
        return h, h[self.order >> 33]


class Rates(eqx.Module):
    """Code that carries a batch axis too."""

    weight: Any
    activation: Callable[[Any], Any]
    leak: float
    order: Any

    def __call__(self, h: Any, x: Any) -> Any:
        h = self.leak * h + self.activation(x @ self.weight)
        return h, h[..., self.order]


def called(module: Any, h: Any, x: Any) -> Any:
    return module(h, x)


def wide(module: Any) -> Any:
    """In 64 bits, as an `equinox.Module` is not by itself."""
    floats, rest = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda leaf: leaf.astype(float), floats), rest)


def rates() -> Rates:
    return Rates(normal(3, 4), jnp.tanh, 0.8, jnp.array([2, 0, 3, 1]))


def test_a_module_of_equinox_is_taken_whole() -> None:
    """Its floats are trained, as where the user takes it apart; the step gets it as it was."""
    module = wide(Encoded())
    floats, rest = eqx.partition(module, eqx.is_inexact_array)
    learner, params = pb.capture_function(called, module, STATE, jnp.zeros(3), algorithm=D)
    other, weights = pb.capture_function(
        lambda p, h, x: eqx.combine(p, rest)(h, x), floats, STATE, jnp.zeros(3), algorithm=D
    )
    assert jax.tree.structure(params) == jax.tree.structure(floats)
    assert eqx.tree_equal(eqx.combine(params, module), module)
    assert eqx.tree_equal(weights, params)
    assert {row.weight for row in pb.explain(learner).rows if row.way == "trace"} == {
        *("params.cell.weight_ih", "params.cell.weight_hh", "params.cell.bias", "params.cell.bias_n")
    }
    data = normal(STEPS, SAMPLES, 3), np.zeros((STEPS, SAMPLES))
    got, want = (
        pb.sequence_grad(pb.vmap(one, SAMPLES), squared, reduction="none")(params, None, *data)[0]
        for one in (learner, other)
    )
    assert_gradients_alive(got)
    assert jax.tree.structure(got) == jax.tree.structure(floats)
    assert_close(got, want)


def test_a_module_inside_a_container() -> None:
    """Beside it every leaf is trained, a float of Python too; a module that was taken apart is one of arrays alone."""

    def step(p: Any, h: Any, x: Any) -> Any:
        h, output = eqx.combine(p[0]["cell"], rates())(h, x)
        return h, output * p[1]

    params: Any = None
    for cell in (rates(), eqx.filter(rates(), eqx.is_array), eqx.filter(rates(), eqx.is_inexact_array)):
        _, params = pb.capture_function(step, ({"cell": cell}, 0.5), STATE, jnp.zeros(3), algorithm=D)
        assert jax.tree.structure(params) == jax.tree.structure(({"cell": eqx.filter(cell, eqx.is_inexact_array)}, 0.5))
    learner, _ = pb.capture_function(step, ({"cell": rates()}, 0.5), STATE, jnp.zeros(3), algorithm=D)
    gradients, _ = pb.sequence_grad(learner, squared)(params, None, normal(STEPS, 3), np.zeros(STEPS))
    assert_gradients_alive(gradients)


def test_an_optimizer_takes_the_floats_of_a_module() -> None:
    """As those of a dictionary."""

    def step(p: Any, h: Any, x: Any) -> Any:
        return eqx.tree_at(lambda module: module.weight, rates(), p["weight"])(h, x)

    optimizer, data = optax.adam(0.1), (normal(STEPS, SAMPLES, 3), jnp.ones((STEPS, SAMPLES, 4)))
    found = []
    for fun, weights in ((called, rates()), (step, {"weight": rates().weight})):
        learner, params = pb.capture_function(fun, weights, STATE, jnp.zeros(3), algorithm=D)
        train = pb.online(pb.vmap(learner, SAMPLES), squared, optimizer)
        found.append(train(params, optimizer.init(params), None, *data)[0])
    assert eqx.combine(found[0], rates()).activation is jnp.tanh
    assert jnp.abs(found[0].weight - rates().weight).min() > 0.01
    assert_close(found[0].weight, found[1]["weight"])


def test_a_module_goes_to_another_process() -> None:
    """With functions of JAX and lambdas of equinox in it; where JAX has no 64 bits, it keeps those of its integers."""
    module = wide(Encoded())
    learner, params = pb.capture_function(called, module, STATE, jnp.zeros(3), algorithm=D)
    sent = pickle.dumps(learner)
    with jax.enable_x64(new_val=False):
        other = pickle.loads(sent)
    data = normal(STEPS, 3), np.zeros(STEPS)
    got, want = (pb.sequence_grad(one, squared)(params, None, *data)[0] for one in (other, learner))
    assert_gradients_alive(got)
    assert_identical(got, want)


def test_params_are_floats() -> None:
    """By an integer there is no gradient; in a module of equinox it is no parameter."""
    for number, text in ((jnp.array(3), "int64"), (3, "int64"), (np.array([True]), "bool")):
        with pytest.raises(DtypeError, match=rf"^params\['n'\]: got {text}, expected floats.* let the step close over"):
            pb.capture_function(called, {"w": normal(3, 4), "n": number}, STATE, jnp.zeros(3), algorithm=D)


def test_a_cell_learns() -> None:
    """An LSTM of equinox follows a sum of its input, by a smoothed trace and by a trace of each weight."""
    cell = jax.tree.map(lambda leaf: leaf.astype(float), eqx.nn.LSTMCell(2, 8, key=jax.random.key(1)))
    params, static = eqx.partition(cell, eqx.is_array)

    def step(params: Any, state: Any, x: Any) -> Any:
        new = eqx.combine(params, static)(x, state)
        return new, new[0].mean()

    xs = normal(8, 6, 2)
    for rule in (D, ES):
        learner, weights = pb.capture_function(step, params, (jnp.zeros(8),) * 2, xs[0, 0], algorithm=rule)
        fun = pb.sequence_grad(pb.vmap(learner, 6), squared)
        losses = []
        for _ in range(20):
            gradients, aux = fun(weights, None, xs, jnp.tanh(xs.sum(-1)))
            weights = jax.tree.map(lambda w, g: w - 0.3 * g, weights, gradients)
            losses.append(float(aux.losses.mean()))
        assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("rule", ["D_RTRL", "D_RTRL published", "ES_D_RTRL", "ES_D_RTRL published"])
@pytest.mark.parametrize("name", ["leaky", "convolution"])
def test_equals_the_same_module(name: str, rule: str) -> None:
    """The carry, and the gradient of every sample."""
    with brainstate.random.seed_context(0), brainstate.environ.context(precision=64):
        layer = Linear(3 + 4, 4)
        net = conv_rates((3, 3, 2), 2) if name == "convolution" else Leaky(layer, (4,), is_recurrent=True)
        shape = (3, 3, 2) if name == "convolution" else (3,)
        learner, params = pb.capture(net, jnp.zeros(shape), algorithm=RULES[rule])
    (own,) = params.values()

    def step(p: Any, h: Any, x: Any) -> Any:
        if name == "convolution":
            numbers = ("NHWC", "HWIO", "NHWC")
            y = jax.lax.conv_general_dilated(x[None], p["weight"], (1, 1), "SAME", dimension_numbers=numbers)[0]
        else:
            y = jnp.concatenate([x, h]) @ p["weight"]
        new = 0.7 * h + jnp.tanh(y + p["bias"].reshape(-1))
        return new, new

    start = learner.init().hidden["h"]
    other, weights = pb.capture_function(step, dict(own), start, jnp.zeros(shape), algorithm=RULES[rule])
    data = normal(STEPS, SAMPLES, *shape), np.zeros((STEPS, SAMPLES))
    runs = [
        pb.sequence_grad(pb.vmap(one, SAMPLES), squared, reduction="none", window=2)(given, None, *data)
        for one, given in ((learner, params), (other, weights))
    ]
    ((of_module, aux), (of_function, other_aux)) = runs
    assert_close(other_aux.carry.hidden["state"], aux.carry.hidden["h"])
    assert_close(of_function, dict(*of_module.values()))


def test_integers_and_keys_are_carried() -> None:
    def step(p: Any, s: Any, x: Any) -> Any:
        key, sub = jax.random.split(s["key"])
        h = 0.8 * s["h"] + x @ p["w"] + jax.random.normal(sub, (4,))
        return {"key": key, "h": h, "count": s["count"] + 1}, h * (s["count"] > 1)

    state = {"key": jax.random.key(0), "h": STATE, "count": jnp.zeros((), int)}
    learner, params = pb.capture_function(step, {"w": normal(3, 4)}, state, jnp.zeros(3), algorithm=D)
    xs = jnp.broadcast_to(normal(STEPS, 1, 3), (STEPS, SAMPLES, 3))
    fun = pb.sequence_grad(pb.vmap(learner, SAMPLES), squared, reduction="none")
    each, aux = fun(params, None, xs, np.zeros((STEPS, SAMPLES)), key=jax.random.key(5))
    assert int(jax.tree.leaves(aux.carry.shared)[0]) == STEPS
    assert len(np.unique(np.asarray(each["w"][:, 0, 0]))) == SAMPLES  # each sample has noise of its own
    loop = pb.sequence_grad(pb.loop(learner, SAMPLES), squared, reduction="none")
    assert_close(loop(params, None, xs, np.zeros((STEPS, SAMPLES)), key=jax.random.key(5))[0], each)
    raw = jax.random.PRNGKey(5)  # stands for the typed key, wherever one can be given
    assert_identical(fun(params, None, xs, np.zeros((STEPS, SAMPLES)), key=raw)[0], each)
    assert_identical(jax.jit(learner.init)(raw), learner.init(jax.random.key(5)))


def test_the_step_is_a_function_of_the_given_structure() -> None:
    learner, params = WRITTEN["gates"].learner(D)
    batched, (inputs, targets) = pb.vmap(learner, SAMPLES), WRITTEN["gates"].data()

    def total(params: Any) -> Any:
        def one(carry: Any, data: Any) -> Any:
            carry, output = batched.step(params, carry, data[0])
            return carry, jax.vmap(squared)(output, data[1]).sum()

        return jax.lax.scan(one, batched.init(), (inputs, targets))[1].sum()

    want, _ = pb.sequence_grad(batched, squared, reduction="sum")(params, None, inputs, targets)
    assert_close(jax.grad(total)(params), want)


class Unsorted(NamedTuple):
    """Fields that are not in the order of their names."""

    v: Any
    a: Any


class UnsortedModule(eqx.Module):
    """The same as a module."""

    v: Any
    a: Any


@pytest.mark.parametrize("rule", [EXACT, RULES["RTRL"]], ids=["BPTT", "RTRL"])
@pytest.mark.parametrize(
    "state",
    [
        Unsorted(normal(2), normal(2, seed=1)),
        UnsortedModule(normal(2), normal(2, seed=1)),
        [normal(2, seed=k) for k in range(12)],
        {10: normal(2), 2: normal(2, seed=1)},
    ],
    ids=["a named tuple", "a module", "a long list", "a dict of numbers"],
)
def test_a_state_keeps_the_order_of_its_tree(state: Any, rule: pb.Algorithm) -> None:
    """The paths of these leaves, sorted, are in another order."""
    leaves, structure = jax.tree.flatten(state)

    def step(p: Any, state: Any, x: Any) -> Any:
        olds = jax.tree.leaves(state)
        news = [jnp.tanh((0.9 - 0.1 * k) * old + x * p) for k, old in enumerate(olds)]
        return jax.tree.unflatten(structure, news), jnp.concatenate(olds)

    def total(p: Any) -> Any:
        state, loss = jax.tree.unflatten(structure, leaves), 0.0
        for x, target in zip(inputs, targets, strict=True):
            state, output = step(p, state, x)
            loss += squared(output, target)
        return loss

    weight, inputs, targets = normal(2), normal(STEPS, 2, seed=2), np.zeros((STEPS, 2 * len(leaves)))
    learner, params = pb.capture_function(step, weight, state, jnp.zeros(2), algorithm=rule)
    gradient, aux = pb.sequence_grad(learner, squared, reduction="sum", outputs=True)(params, None, inputs, targets)
    assert_identical(aux.outputs[0], jnp.concatenate(leaves))
    assert_close(gradient, jax.grad(total)(weight))


def test_params_in_the_form_of_haiku() -> None:
    """Two levels of dictionaries, whose names hold slashes."""

    def step(p: Any, h: Any, x: Any) -> Any:
        layer = p["cell/~/linear"]
        new = 0.8 * h + jnp.tanh(x @ layer["w"] + layer["b"])
        return new, new

    weights = {"cell/~/linear": {"w": normal(3, 4), "b": normal(4)}}
    (learner, params), (exact, _) = (Written(step, weights, STATE).learner(rule) for rule in (D, EXACT))
    assert [row.weight for row in pb.explain(learner).rows] == [
        "params['cell/~/linear'].b",
        "params['cell/~/linear'].w",
    ]
    data = normal(STEPS, 3), np.zeros(STEPS)
    got, want = (pb.sequence_grad(one, squared)(params, None, *data)[0] for one in (learner, exact))
    assert jax.tree.structure(got) == jax.tree.structure(weights)
    assert_close(got, want)


def test_audit_and_tools() -> None:
    learner, params = WRITTEN["gates"].learner(D)
    assert pb.audit(learner).is_independent
    batched, data = pb.manual(learner, SAMPLES), WRITTEN["gates"].data()
    each, _ = pb.sequence_grad(batched, squared, reduction="none")(params, None, *data)
    norms, _ = pb.sample_norms(batched, squared)(params, None, *data)
    square = sum((leaf**2).reshape(SAMPLES, -1).sum(1) for leaf in jax.tree.leaves(each))
    assert_close(norms, jnp.sqrt(square))
    clipped, _ = pb.clipped_grad(batched, squared, 1e-3)(params, None, *data)
    assert jax.tree.structure(clipped) == jax.tree.structure(params)


class Gated(eqx.Module):
    """The gates as a module, with what is not trained beside them."""

    weights: Any
    activation: Callable[[Any], Any]
    order: Any

    def __call__(self, state: Any, x: Any) -> Any:
        state, output = gates(self.weights, state, x)
        return state, self.activation(output)[..., self.order]


def test_every_law_holds() -> None:
    made = WRITTEN["gates"]
    module = Gated(made.params, jnp.tanh, jnp.array([1, 0]))
    report = testing.assert_interchangeable(
        lambda: testing.Function(called, module, made.state), D, *made.data(), squared, is_exact=True
    )
    assert set(report.excused) == {"parity"}
    assert not report.refused


def test_predicates() -> None:
    made = WRITTEN["gates"]
    learner, _ = pb.capture_function(
        made.step,
        made.params,
        made.state,
        jnp.zeros(3),
        algorithm=D,
        trace=lambda path: path != "params.b",
        hidden=lambda path: path == "state[1]",
    )
    rows = {row.weight: (row.way, row.groups, row.reason) for row in pb.explain(learner).rows}
    assert rows["params.b"] == ("gradient of the step", (), "trace= asks for no trace of it")
    assert rows["params.w"] == ("trace", ("state[1]",), "")


def test_what_was_given_may_be_donated() -> None:
    params, state = rates(), jnp.zeros(4)
    learner, weights = pb.capture_function(called, params, state, jnp.zeros(3), algorithm=D)
    for leaf in (params.weight, params.order, state):
        leaf.delete()
    learner.step(weights, learner.init(), jnp.zeros(3))
    pb.manual(learner, SAMPLES)  # traces the step again


def in_a_while(p: Any, s: Any, x: Any) -> Any:
    def more(counted: Any) -> Any:
        return counted[0] < x.sum()

    _, y = jax.lax.while_loop(more, lambda c: (c[0] + 1, c[1] @ p["w"][:, :3]), (0.0, x))
    return {"h": s["h"] + y.sum()}, x


REFUSED = {
    "a while loop": (in_a_while, r"params\.w: got a use inside a while loop"),
    "changes": (lambda p, s, x: (s.update(h=s["h"] + x @ p["w"]) or s, x), "state: got a step that changes"),
    "structure": (lambda p, s, x: ((s["h"] + x @ p["w"],), x), "state: got .*after one step, expected"),
    "shape": (lambda p, s, x: ({"h": jnp.append(s["h"], 1.0)}, x), r"state\.h: got shape \(5,\) after one step"),
    "dtype": (lambda p, s, x: ({"h": s["h"].astype("float32")}, x), r"state\.h: got float32 after one step"),
    "no pair": (lambda p, s, x: s["h"], r"got one array, expected the pair \(state, output\)"),
    "a state alone": (lambda p, s, x: s, r"got a result of type dict, expected the pair \(state, output\)"),
    "its own error": (lambda p, s, x: ({"h": s["h"] + x @ p["v"]}, x), "KeyError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    step, text = REFUSED[name]
    with pytest.raises(CaptureError, match=text):
        pb.capture_function(step, {"w": normal(3, 4)}, {"h": STATE}, jnp.zeros(3), algorithm=D)  # type: ignore[arg-type]


def test_other_arguments() -> None:
    made = WRITTEN["a product"]
    with pytest.raises(StructureError, match="algorithm: got the class D_RTRL"):
        pb.capture_function(made.step, made.params, made.state, jnp.zeros(3), algorithm=pb.D_RTRL)  # type: ignore[arg-type]
    with pytest.raises(DtypeError, match=r"params\['w'\]"):
        pb.capture_function(made.step, {"w": "text"}, made.state, jnp.zeros(3), algorithm=D)
    with pytest.raises(DtypeError, match="state"):
        pb.capture_function(made.step, made.params, "text", jnp.zeros(3), algorithm=D)
    learner, params = made.learner(D)
    with pytest.raises(StructureError, match="params"):
        learner.step({**params, "more": params["w"]}, learner.init(), jnp.zeros(3))
    cell, _ = pb.capture_function(
        lambda p, h, x: (jnp.tanh(p @ x + h), h), normal(4, 3), STATE, jnp.zeros(3), algorithm=D
    )
    with pytest.raises(StrategyError, match="whose own code carries a batch axis"):
        pb.manual(cell, 2)


def kept(p: Any, h: Any, x: Any) -> Any:
    new = 0.9 * h + p @ jnp.tanh(x)
    return new, new


@pytest.mark.parametrize("state", [np.full(2, 0.5), jnp.full(2, 0.5)], ids=["numpy", "jax"])
def test_a_function_is_captured_inside_jit(state: Any) -> None:
    inputs, targets = normal(5, 3), normal(5, 2)

    def gradient(decay: Any, state: Any) -> Any:
        learner, params = pb.capture_function(kept, np.ones((2, 3)), state, np.zeros(3), algorithm=pb.ES_D_RTRL(decay))
        return pb.sequence_grad(learner, squared)(params, None, inputs, targets)[0]

    decays = jnp.array([0.5, 0.9])
    want = jnp.stack([gradient(float(decay), state) for decay in decays])
    assert_close(jax.jit(jax.vmap(lambda decay: gradient(decay, state)))(decays), want)
    assert_close(jax.jit(jax.vmap(gradient, (0, None)))(decays, state), want)


def test_a_state_of_several_keys_is_several_keys() -> None:
    def step(p: Any, state: Any, x: Any) -> Any:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(state["keys"])
        h = 0.9 * state["h"] + p @ x + jax.vmap(jax.random.normal)(keys)
        return {"keys": keys, "h": h}, h

    state = {"keys": jax.random.split(jax.random.key(0), 2), "h": jnp.zeros(2)}
    learner, params = pb.capture_function(step, np.ones((2, 3)), state, np.zeros(3), algorithm=RULES["D_RTRL"])
    batched = pb.vmap(learner, 3)
    carry = batched.init(jax.random.key(1))
    (keys,) = carry.keys.values()
    assert keys.shape == (3, 2)
    _, drawn = batched.step(params, carry, jnp.zeros((3, 3)))
    assert len(np.unique(drawn)) == drawn.size
