"""Hybrid: which weight gets which trace."""

import functools

import brainscale
import brainstate
import jax
import numpy as np
import pytest
from brainscale import ElemWiseParam, ETraceParam
from brainscale.nn import Linear
from brainstate import HiddenState
from brainstate.nn import Module

import pure_batching as pb

from .alive import assert_alive, assert_gradients_alive
from .bench import STEPS, STRATEGIES, Bench, Request, bench_of
from .models import N_IN, N_REC, Model
from .modules import Leaky, kaiming, state_of
from .trees import assert_close, assert_differ, assert_identical

HYBRID, ES, D = pb.Hybrid(0.9), pb.ES_D_RTRL(0.9), pb.D_RTRL()
RULES = ("brainscale", "published")


def asking(grad: str) -> type:
    """A kind of weight that asks for a trace."""
    return functools.partial(ETraceParam, grad=grad)  # type: ignore[return-value]


class Asking(Module):
    """`h = leak h + tanh(one(x) + other(h))`: two matrices that ask for one trace each, around an element-wise one."""

    def __init__(self, one: str, other: str, *, is_leaky: bool) -> None:
        super().__init__()
        self.one = Linear(N_IN, N_REC, w_init=kaiming(), param_type=asking(one))
        self.other = Linear(N_REC, N_REC, w_init=kaiming(), param_type=asking(other))
        self.leak = ElemWiseParam(brainstate.random.rand(N_REC)) if is_leaky else None

    def init_state(self, batch_size: int | None = None, **_: object) -> None:
        self.h = HiddenState(state_of((N_REC,), batch_size))

    def update(self, x: jax.Array) -> jax.Array:
        leak = self.leak.execute() if self.leak else 0.5
        self.h.value = leak * self.h.value + jax.numpy.tanh(self.one(x) + self.other(self.h.value))
        return self.h.value


@functools.cache
def asked(one: str, other: str, seed: int, algorithm: pb.Algorithm, *, is_leaky: bool = False) -> Bench:
    """The module above, captured."""
    model = Model(f"{one} and {other}", lambda: Asking(one, other, is_leaky=is_leaky))
    return bench_of(model, seed, algorithm)


def choice(net: Module, size: int) -> dict[str, str]:
    """What Hybrid chooses for a module with one argument of a size."""
    learner, _ = pb.capture(net, jax.numpy.ones(size), algorithm=HYBRID)
    return HYBRID.choice(learner.program)


class Sum(Module):
    """`h = 0.5 h + layer(x)`."""

    def __init__(self, layer: Module, size: int) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def init_state(self, batch_size: int | None = None, **_: object) -> None:
        self.h = HiddenState(state_of((self.size,), batch_size))

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = 0.5 * self.h.value + self.layer(x)
        return self.h.value


class TestChoice:
    @pytest.mark.parametrize(
        ("one", "other", "want"),
        [
            ("full", "approx", ("D_RTRL", "ES_D_RTRL")),
            ("approx", "full", ("ES_D_RTRL", "D_RTRL")),
            ("full", "full", ("D_RTRL", "D_RTRL")),
            ("adaptive", "adaptive", ("ES_D_RTRL", "ES_D_RTRL")),
        ],
    )
    def test_what_a_weight_asks_for(self, one: str, other: str, want: tuple[str, str], seed: int) -> None:
        made = asked(one, other, seed, HYBRID, is_leaky=True)
        got = made.learner.algorithm.choice(made.learner.program)
        assert got == {"leak": "D_RTRL", "one.weight_op": want[0], "other.weight_op": want[1]}

    @pytest.mark.parametrize(
        ("n_in", "n_rec", "has_bias", "want"),
        [
            (1, 4, False, "D_RTRL"),  # 4 weights, 1 + 4 ends
            (1, 4, True, "ES_D_RTRL"),  # 8 weights
            (2, 2, False, "ES_D_RTRL"),  # 4 weights, 4 ends: no smaller
            (3, 1, False, "D_RTRL"),  # 3 weights, 4 ends
            (20, 30, False, "ES_D_RTRL"),
        ],
    )
    def test_the_smaller_trace(self, n_in: int, n_rec: int, has_bias: bool, want: str) -> None:  # noqa: FBT001
        """`adaptive`, BrainScale's default."""
        layer = Linear(n_in, n_rec) if has_bias else Linear(n_in, n_rec, b_init=None)
        assert choice(Sum(layer, n_rec), n_in) == {"layer.weight_op": want}

    def test_of_a_shared_kernel(self) -> None:
        """Two numbers, fewer than the twelve of input and output, but a trace of two for each of the six places."""
        layer = brainscale.nn.Conv1d((6, 1), 1, 2, b_init=None)
        learner, _ = pb.capture(Leaky(layer, (6, 1), is_recurrent=False), np.ones((6, 1)), algorithm=HYBRID)
        assert HYBRID.choice(learner.program) == {"layer.weight_op": "ES_D_RTRL"}

    def test_counted_for_one_sample(self, seed: int) -> None:
        """No batch size changes it."""
        made = asked("adaptive", "full", seed, HYBRID)
        sizes = [pb.vmap(made.learner, samples).program for samples in (1, 1000)]
        assert [HYBRID.choice(program) for program in sizes] == [HYBRID.choice(made.learner.program)] * 2

    def test_a_reused_weight(self) -> None:
        """Each use is chosen for itself."""
        cell = brainscale.nn.MinimalRNNCell(1, 3)
        assert set(choice(cell, 1)) == {"W_u.weight_op", "phi.weight_op"}


class TestGradients:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("rule", RULES)
    def test_all_full_is_d_rtrl(self, rule: str, strategy: str, seed: int) -> None:
        hybrid, alone = pb.Hybrid(0.9, rule=rule), pb.D_RTRL(rule=rule)
        self.check(asked("full", "full", seed, hybrid), asked("full", "full", seed, alone), strategy)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("rule", RULES)
    def test_all_approx_is_es_d_rtrl(self, rule: str, strategy: str, seed: int) -> None:
        hybrid, alone = pb.Hybrid(0.9, rule=rule), pb.ES_D_RTRL(0.9, rule=rule)
        self.check(asked("approx", "approx", seed, hybrid), asked("approx", "approx", seed, alone), strategy)

    @staticmethod
    def check(hybrid: Bench, alone: Bench, strategy: str) -> None:
        request = Request(strategy)
        want, got = alone.result(request), hybrid.result(request)
        assert_alive(alone, request, want)
        assert_identical(hybrid.params, alone.params)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux.losses, want.aux.losses)

    @pytest.mark.parametrize("window", [1, 4, None])
    def test_each_weight_by_its_own(self, window: int | None, seed: int) -> None:
        hybrid, es, d = (asked("full", "approx", seed, rule, is_leaky=True) for rule in (HYBRID, ES, D))
        got, of_es, of_d = (made.result(Request(window=window)).gradients for made in (hybrid, es, d))
        assert_gradients_alive(got)
        assert_close(got, {**of_d, "other.weight_op": of_es["other.weight_op"]})
        for path in got:
            assert_differ(of_es[path], of_d[path])

    @pytest.mark.parametrize("rule", RULES)
    def test_every_window_gives_the_same(self, rule: str, seed: int) -> None:
        made = asked("full", "approx", seed, pb.Hybrid(0.9, rule=rule), is_leaky=True)
        want = made.result(Request(window=1))
        assert_alive(made, Request(window=1), want)
        for window in (4, STEPS):
            assert_close(made.result(Request(window=window)).gradients, want.gradients)
            assert_close(made.result(Request(window=window)).aux, want.aux)
