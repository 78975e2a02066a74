"""RTRL, EProp and OTTT against backpropagation; traced hyperparameters, and traces in another float type."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.errors import AlgorithmError, CarryError
from pure_batching.testing import Function

from .bench import RULES, SAMPLES, STEPS, STRATEGIES, Request
from .registry import EVERY, captured
from .trees import assert_close, distance, named

N_IN, N_REC, LEAK = 3, 4, 0.8


def two_states(params: Any, state: Any, x: jax.Array) -> Any:
    """Neurons that do not reach each other, with two states each; the output is a linear function of the states."""
    a = 0.7 * jnp.tanh(state["a"]) + x @ params["w"] + params["b"]
    b = 0.9 * state["b"] + jnp.sin(a)
    return {"a": a, "b": b}, 1.5 * a + 0.3 * b


def leaky(params: Any, v: jax.Array, x: jax.Array) -> Any:
    """Neurons whose potential decays by one factor, as OTTT has it."""
    v = LEAK * v + x @ params["w"]
    return v, jnp.tanh(v)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


PARAMS = {"w": normal(0, N_IN, N_REC), "b": normal(1, N_REC)}
TWO_STATES = Function(two_states, PARAMS, {"a": jnp.zeros(N_REC), "b": jnp.zeros(N_REC)})
LEAKY = Function(leaky, {"w": PARAMS["w"]}, jnp.zeros(N_REC))
INPUTS, TARGETS = normal(2, STEPS, SAMPLES, N_IN), normal(3, STEPS, SAMPLES, N_REC)


def product(output: jax.Array, target: jax.Array) -> jax.Array:
    return (output * target).sum()


def learner_of(function: Function, rule: pb.Algorithm) -> tuple[pb.Learner, Any]:
    return pb.capture_function(function.step, function.params, function.state, INPUTS[0, 0], algorithm=rule)


def gradient(
    function: Function, rule: pb.Algorithm, strategy: str = "vmap", window: int | None = 4, **flags: Any
) -> Any:
    """The gradient of each sample; the window does not divide the sequence."""
    learner, params = learner_of(function, rule)
    grads = pb.sequence_grad(STRATEGIES[strategy](learner, SAMPLES), product, reduction="none", window=window)
    return grads(params, None, INPUTS, TARGETS, **flags)[0]


def backpropagated(function: Function, leak: float) -> Any:
    """The gradient of each sample by `jax.grad`, with a readout that leaks from step to step."""

    def total(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        def one(states: Any, data: Any) -> Any:
            state, output = function.step(params, states[0], data[0])
            readout = leak * states[1] + output
            return (state, readout), product(readout, data[1])

        start = (function.state, jnp.zeros(N_REC))
        return jax.lax.scan(one, start, (inputs, targets))[1].sum()

    return jax.vmap(jax.grad(total), (None, 1, 1))(function.params, INPUTS, TARGETS)


every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
every_window = pytest.mark.parametrize("window", [1, 4, None])


class TestRTRL:
    @pytest.mark.parametrize("name", EVERY)
    def test_equals_bptt(self, name: str, seed: int) -> None:
        """Over two windows of one step, and from their carry over one of three and a rest; over one of all steps."""
        made, exact = captured(name, seed, pb.RTRL()), captured(name, seed, pb.BPTT())
        data = made.data(STEPS, SAMPLES)
        first = made.run(Request(window=1), None, data.of_steps(0, 2))
        rest = made.run(Request(window=3), first.aux.carry, data.of_steps(2, STEPS))
        got = jax.tree.map(jnp.add, first.gradients, rest.gradients)
        whole = made.run(Request(window=STEPS), None, data).gradients
        want = exact.result(Request(window=None)).gradients
        assert_close(got, want, "exact")
        assert_close(whole, want, "exact")

    def test_a_step_after_others(self) -> None:
        """`learner.step` gives the whole gradient of a later loss."""
        learner, params = learner_of(TWO_STATES, pb.RTRL())
        carry, _ = learner.step(params, learner.init(), INPUTS[0, 0])

        def later(params: Any) -> jax.Array:
            return product(learner.step(params, carry, INPUTS[1, 0])[1], TARGETS[1, 0])

        def whole(params: Any) -> jax.Array:
            state, _ = two_states(params, TWO_STATES.state, INPUTS[0, 0])
            return product(two_states(params, state, INPUTS[1, 0])[1], TARGETS[1, 0])

        assert_close(jax.grad(later)(params), jax.grad(whole)(PARAMS), "exact")

    def test_every_weight_has_a_trace(self) -> None:
        rows = pb.explain(captured("readouts", 0, pb.RTRL()).learner).rows
        assert {row.way for row in rows} == {"trace"}
        assert all(row.traces and not row.reason for row in rows)

    def test_a_trace_that_is_too_large(self) -> None:
        text = r"^RTRL: got a trace of 1,024 bytes for one sample, expected at most 1,023\. Use D_RTRL or ES_D_RTRL"
        with pytest.raises(AlgorithmError, match=text):
            learner_of(TWO_STATES, pb.RTRL(max_bytes=1023))
        learner_of(TWO_STATES, pb.RTRL(max_bytes=1024))

    def test_a_complex_state(self) -> None:
        def step(params: Any, state: Any, x: jax.Array) -> Any:
            turned = state["z"] * jnp.exp(1j * params)
            return {"z": turned, "h": state["h"] + x + turned.real}, state["h"]

        state = {"z": jnp.ones(2, complex), "h": jnp.zeros(2)}
        with pytest.raises(AlgorithmError, match=r"^RTRL: got a complex state, expected real states\."):
            pb.capture_function(
                step, jnp.ones(2), state, jnp.ones(2), algorithm=pb.RTRL(), hidden=lambda path: path == "state.h"
            )

    @pytest.mark.parametrize("size", [0, 1.5, True])
    def test_no_number_of_bytes(self, size: Any) -> None:
        with pytest.raises(AlgorithmError, match=rf"^max_bytes: got {size}, expected an integer >= 1\."):
            pb.RTRL(max_bytes=size)

    def test_a_state_that_weights_alone_reach(self) -> None:
        """It is the same for every sample, and has a derivative all the same."""

        def step(params: Any, state: Any, x: jax.Array) -> Any:
            fast = 0.9 * state["fast"] + params["b"]
            return {"fast": fast, "h": 0.5 * state["h"] + x @ params["w"] + fast}, state["h"] * fast

        function = Function(step, PARAMS, {"fast": jnp.zeros(N_REC), "h": jnp.zeros(N_REC)})
        learner, params = pb.capture_function(
            step, PARAMS, function.state, INPUTS[0, 0], algorithm=pb.RTRL(), hidden=lambda path: path == "state.h"
        )
        want = backpropagated(function, leak=0.0)
        for make in STRATEGIES.values():
            grads = pb.sequence_grad(make(learner, SAMPLES), product, reduction="none", window=2)
            assert_close(grads(params, None, INPUTS, TARGETS)[0], want, "exact")


class TestEProp:
    @every_strategy
    @every_window
    def test_the_filter_is_a_leaky_readout(self, strategy: str, window: int | None) -> None:
        got = gradient(TWO_STATES, pb.EProp(0.8), strategy, window)
        assert_close(got, backpropagated(TWO_STATES, leak=0.8), "exact")
        assert distance(got["w"], gradient(TWO_STATES, pb.D_RTRL(rule="published"))["w"]) > 0.1

    @pytest.mark.parametrize("name", ["LSTMCell", "lif", "readouts"])
    def test_without_a_filter_it_is_d_rtrl(self, name: str, seed: int) -> None:
        made = captured(name, seed, pb.EProp(0.0)).result(Request()).gradients
        assert_close(made, captured(name, seed, RULES["D_RTRL published"]).result(Request()).gradients, "exact")

    def test_a_masked_step_filters_nothing(self) -> None:
        mask = np.ones((STEPS, SAMPLES), bool)
        mask[2] = mask[4] = False
        kept = np.delete(np.arange(STEPS), [2, 4])
        learner, params = learner_of(TWO_STATES, pb.EProp(0.8))
        grads = pb.sequence_grad(pb.vmap(learner, SAMPLES), product, reduction="none", window=2)
        masked, aux = grads(params, None, INPUTS, TARGETS, mask=mask)
        short, want = grads(params, None, INPUTS[kept], TARGETS[kept])
        assert_close(masked, short, "exact")
        assert_close(aux.carry.trace, want.carry.trace, "exact")

    def test_an_unfiltered_readout(self) -> None:
        """A readout that is a state of the step has the leak in its own trace."""

        def step(params: Any, state: Any, x: jax.Array) -> Any:
            h = 0.7 * jnp.tanh(state["h"]) + x @ params["w"]
            r = 0.8 * state["r"] + h @ params["out"]
            return {"h": h, "r": r}, r

        function = Function(
            step, {"w": PARAMS["w"], "out": normal(4, N_REC, N_REC)}, {"h": jnp.zeros(N_REC), "r": jnp.zeros(N_REC)}
        )
        want = backpropagated(function, leak=0.0)
        got = gradient(function, pb.EProp(0.8, unfiltered=["state.r"]))
        assert_close(got, want, "exact")
        assert distance(gradient(function, pb.EProp(0.8))["out"], want["out"]) > 0.1

    def test_an_unfiltered_path_that_is_none(self) -> None:
        text = r"^unfiltered: got 'r', expected paths of hidden states: 'state\.a', 'state\.b'\."
        with pytest.raises(AlgorithmError, match=text):
            learner_of(TWO_STATES, pb.EProp(0.8, unfiltered=("r",)))


class TestOTTT:
    @every_strategy
    @every_window
    def test_exact_for_one_leak(self, strategy: str, window: int | None) -> None:
        got = gradient(LEAKY, pb.OTTT(LEAK), strategy, window)
        assert_close(got, backpropagated(LEAKY, leak=0.0), "exact")
        assert distance(got["w"], gradient(LEAKY, pb.OTTT(0.5))["w"]) > 0.1

    def test_an_output_of_the_old_state(self) -> None:
        def step(params: Any, v: jax.Array, x: jax.Array) -> Any:
            new = LEAK * v + x @ params["w"]
            return new, jnp.tanh(new) * (1 - v)

        function = LEAKY._replace(step=step)
        assert_close(gradient(function, pb.OTTT(LEAK)), backpropagated(function, leak=0.0), "exact")


@pytest.mark.parametrize("rule", [pb.EProp, pb.OTTT])
@pytest.mark.parametrize("value", [1.0, -0.1, 2, True, "0.5", jnp.asarray(1.0)])
def test_a_leak_out_of_range(rule: Callable[..., Any], value: Any) -> None:
    with pytest.raises(AlgorithmError, match=r"expected a number with 0 <= (kappa|decay) < 1\. Use (kappa|decay)=0\.9"):
        rule(value)


MADE: dict[str, Callable[[Any], pb.Algorithm]] = {
    "ES_D_RTRL": pb.ES_D_RTRL,
    "ES_D_RTRL published": functools.partial(pb.ES_D_RTRL, rule="published"),
    "ES_D_RTRL multi-step": functools.partial(pb.ES_D_RTRL, vjp="multi-step"),
    "Hybrid": pb.Hybrid,
    "EProp": pb.EProp,
    "OTTT": pb.OTTT,
}
LEAKS = (0.5, 0.8, 0.95)


def of_step(rule: pb.Algorithm) -> tuple[pb.Carry, Any]:
    """The carry after a step, and the gradient of the next."""
    learner, params = learner_of(TWO_STATES, rule)
    carry, _ = learner.step(params, learner.init(), INPUTS[0, 0])
    return carry, jax.grad(lambda p: product(learner.step(p, carry, INPUTS[1, 0])[1], TARGETS[1, 0]))(params)


def of_sequence(rule: pb.Algorithm, make: Callable[..., Any] = pb.sequence_grad) -> Any:
    """What a driver gives."""
    learner, params = learner_of(TWO_STATES, rule)
    return make(pb.vmap(learner, SAMPLES), product)(params, None, INPUTS, TARGETS)


RESULTS: dict[str, Callable[[pb.Algorithm], Any]] = {
    "losses": lambda rule: of_sequence(rule)[1].losses,
    "gradients": lambda rule: of_sequence(rule)[0],
    "carry": lambda rule: of_sequence(rule)[1].carry.trace,
    "a step": lambda rule: of_step(rule)[1],
    "a step's carry": lambda rule: of_step(rule)[0].trace,
    "norms": lambda rule: of_sequence(rule, pb.sample_norms)[0],
}


class TestTracedNumbers:
    @pytest.mark.parametrize("name", MADE)
    def test_a_sweep(self, name: str) -> None:
        """`jax.vmap` over the decay gives each decay's own gradient, and traces the step once."""
        calls = []

        def counted(*args: Any) -> Any:
            calls.append(args)
            return two_states(*args)

        sweep = TWO_STATES._replace(step=counted)
        got = jax.vmap(lambda leak: gradient(sweep, MADE[name](leak)))(jnp.asarray(LEAKS))
        traced_for_all = len(calls)
        for place, leak in enumerate(LEAKS):
            calls.clear()
            want = gradient(sweep, MADE[name](leak))
            assert len(calls) == traced_for_all
            assert_close(jax.tree.map(lambda leaf, place=place: leaf[place], got), want, "exact")
        assert distance(got["w"][0], got["w"][1]) > 1e-3

    def test_a_number_that_changes(self) -> None:
        """Numbers that take the place of an array share what is compiled, and give each its own gradient."""
        learner, params = learner_of(TWO_STATES, pb.ES_D_RTRL(jnp.asarray(LEAKS[0])))
        for leak, kind in itertools.product(LEAKS, (jnp.asarray, np.asarray, float)):
            changed = eqx.tree_at(lambda one: one.algorithm.decay_or_rank, learner, kind(leak))
            grads = pb.sequence_grad(pb.vmap(changed, SAMPLES), product, reduction="none", window=4)
            assert_close(grads(params, None, INPUTS, TARGETS)[0], gradient(TWO_STATES, pb.ES_D_RTRL(leak)), "exact")

    def test_a_number_of_another_type_keeps_the_types(self) -> None:
        """A decay in float32 leaves float64 traces as they are."""
        learner, params = learner_of(TWO_STATES, pb.ES_D_RTRL(jnp.float32(0.5)))
        carry, _ = learner.step(params, learner.init(), INPUTS[0, 0])
        assert {leaf.dtype for leaf in jax.tree.leaves(carry.trace)} == {np.dtype(np.float64)}

    def test_a_step_inside_a_sweep(self) -> None:
        got = jax.vmap(lambda leak: of_step(pb.ES_D_RTRL(leak))[1])(jnp.asarray(LEAKS))
        assert_close(jax.tree.map(lambda leaf: leaf[1], got), of_step(pb.ES_D_RTRL(LEAKS[1]))[1], "exact")

    @pytest.mark.parametrize("through", ["losses", "gradients", "carry", "a step", "a step's carry", "norms"])
    @pytest.mark.parametrize("name", MADE)
    def test_it_has_no_derivative(self, name: str, through: str) -> None:
        """The traces are held constant: JAX would give zeros, or the part of a bias correction."""

        def total(leak: Any) -> jax.Array:
            return sum((leaf.sum() for leaf in jax.tree.leaves(RESULTS[through](MADE[name](leak)))), jnp.zeros(()))

        text = (
            r"^algorithm: got a derivative by a number of the rule, such as its decay, expected one by params or inputs"
        )
        for derive in (
            jax.grad,
            lambda fun: jax.jit(jax.jacfwd(fun)),
            lambda fun: jax.vmap(jax.grad(fun), None, axis_size=1),
        ):
            with pytest.raises(AlgorithmError, match=text + r".* Compare several values by jax\.vmap"):
                derive(total)(jnp.asarray(LEAKS[0]))
        total(jnp.asarray(LEAKS[0]))

    @pytest.mark.parametrize("name", MADE)
    def test_derivatives_by_params_beside_it(self, name: str) -> None:
        """In a scan, under jit and a checkpoint, the traced decay is no obstacle."""

        def slope(leak: Any, around: Callable[..., Any]) -> Any:
            learner, params = learner_of(TWO_STATES, MADE[name](leak))

            def total(params: Any) -> jax.Array:
                def one(carry: pb.Carry, data: Any) -> Any:
                    after, output = learner.step(params, carry, data[0])
                    return after, product(output, data[1])

                return jax.lax.scan(around(one), learner.init(), (INPUTS[:, 0], TARGETS[:, 0]))[1].sum()

            return jax.grad(total)(params)

        want = slope(LEAKS[0], lambda step: step)
        assert all(abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(want))
        for around in (jax.jit, jax.checkpoint):
            got = jax.jit(jax.vmap(functools.partial(slope, around=around)))(jnp.asarray(LEAKS[:1]))
            assert_close(jax.tree.map(lambda leaf: leaf[0], got), want, "exact")

    def test_a_learner_of_constants_is_a_constant(self) -> None:
        learner, _ = learner_of(TWO_STATES, pb.ES_D_RTRL(0.9))
        assert jax.tree.leaves(learner) == []
        assert pb.ES_D_RTRL(0.9) == pb.ES_D_RTRL(0.9) != pb.ES_D_RTRL(0.8)


# The type of traces, and how far a gradient may then be from that with traces in float64.
TYPES = ((jnp.bfloat16, 0.02), (np.float16, 2e-3), (np.float32, 1e-6))


class TestTypesOfTraces:
    @pytest.mark.parametrize("rule", [name for name in RULES if name != "BPTT"])
    @pytest.mark.parametrize(("dtype", "allowed"), TYPES)
    def test_near_the_full_trace(self, rule: str, dtype: Any, allowed: float) -> None:
        """In every strategy; windows of two steps hand a trace on twice."""
        narrow = dataclasses.replace(RULES[rule], trace_dtype=dtype)
        want = gradient(TWO_STATES, RULES[rule], window=2)
        for strategy in STRATEGIES:
            got = gradient(TWO_STATES, narrow, strategy, window=2)
            pairs = [(one, other) for (_, one), (_, other) in zip(named(got), named(want), strict=True)]
            assert all(one.dtype == np.float64 for one, _ in pairs)
            assert 0 < max(distance(one, other) for one, other in pairs) < allowed

    @pytest.mark.parametrize("rule", [name for name in RULES if name != "BPTT"])
    def test_the_carry_keeps_the_type(self, rule: str) -> None:
        learner, params = learner_of(TWO_STATES, dataclasses.replace(RULES[rule], trace_dtype="bfloat16"))
        fresh = learner.init()
        after, _ = learner.step(params, fresh, INPUTS[0, 0])
        for carry in (fresh, after):
            assert {leaf.dtype for leaf in jax.tree.leaves(carry.trace)} == {np.dtype(jnp.bfloat16)}
            assert carry.hidden["state.a"].dtype == np.float64
        whole = learner_of(TWO_STATES, RULES[rule])[0]
        assert 4 * sum(row.nbytes for row in pb.explain(learner).rows) == sum(
            row.nbytes for row in pb.explain(whole).rows
        )

    def test_a_trace_is_converted(self) -> None:
        """As the error says that refuses it: the carry then goes on under the rule with narrow traces."""
        wide, narrow = (pb.D_RTRL(rule="published", trace_dtype=dtype) for dtype in (None, jnp.bfloat16))
        learner, params = learner_of(TWO_STATES, wide)
        carry, _ = learner.step(params, learner.init(), INPUTS[0, 0])
        other, _ = learner_of(TWO_STATES, narrow)
        with pytest.raises(CarryError, match=r"tree\.map\(lambda eps: eps\.astype\('bfloat16'\), carry\.trace\)\)\."):
            other.step(params, carry, INPUTS[1, 0])
        converted = carry._replace(trace=jax.tree.map(lambda eps: eps.astype("bfloat16"), carry.trace))
        after, _ = other.step(params, converted, INPUTS[1, 0])
        assert {leaf.dtype for leaf in jax.tree.leaves(after.trace)} == {np.dtype(jnp.bfloat16)}
        assert all(jnp.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(after.trace))

    @pytest.mark.parametrize("dtype", [int, "complex64", "float", 3, np.longdouble])
    def test_no_float_type(self, dtype: Any) -> None:
        if dtype == "float":
            assert pb.D_RTRL(trace_dtype=dtype).trace_dtype == np.float64
            return
        with pytest.raises(AlgorithmError, match=r"^trace_dtype: got .*, expected None or a float type"):
            pb.D_RTRL(trace_dtype=dtype)
