"""An operation with an `xy_to_dw` of its own: weights are rounded where they are used, and learn as if they were not.

The rounding has no derivative, so that whatever is learned comes through `xy_to_dw`; and a matrix that was rounded
before has the same step and the same gradient.
"""

from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate.nn import Module

import pure_batching as pb
from pure_batching.errors import CaptureError

from .alive import assert_gradients_alive
from .bench import ONLINE_RULES, RULES, STEPS, Bench, Request, bench_of
from .feed_forward import Weighted
from .models import N_IN, N_REC, Model, floats
from .modules import Leaky, kaiming, state_of
from .trees import assert_close


def rounded(array: jax.Array) -> jax.Array:
    """To a multiple of 1/4."""
    return jnp.round(4 * array) / 4


class Straight(brainscale.ETraceOp):
    """`x @ rounded(w)` with the gradient of `x @ w`: a straight-through estimator."""

    def xw_to_y(self, inputs: Any, weights: Any) -> Any:
        return inputs @ rounded(weights["weight"])

    def xy_to_dw(self, input_dim_arr: Any, hidden_dim_arr: Any, weights: Any) -> Any:
        return {"weight": input_dim_arr[:, None] * hidden_dim_arr}


class Transposed(Straight):
    """The same, but for its shape."""

    def xy_to_dw(self, input_dim_arr: Any, hidden_dim_arr: Any, weights: Any) -> Any:
        return {"weight": hidden_dim_arr[:, None] * input_dim_arr}


class Batched(Straight):
    """The same, for a batch only."""

    def xy_to_dw(self, input_dim_arr: Any, hidden_dim_arr: Any, weights: Any) -> Any:
        return {"weight": jnp.einsum("bi,bj->ij", input_dim_arr, hidden_dim_arr)}


def model(op: type[brainscale.ETraceOp], *, is_rounded: bool = False) -> Model:
    """Recurrent leaky states behind a weight with the operation."""

    def make() -> Leaky:
        weight = kaiming()((N_IN + N_REC, N_REC))
        layer = Weighted({"weight": rounded(weight) if is_rounded else weight}, op())
        return Leaky(layer, (N_REC,), is_recurrent=True)

    return Model(op.__name__, make)


def straight(seed: int, rule: str) -> Bench:
    """Weights that are rounded where they are used."""
    return bench_of(model(Straight), seed, RULES[rule])


@pytest.mark.parametrize(
    ("rule", "strategy"), [*((rule, "vmap") for rule in ONLINE_RULES), ("ES_D_RTRL", "loop"), ("D_RTRL", "manual")]
)
def test_is_asked(rule: str, strategy: str, seed: int) -> None:
    plain = bench_of(model(brainscale.MatMulOp, is_rounded=True), seed, RULES[rule])
    for request in (Request(strategy), Request(strategy, "mean", None)):
        want, got = plain.result(request), straight(seed, rule).result(request)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)
        assert_gradients_alive(got.gradients)


def test_backpropagation_does_not_ask(seed: int) -> None:
    """BPTT is `jax.grad` of the step as it is."""
    gradients = straight(seed, "BPTT").result(Request("vmap", window=None)).gradients
    assert not np.any(gradients["layer.weight"]["weight"])


@pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published"])
def test_norms(rule: str, seed: int) -> None:
    made = straight(seed, rule)
    each = made.result(Request("vmap", window=None)).gradients
    norms, _ = pb.sample_norms(made.batched("vmap"), made.model.loss)(made.params, None, *made.data(STEPS, 3))
    assert_close(norms**2, sum((leaf**2).reshape(3, -1).sum(1) for leaf in jax.tree.leaves(each)))


def test_one_sample_is_asked_for(seed: int) -> None:
    text = r"layer\.weight, Batched\.xy_to_dw: got ValueError: .*, expected a function of x \(12,\) and dy \(7,\)\. "
    with pytest.raises(CaptureError, match=text):
        bench_of(model(Batched), seed)


def test_another_shape_is_refused(seed: int) -> None:
    text = r"layer\.weight, Transposed\.xy_to_dw: got arrays of the shapes \[\(7, 12\)\], expected the weight's own, "
    with pytest.raises(CaptureError, match=text):
        bench_of(model(Transposed), seed)


class StraightGain(brainscale.ElemWiseOp):
    """`rounded(w)` with the gradient of `w`."""

    def __init__(self) -> None:
        super().__init__(rounded)

    def xy_to_dw(self, input_dim_arr: Any, hidden_dim_arr: Any, weights: Any) -> Any:
        assert input_dim_arr is None
        return hidden_dim_arr


class Gained(Module):
    """`h = 0.7 h + gain x`."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        self.gain = brainscale.ElemWiseParam(rounded(1.0 + brainstate.random.rand(N_REC)), op=op)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = brainstate.HiddenState(state_of((N_REC,), batch_size))

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = 0.7 * self.h.value + self.gain.execute() * x
        return self.h.value


@pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL"])
def test_of_an_element_wise_weight(rule: str, seed: int) -> None:
    own, plain = (
        bench_of(Model("gain", lambda op=op: Gained(op), draws=(floats(N_REC),)), seed, RULES[rule])
        for op in (StraightGain(), lambda w: w)
    )
    got, want = own.result(Request()), plain.result(Request())
    assert_close(got.gradients, want.gradients)
    assert_gradients_alive(got.gradients)
