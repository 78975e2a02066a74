"""Law 13: the same step, written for each source, gives the same carry and the same gradient of every sample.

Another source is one more entry of each row of `NETS`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import brainscale
import brainstate
import braintrace
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb

from . import modules
from .alive import assert_fires, assert_gradients_alive, assert_moving
from .bench import RULES, SAMPLES, STEPS, STRATEGIES, WINDOW
from .models import N_IN, N_OUT, N_REC, Model, cross_entropy, floats, label

# In double precision the sources differ by the order of sums alone. Traces are laid out as each source names its
# weights (a bias may have a trace of its own), so that what they are for is compared: the gradients.
TOLERANCE = 1e-12


class Captured(NamedTuple):
    """A source's learner and params, and its leaves in an order that all sources of a net have.

    Attributes:
      learner, params: what the capture gave.
      weights: from params, or gradients of their structure, to arrays.
      states: from a carry to arrays.
    """

    learner: pb.Learner
    params: Any
    weights: Callable[[Any], list[jax.Array]]
    states: Callable[[pb.Carry], list[jax.Array]]


Source = Callable[[Model, pb.Algorithm], Captured]


def leaves(tree: Any) -> list[jax.Array]:
    return jax.tree.leaves(tree)


def hidden(carry: pb.Carry) -> list[jax.Array]:
    return jax.tree.leaves(carry.hidden)


def of_module(model: Model, rule: pb.Algorithm) -> Captured:
    """By path: the order of the functions' dicts below is the same."""
    learner, params = pb.capture(model.build(0), *model.inputs(0), algorithm=rule, environ=model.settings)
    return Captured(learner, params, leaves, hidden)


def numbers_of(model: Model, rule: pb.Algorithm) -> Any:
    """The module's own params, without their units."""
    return jax.tree.map(u.get_mantissa, of_module(model, rule).params, is_leaf=u.math.is_quantity)


def of_function(step: Callable[..., Any], state: Any) -> Source:
    """A function of the module's own params, with JAX's operations."""

    def source(model: Model, rule: pb.Algorithm) -> Captured:
        given, run = numbers_of(model, rule), functools.partial(step, JAX)
        learner, params = pb.capture_function(run, given, state, *model.inputs(0), algorithm=rule)
        return Captured(learner, params, leaves, hidden)

    return source


def of_braintrace(step: Callable[..., Any], state: Any) -> Source:
    """A module with BrainTrace's operations and the module's own params, each array a weight of its own."""

    def source(model: Model, rule: pb.Algorithm) -> Captured:
        net = OfStates(functools.partial(step, BRAINTRACE), numbers_of(model, rule), state)
        learner, params = pb.capture(net, *model.inputs(0), algorithm=rule)
        return Captured(learner, params, leaves, hidden)

    return source


class OfStates(brainstate.nn.Module):
    """A function as a module."""

    def __init__(self, step: Callable[..., Any], params: Any, state: Any) -> None:
        super().__init__()
        self.step, self.start, self.tree = step, state, jax.tree.structure(params)
        self.weights = tuple(map(brainstate.ParamState, jax.tree.leaves(params)))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        lead = () if batch_size is None else (batch_size,)
        self.states = tuple(brainstate.HiddenState(jnp.zeros((*lead, *x.shape))) for x in leaves(self.start))

    def update(self, x: Any) -> Any:
        params = jax.tree.unflatten(self.tree, [weight.value for weight in self.weights])
        before = jax.tree.unflatten(jax.tree.structure(self.start), [state.value for state in self.states])
        after, output = self.step(params, before, x)
        for state, value in zip(self.states, leaves(after), strict=True):
            state.value = value
        return output


class Operations(NamedTuple):
    """A product with a matrix, and a convolution; the bias may be None."""

    product: Callable[..., Any]
    convolution: Callable[..., Any]


IMAGES: Any = {"padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def product(x: Any, weight: Any, bias: Any = None) -> Any:
    return x @ weight if bias is None else x @ weight + bias


def convolution(x: Any, kernel: Any, bias: Any) -> Any:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), **IMAGES) + bias.reshape(-1)


def marked_convolution(x: Any, kernel: Any, bias: Any) -> Any:
    return braintrace.conv(x, kernel, bias, strides=(1, 1), **IMAGES)


JAX, BRAINTRACE = Operations(product, convolution), Operations(braintrace.matmul, marked_convolution)


@jax.custom_jvp
def spike(x: Any) -> Any:
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return spike(x), 0.3 * jax.nn.relu(1 - jnp.abs(x)) * dx


def spiking(do: Operations, p: Any, state: Any, x: Any) -> Any:
    """In mV and ms: the threshold is 1, both time constants are 5, and a step is 1."""
    decay, v = np.exp(-1 / 5), state["neu.V"]
    into, out = p["syn.comm.weight_op"], p["out.weight_op"]["weight"]
    given = do.product(jnp.concatenate([x, spike(v - 1)], -1), into["weight"], into["bias"])
    v = decay * (v - spike(v - 1)) + given
    r = decay * state["out.r"] + do.product(spike(v - 1), out)
    return {"neu.V": v, "out.r": r}, r


def gated(do: Operations, p: Any, h: Any, x: Any) -> Any:
    def gate(name: str, given: Any) -> Any:
        weight = p[f"{name}.weight_op"]
        return do.product(jnp.concatenate(given, -1), weight["weight"], weight["bias"])

    z, r = (jax.nn.sigmoid(gate(name, [x, h])) for name in ("Wz", "Wr"))
    h = (1 - z) * h + z * jnp.tanh(gate("Wh", [x, r * h]))
    return h, h


def convolved(do: Operations, p: Any, h: Any, x: Any) -> Any:
    """With or without a batch axis; a convolution needs one."""
    weight, images = p["layer.weight_op"], x if x.ndim == 4 else x[None]
    y = do.convolution(images, weight["weight"], weight["bias"])
    h = 0.7 * h + jnp.tanh(y.reshape(h.shape))
    return h, h


def every_source(step: Callable[..., Any], state: Any) -> Mapping[str, Source]:
    return {"module": of_module, "function": of_function(step, state), "BrainTrace": of_braintrace(step, state)}


class Net(NamedTuple):
    """What is captured, and the same by each source."""

    model: Model
    sources: Mapping[str, Source]


NETS = {
    "spikes": Net(
        Model(
            "spikes",
            lambda: modules.LIFNet(N_IN, N_REC, N_OUT),
            draws=(floats(N_IN, scale=1.5),),
            target=label,
            loss=cross_entropy,
            spikes=True,
        ),
        every_source(spiking, {"neu.V": jnp.zeros(N_REC), "out.r": jnp.zeros(N_OUT)}),
    ),
    "gates": Net(
        Model("gates", lambda: brainscale.nn.GRUCell(N_IN, N_REC)),
        every_source(gated, jnp.zeros(N_REC)),
    ),
    "convolution": Net(
        Model("convolution", lambda: modules.conv_rates((5, 4, 2), 3), draws=(floats(5, 4, 2),)),
        every_source(convolved, jnp.zeros((5, 4, 3))),
    ),
}

COMPARED = ("ES_D_RTRL", "ES_D_RTRL published", "D_RTRL", "D_RTRL published")
OTHERS = [(name, source) for name, net in NETS.items() for source in net.sources if source != "module"]

RUNS = [(*other, by) for other in OTHERS for by in STRATEGIES]


class Run(NamedTuple):
    """The result of a source: arrays by its order of weights and states."""

    weights: list[jax.Array]
    gradients: list[jax.Array]
    states: list[jax.Array]
    aux: pb.Aux


@functools.cache
def run(name: str, source: str, rule: str, strategy: str) -> Run:
    model = NETS[name].model
    made = NETS[name].sources[source](model, RULES[rule])
    data = model.inputs(0, STEPS, SAMPLES), model.targets(0, STEPS, SAMPLES)
    learner = STRATEGIES[strategy](made.learner, SAMPLES)
    options = {"reduction": "none", "window": WINDOW, "outputs": True}
    gradients, aux = pb.sequence_grad(learner, model.loss, **options)(made.params, None, *data)
    return Run(made.weights(made.params), made.weights(gradients), made.states(aux.carry), aux)


def assert_near(got: list[jax.Array], want: list[jax.Array]) -> None:
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype == jnp.float64
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * float(jnp.abs(other).max()))


@pytest.mark.parametrize("rule", COMPARED)
@pytest.mark.parametrize(("name", "source", "strategy"), RUNS)
def test_every_source_gives_the_same(name: str, source: str, strategy: str, rule: str) -> None:
    want, got = run(name, "module", rule, "loop"), run(name, source, rule, strategy)
    assert_gradients_alive(want.gradients)
    assert_moving(want.aux.carry.hidden)
    if name == "spikes":
        assert_fires(want.aux.outputs)
    assert_near(got.weights, want.weights)
    assert_near(got.states, want.states)
    assert (got.aux.carry.update_count == want.aux.carry.update_count).all()
    assert_near([got.aux.losses, *leaves(got.aux.outputs)], [want.aux.losses, *leaves(want.aux.outputs)])
    assert_near(got.gradients, want.gradients)


@pytest.mark.parametrize("name", NETS)
def test_the_rules_differ(name: str) -> None:
    """Four rules that gave the same gradient would show nothing of each."""
    found = [run(name, "module", rule, "loop").gradients for rule in COMPARED]
    pairs = [(one, other) for i, one in enumerate(found) for other in found[:i]]
    assert all(max(float(jnp.abs(a - b).max()) for a, b in zip(*pair, strict=True)) > 1e-6 for pair in pairs)
