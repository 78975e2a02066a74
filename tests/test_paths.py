"""The paths of states: names and indices alone, the same in every process."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive

import pure_batching as pb
from pure_batching._sources import kernels
from pure_batching.errors import CaptureError

from .bench import SAMPLES, STEPS, bench
from .models import N_IN, N_REC
from .trees import assert_close, assert_identical

Array = jax.Array

PROJECTION = """
import brainstate, brainunit as u, braintools, brainscale, jax.numpy as jnp, sys
import pure_batching as pb
from brainpy.state import CUBA, LIF, AlignPostProj, Expon

filler = [bytearray(1000) for _ in range(int(sys.argv[1]))]


def ones(shape, **_):
    return jnp.ones(shape) * u.mS


class Net(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.neu = LIF(3, tau=5.0 * u.ms)
        linear = brainscale.nn.Linear(2, 3, w_init=ones, b_init=ones)
        first, second = (
            Expon.desc(3, tau=10.0 * u.ms, g_initializer=lambda shape, *_, **__: jnp.zeros(shape) * u.mS) for _ in "ab"
        )
        self.syn = AlignPostProj(comm=linear, syn=first, out=CUBA.desc(), post=self.neu)
        self.other = AlignPostProj(comm=linear, syn=second, out=CUBA.desc(), post=self.neu)

    def update(self, x):
        self.syn(x)
        self.other(x)
        return self.neu()


with brainstate.environ.context(dt=1.0 * u.ms):
    learner, params = pb.capture(Net(), jnp.ones(2), algorithm=pb.ES_D_RTRL(0.9))
print(*params, *learner.init().hidden, *learner.program.links(), sep="\\n")
"""


def test_are_the_same_in_two_processes() -> None:
    """A projection is known by the text of its description, where functions have addresses."""
    command = [sys.executable, "-c", PROJECTION]
    printed = [
        subprocess.run(
            [*command, size], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
        ).stdout
        for size in ("1", "9999")
    ]
    assert printed[0] == printed[1]
    assert "0x" not in printed[0]
    paths = [line for line in printed[0].splitlines() if "Link" not in line]
    assert len(set(paths)) == len(paths) >= 4
    assert all(re.fullmatch(r"[\w.]{1,60}", path) for path in paths)


class Around(brainstate.nn.Module):
    """A cell that adds what a function of no arguments gives."""

    def __init__(self, more: Callable[[], Any] = lambda: 0.0, weight_fn: Callable[[Any], Any] = lambda w: w) -> None:
        super().__init__()
        weight = jnp.asarray(np.random.default_rng(0).normal(size=(N_IN, N_REC)))
        self.weight = brainscale.ETraceParam({"weight": weight}, brainscale.MatMulOp(weight_fn=weight_fn))
        self.more = more

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(N_REC))

    def update(self, x: Array) -> Array:
        self.h.value = jnp.tanh(0.5 * self.h.value + self.weight.execute(x) + self.more())
        return self.h.value


class TestOutsideOfTheModule:
    @pytest.mark.parametrize("kind", [brainstate.ParamState, brainstate.ShortTermState, brainstate.HiddenState])
    def test_a_state_is_refused(self, kind: type) -> None:
        state: Any = kind(jnp.ones(N_REC))
        text = rf"^update\(\): got a {kind.__name__} float64\[\d+\] that no attribute .*Keep it in an attribute"
        with pytest.raises(CaptureError, match=text):
            pb.capture(Around(lambda: state.value), np.ones(N_IN), algorithm=pb.D_RTRL())

    def test_a_generator_draws_for_each_sample(self) -> None:
        generator = brainstate.random.RandomState(0)
        learner, params = pb.capture(Around(lambda: generator.rand(N_REC)), np.ones(N_IN), algorithm=pb.D_RTRL())
        batched = pb.vmap(learner, SAMPLES)
        outputs = np.asarray(batched.step(params, batched.init(), np.zeros((SAMPLES, N_IN)))[1])
        assert len(np.unique(outputs)) == outputs.size


def test_a_standardised_weight_learns_by_its_trace() -> None:
    net = Around(weight_fn=brainstate.nn.weight_standardization)
    learner, params = pb.capture(net, np.ones(N_IN), algorithm=pb.D_RTRL(rule="published"))
    assert [row.way for row in pb.explain(learner).rows] == ["trace"]
    draw = np.random.default_rng(0)
    inputs, targets = draw.normal(size=(STEPS, SAMPLES, N_IN)), draw.normal(size=(STEPS, SAMPLES, N_REC))
    bptt, _ = pb.capture(net, np.ones(N_IN), algorithm=pb.BPTT())

    def gradient(one: pb.Learner) -> Any:
        fun = pb.sequence_grad(pb.vmap(one, SAMPLES), lambda o, t: ((o - t) ** 2).sum())
        return fun(params, None, inputs, targets)[0]

    assert_close(gradient(learner), gradient(bptt))  # without recurrent weights the rule is exact


class Mixed(brainstate.nn.Module):
    """A dictionary whose keys have no order."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = {1: brainscale.nn.MinimalRNNCell(N_IN, N_REC), "b": brainscale.nn.MinimalRNNCell(N_IN, N_REC)}

    def update(self, x: Array) -> Array:
        return self.cells[1](x)


def test_an_operation_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As brainevent's where the package that compiles them is missing."""
    kernel = Primitive("kernel_of_nobody")
    kernel.def_abstract_eval(lambda x: x)
    monkeypatch.setattr(kernels, "_names", lambda: frozenset([kernel.name]))
    zeros = jnp.zeros(N_REC)
    with pytest.raises(CaptureError, match=r"^Around: got \w+: .*kernel_of_nobody.*Install the package"):
        pb.capture(Around(lambda: kernel.bind(zeros)), np.ones(N_IN), algorithm=pb.BPTT())


class Dotted(brainstate.nn.Module):
    """An attribute whose name reads like the path of another."""

    def __init__(self) -> None:
        super().__init__()
        inner = brainscale.nn.MinimalRNNCell(N_IN, N_REC)
        self.a = brainstate.nn.Module()
        self.a.b = inner
        setattr(self, "a.b", brainscale.nn.MinimalRNNCell(N_IN, N_REC))

    def update(self, x: Array) -> Array:
        return self.a.b(x) + getattr(self, "a.b")(x)


def test_two_states_with_one_path_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"^Dotted: got two states with one path.*Rename"):
        pb.capture(Dotted(), np.ones(N_IN), algorithm=pb.D_RTRL())


class TestWhatUsersPass:
    def test_keys_that_have_no_order(self) -> None:
        with pytest.raises(CaptureError, match=r"^Mixed: got \w+: .*sort"):
            pb.capture(Mixed(), np.ones(N_IN), algorithm=pb.D_RTRL())

    def test_any_mapping_of_params(self) -> None:
        made = bench("MinimalRNNCell", 0)
        grad_fn = pb.sequence_grad(made.batched("vmap"), made.model.loss)
        want = grad_fn(made.params, None, *made.data(STEPS, SAMPLES))
        assert_identical(grad_fn(MappingProxyType(made.params), None, *made.data(STEPS, SAMPLES)), want)

    def test_a_module_without_weights(self) -> None:
        learner, params = pb.capture(Still(), np.ones(N_IN), algorithm=pb.D_RTRL())
        data = np.ones((STEPS, SAMPLES, N_IN)), np.ones((STEPS, SAMPLES))
        batched = pb.vmap(learner, SAMPLES)
        norms, _ = pb.sample_norms(batched, lambda o, t: (o * t).sum())(params, None, *data)
        assert norms.tolist() == [0.0] * SAMPLES
        gradients, aux = pb.clipped_grad(batched, lambda o, t: (o * t).sum(), 1.0)(params, None, *data)
        assert gradients == {}
        assert int(aux.clipped) == 0

    def test_the_choice_of_a_learner(self) -> None:
        learner, hybrid = bench("readouts", 0).learner, pb.Hybrid(0.9)
        assert hybrid.choice(learner) == hybrid.choice(learner.program) != {}


class Still(brainstate.nn.Module):
    """A state and no weight."""

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(N_IN))

    def update(self, x: Array) -> Array:
        self.h.value = 0.9 * self.h.value + x
        return self.h.value
