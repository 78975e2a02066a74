"""Law 13: the same step, written for each source, gives the same carry and the same gradient of every sample.

Another source is one more entry of each row of `NETS`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import brainscale
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.errors import SampleCouplingError

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


def of_function(step: Callable[..., Any], state: Any) -> Source:
    """A function of the module's own params, without their units."""

    def source(model: Model, rule: pb.Algorithm) -> Captured:
        given = jax.tree.map(u.get_mantissa, of_module(model, rule).params, is_leaf=u.math.is_quantity)
        learner, params = pb.capture_function(step, given, state, *model.inputs(0), algorithm=rule)
        return Captured(learner, params, leaves, hidden)

    return source


@jax.custom_jvp
def spike(x: Any) -> Any:
    return (x > 0).astype(x.dtype)


@spike.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return spike(x), 0.3 * jax.nn.relu(1 - jnp.abs(x)) * dx


def spiking(p: Any, state: Any, x: Any) -> Any:
    """In mV and ms: the threshold is 1, both time constants are 5, and a step is 1."""
    decay, v = np.exp(-1 / 5), state["neu.V"]
    into, out = p["syn.comm.weight_op"], p["out.weight_op"]["weight"]
    given = jnp.concatenate([x, spike(v - 1)], -1) @ into["weight"] + into["bias"]
    v = decay * (v - spike(v - 1)) + given
    r = decay * state["out.r"] + spike(v - 1) @ out
    return {"neu.V": v, "out.r": r}, r


def gated(p: Any, h: Any, x: Any) -> Any:
    def product(name: str, given: Any) -> Any:
        weight = p[f"{name}.weight_op"]
        return jnp.concatenate(given, -1) @ weight["weight"] + weight["bias"]

    z, r = (jax.nn.sigmoid(product(name, [x, h])) for name in ("Wz", "Wr"))
    h = (1 - z) * h + z * jnp.tanh(product("Wh", [x, r * h]))
    return h, h


def convolved(p: Any, h: Any, x: Any) -> Any:
    """With or without a batch axis; a convolution needs one."""
    weight, numbers = p["layer.weight_op"], ("NHWC", "HWIO", "NHWC")
    images = x.reshape(-1, *x.shape[-3:])
    y = jax.lax.conv_general_dilated(images, weight["weight"], (1, 1), "SAME", dimension_numbers=numbers)
    h = 0.7 * h + jnp.tanh(y.reshape(h.shape) + weight["bias"].reshape(-1))
    return h, h


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
        {
            "module": of_module,
            "function": of_function(spiking, {"neu.V": jnp.zeros(N_REC), "out.r": jnp.zeros(N_OUT)}),
        },
    ),
    "gates": Net(
        Model("gates", lambda: brainscale.nn.GRUCell(N_IN, N_REC)),
        {"module": of_module, "function": of_function(gated, jnp.zeros(N_REC))},
    ),
    "convolution": Net(
        Model("convolution", lambda: modules.conv_rates((5, 4, 2), 3), draws=(floats(5, 4, 2),)),
        {"module": of_module, "function": of_function(convolved, jnp.zeros((5, 4, 3)))},
    ),
}

COMPARED = ("ES_D_RTRL", "ES_D_RTRL published", "D_RTRL", "D_RTRL published")
OTHERS = [(name, source) for name, net in NETS.items() for source in net.sources if source != "module"]

# JAX's convolution takes a batch of images, so that one image is a batch of one inside the step, and `pb.manual`
# refuses what has the same number of axes for one sample as for many.
NOT_BY_HAND = [("convolution", "function")]
RUNS = [(*other, by) for other in OTHERS for by in STRATEGIES if (by, other in NOT_BY_HAND) != ("manual", True)]


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


@pytest.mark.parametrize(("name", "source"), NOT_BY_HAND)
def test_what_cannot_be_batched_by_hand_is_refused(name: str, source: str) -> None:
    with pytest.raises(SampleCouplingError):
        run(name, source, "D_RTRL", "manual")


@pytest.mark.parametrize("name", NETS)
def test_the_rules_differ(name: str) -> None:
    """Four rules that gave the same gradient would show nothing of each."""
    found = [run(name, "module", rule, "loop").gradients for rule in COMPARED]
    pairs = [(one, other) for i, one in enumerate(found) for other in found[:i]]
    assert all(max(float(jnp.abs(a - b).max()) for a, b in zip(*pair, strict=True)) > 1e-6 for pair in pairs)
