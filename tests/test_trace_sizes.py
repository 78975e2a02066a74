"""D_RTRL's trace has a number for each output that an element of a weight reaches, and no more, and loses nothing."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Conv1d, Conv2d, Linear, LoRA, SparseLinear
from brainstate.nn import Module
from jax.extend.core import jaxpr_as_fun

import pure_batching as pb
from pure_batching._reader.jaxprs import ClosedJaxpr
from pure_batching._reader.written_out import by_patches

from .bench import SAMPLES, STEPS, WINDOW
from .modules import Leaky
from .trees import assert_close

Shape = tuple[int, ...]

DECAY = 0.7


def stored(inputs: int, outputs: int) -> np.ndarray:
    """Every tenth place of a matrix."""
    return np.arange(inputs * outputs).reshape(inputs, outputs) % 10 == 0


def sparse(inputs: int, outputs: int) -> Module:
    matrix = u.sparse.CSR.fromdense(jnp.asarray(stored(inputs, outputs), float))
    return SparseLinear(matrix, b_init=brainstate.nn.init.ZeroInit())


def by_op(layer: Any, weight: Any, x: jax.Array) -> jax.Array:
    """The layer's own operation."""
    return layer.weight_op.op.xw_to_y(x, weight)


def by_matrix(_: Any, weight: Any, x: jax.Array) -> jax.Array:
    """The sparse layer with a dense matrix, since its own product has a wrong derivative by the stored numbers."""
    places = stored(*SMALL["sparse"].x, *SMALL["sparse"].h)
    return x @ jnp.zeros(places.shape).at[np.nonzero(places)].set(weight["weight"]) + weight["bias"]


class Lifted(Module):
    """A product that is the same for each row of the states."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear(5, 4)

    def update(self, x: jax.Array) -> jax.Array:
        return self.inner(x)[..., None, :]


def in_every_row(layer: Any, weight: Any, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(by_op(layer.inner, weight, x), SMALL["every row"].h)


class Case(NamedTuple):
    """A layer in front of leaky states.

    Attributes:
      build: the layer, given its inputs' shape.
      x, h: the shapes of the inputs and of the states.
      traces: the shape of the trace of each array.
      apply: what the layer does with a weight and an input.
    """

    build: Callable[[], Module]
    x: Shape
    h: Shape
    traces: Mapping[str, Shape]
    apply: Callable[[Any, Any, jax.Array], jax.Array] = by_op


SMALL: Mapping[str, Case] = {
    "rows": Case(lambda: Linear(3, 4), (5, 3), (5, 4), {"weight": (5, 3, 4, 1), "bias": (5, 4, 1)}),
    "sparse": Case(lambda: sparse(8, 7), (8,), (7,), {"weight": (6, 1), "bias": (7, 1)}, by_matrix),
    "image": Case(
        lambda: Conv2d((5, 4, 2), 3, (3, 2), stride=(2, 1)), (5, 4, 2), (3, 4, 3), {"weight": (3, 4, 3, 2, 2, 3, 1)}
    ),
    "groups": Case(lambda: Conv1d((6, 4), 6, 3, groups=2, rhs_dilation=2), (6, 4), (6, 6), {"weight": (6, 3, 2, 6, 1)}),
    "every row": Case(Lifted, (5,), (3, 4), {"weight": (3, 5, 4, 1), "bias": (3, 4, 1)}, in_every_row),
    "rank": Case(lambda: LoRA(5, 2, 4), (5,), (4,), {"A": (2, 4, 1), "B": (4, 5, 2, 1)}),
}

# The layers that were measured with one number for each weight element and each output.
LARGE: Mapping[str, Case] = {
    "sparse": Case(lambda: sparse(400, 400), (400,), (400,), {"weight": (16000, 1), "bias": (400, 1)}),
    "image": Case(
        lambda: Conv2d((16, 16, 16), 16, 3), (16, 16, 16), (16, 16, 16), {"weight": (16, 16, 3, 3, 16, 16, 1)}
    ),
    "rows": Case(lambda: Linear(64, 64), (64, 64), (64, 64), {"weight": (64, 64, 64, 1), "bias": (64, 64, 1)}),
}


def captured(case: Case, algorithm: pb.Algorithm) -> tuple[Module, pb.Learner, Any]:
    net = Leaky(case.build(), case.h, is_recurrent=False, decay=DECAY)
    return net, *pb.capture(net, np.zeros(case.x), algorithm=algorithm)


def shapes(learner: pb.Learner) -> dict[str, Shape]:
    """Of the trace of each array of the only weight."""
    (traces,) = jax.eval_shape(lambda: learner.init().trace).weights.values()
    return {name: array.shape for name, array in traces.items()}


@pytest.mark.parametrize("name", LARGE)
def test_size(name: str) -> None:
    case = LARGE[name]
    _, learner, _ = captured(case, pb.D_RTRL())
    assert shapes(learner) == case.traces
    numbers = sum(map(math.prod, case.traces.values()))
    assert f"{8 * numbers:,} B" in str(pb.explain(learner))
    (relation,) = learner.program.relations
    assert "conv_general_dilated" not in str(relation.op.of_places)


@pytest.mark.parametrize("strategy", [pb.vmap, pb.manual])
@pytest.mark.parametrize("rule", ["brainscale", "published"])
@pytest.mark.parametrize("name", SMALL)
def test_equals_the_trace_of_every_output(name: str, rule: str, strategy: Any, seed: int) -> None:
    """The rule as it is written, with a number for each output and each element of the weight."""
    case, rng = SMALL[name], np.random.default_rng(seed)
    net, learner, params = captured(case, pb.D_RTRL(rule=rule))
    assert shapes(learner) == case.traces
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    xs, targets = (4.0 * rng.normal(size=(STEPS, SAMPLES, *shape)) for shape in (case.x, case.h))
    fun = pb.sequence_grad(strategy(learner, SAMPLES), squared, reduction="none", window=WINDOW)
    got, aux = fun(params, None, xs, targets)
    (path,) = params
    for i in range(SAMPLES):
        want, largest = by_hand(case, net.layer, params[path], xs[:, i], targets[:, i], normalised=rule == "brainscale")
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], got[path]), want)
        assert largest > 1
    assert bool(jnp.any(aux.carry.hidden["h"]))


def squared(output: jax.Array, target: jax.Array) -> jax.Array:
    return ((output - target) ** 2).sum()


def by_hand(
    case: Case, layer: Any, weight: Any, xs: jax.Array, targets: jax.Array, *, normalised: bool
) -> tuple[Any, float]:
    """The gradient of one sample, and the largest entry of a term or a trace before its division."""
    run = functools.partial(case.apply, layer)

    def limited(array: jax.Array) -> jax.Array:
        return array / jnp.maximum(1.0, jnp.abs(array).max()) if normalised else array

    @jax.jit
    def step(h: jax.Array, trace: Any, x: jax.Array, target: jax.Array) -> Any:
        y, slope = run(weight, x), 1 - jnp.tanh(run(weight, x)) ** 2
        h = DECAY * h + jnp.tanh(y)
        moved = jax.tree.map(lambda dy: dy * slope.reshape(*y.shape, *(1,) * (dy.ndim - y.ndim)), reached(weight, x))
        added = jax.tree.map(lambda old, new: DECAY * old + limited(new), trace, moved)
        trace = jax.tree.map(limited, added)
        signal = 2 * (h - target)
        gradient = jax.tree.map(lambda eps: jnp.tensordot(signal, eps, signal.ndim), trace)
        return h, trace, gradient, jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves((moved, added))]).max()

    reached = jax.jacobian(run)
    h = jnp.zeros(targets.shape[1:])
    trace = jax.tree.map(jnp.zeros_like, reached(weight, xs[0]))
    total, largest = jax.tree.map(jnp.zeros_like, weight), 0.0
    for x, target in zip(xs, targets, strict=True):
        h, trace, gradient, entry = step(h, trace, x, target)
        total, largest = jax.tree.map(jnp.add, total, gradient), max(largest, float(entry))
    return total, largest


# (image, kernel, dimension numbers, other settings) of convolutions.
CONVOLUTIONS: Mapping[str, tuple[Shape, Shape, tuple[str, str, str], Mapping[str, Any]]] = {
    "line": ((1, 7, 2), (3, 2, 4), ("NWC", "WIO", "NWC"), {"window_strides": (2,), "padding": "SAME"}),
    "image": (
        *((1, 3, 6, 5), (4, 3, 2, 3), ("NCHW", "OIHW", "NHWC")),
        {"window_strides": (1, 2), "padding": ((1, 0), (2, 1))},
    ),
    "groups": (
        *((1, 6, 5, 4), (3, 2, 2, 6), ("NHWC", "HWIO", "NCHW")),
        {"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 2, "rhs_dilation": (1, 2)},
    ),
    "transposed": (
        *((1, 4, 4, 2), (3, 3, 2, 3), ("NHWC", "HWIO", "NHWC")),
        {"window_strides": (1, 1), "padding": ((2, 2), (1, 2)), "lhs_dilation": (2, 3)},
    ),
    "volume": (
        *((1, 3, 4, 3, 2), (2, 2, 3, 2, 3), ("NDHWC", "DHWIO", "NDHWC")),
        {"window_strides": (1, 2, 1), "padding": "SAME"},
    ),
    "cropped": ((1, 7, 2), (2, 2, 3), ("NWC", "WIO", "NWC"), {"window_strides": (1,), "padding": ((-1, -2),)}),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_products_of_patches(name: str, seed: int) -> None:
    image, kernel, numbers, settings = CONVOLUTIONS[name]
    rng = np.random.default_rng(seed)
    arrays = [jnp.asarray(rng.normal(size=shape)) for shape in (image, kernel)]
    traced = jax.make_jaxpr(
        lambda *x: jax.lax.conv_general_dilated(*x, dimension_numbers=numbers, **settings)  # type: ignore[arg-type]
    )(*arrays)
    written = ClosedJaxpr(by_patches(traced.jaxpr), traced.consts)
    assert "conv_general_dilated" not in str(written)
    (want,), (got,) = (jaxpr_as_fun(jaxpr)(*arrays) for jaxpr in (traced, written))
    assert_close(got, want)
