"""The gradient of a step is complete with the published rules, whatever the output reads."""

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale.nn import Linear
from brainstate import HiddenState

import pure_batching as pb
from pure_batching.testing._alive import assert_gradients_alive

from .bench import RULES, SAMPLES, STEPS, STRATEGIES, Request, bench
from .trees import assert_close

NAME = "past_hidden"
D, ES = RULES["D_RTRL published"], RULES["ES_D_RTRL published"]

# What a module with the product `y` of a weight, an old state `h` and a new one `new` may return.
READOUTS = {
    "the new state": lambda y, h, new: new,
    "the product past the state": lambda y, h, new: new + jnp.sin(y),
    "the old state": lambda y, h, new: new * (1 - h),
    "the product and the old state": lambda y, h, new: jnp.cos(new) * y * h,
    "nothing but the old state": lambda y, h, new: jnp.tanh(h),
    "an integer beside the product": lambda y, h, new: y * (jnp.sign(h).astype(int) + 2),
}


class Element(brainstate.nn.Module):
    """`h = 0.8 h + tanh(y)`, `y = W x`."""

    def __init__(self, readout: Any) -> None:
        super().__init__()
        with brainstate.random.seed_context(0):
            self.inp = Linear(3, 4)
        self.readout = readout

    def init_state(self, *_: Any, **__: Any) -> None:
        self.h = HiddenState(jnp.zeros(4))

    def update(self, x: jax.Array) -> jax.Array:
        y, h = self.inp(x), self.h.value
        self.h.value = 0.8 * h + jnp.tanh(y)
        return self.readout(y, h, self.h.value)


def squared(output: Any, target: Any) -> Any:
    return ((output - target) ** 2).sum()


def gradient(net: Any, rule: str, inputs: Any, **options: Any) -> Any:
    learner, params = pb.capture(net, inputs[0], algorithm=RULES[rule])
    return pb.sequence_grad(learner, squared, **options)(params, None, inputs, np.ones(len(inputs)))[0]


@pytest.mark.parametrize("window", [1, 2, None])
@pytest.mark.parametrize("readout", READOUTS)
def test_d_rtrl_equals_backpropagation(readout: str, window: int | None) -> None:
    net, inputs = Element(READOUTS[readout]), np.random.default_rng(0).standard_normal((5, 3))
    got = gradient(net, "D_RTRL published", inputs, window=window)
    assert_close(got, gradient(net, "BPTT", inputs))


@pytest.mark.parametrize("rule", ["D_RTRL published", "ES_D_RTRL published", "Hybrid published"])
def test_one_step_equals_backpropagation(rule: str) -> None:
    """From a fresh start every trace is that of one step."""
    made, exact = (bench(NAME, 0, RULES[one]) for one in (rule, "BPTT"))
    request = Request("vmap", steps=1)
    assert_close(made.result(request).gradients, exact.result(request).gradients)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("window", [1, 4, None])
def test_everything_at_once(strategy: str, window: int | None) -> None:
    made, exact = bench(NAME, 0, D), bench(NAME, 0, RULES["BPTT"])
    want = exact.result(Request("loop", window=None)).gradients
    assert_close(made.result(Request(strategy, window=window)).gradients, want)


@pytest.mark.parametrize("strategy", ["vmap", "manual"])
def test_masks_and_resets(strategy: str) -> None:
    made, exact = bench(NAME, 0, D), bench(NAME, 0, RULES["BPTT"])
    mask, reset = np.ones((STEPS, SAMPLES), bool), np.zeros((STEPS, SAMPLES), bool)
    mask[1, 0], mask[4:, 1], reset[3, 0], reset[2, 2] = False, False, True, True

    def run(made: Any, strategy: str) -> Any:
        fun = pb.sequence_grad(made.batched(strategy), made.model.loss, reduction="none", window=None)
        return fun(made.params, None, *made.data(STEPS, SAMPLES), mask=mask, reset=reset)[0]

    assert_close(run(made, strategy), run(exact, "loop"))


@pytest.mark.parametrize("rule", [D, ES], ids=repr)
def test_steps_equal_the_sequence(rule: pb.Algorithm) -> None:
    made = bench(NAME, 0, rule)
    batched, (inputs, targets) = made.batched("manual"), made.data(STEPS, SAMPLES)

    def total(params: Any) -> Any:
        def one(carry: Any, data: Any) -> Any:
            carry, output = batched.step(params, carry, *data[0])
            return carry, jax.vmap(made.model.loss)(output, data[1]).sum()

        return jax.lax.scan(one, batched.init(), (inputs, targets))[1].sum()

    want = made.result(Request("vmap", reduction="sum")).gradients
    assert_close(jax.grad(total)(made.params), want)


def test_norms() -> None:
    made = bench(NAME, 0, D)
    each = made.result(Request("vmap", window=None)).gradients
    want = jnp.sqrt(sum((leaf**2).reshape(SAMPLES, -1).sum(1) for leaf in jax.tree.leaves(each)))
    got, _ = pb.sample_norms(made.batched("vmap"), made.model.loss)(made.params, None, *made.data(STEPS, SAMPLES))
    assert_close(got, want)


class Passing(brainstate.nn.Module):
    """Two states without a memory lead to one that has one, within the step; all are one group of a complete rule."""

    def __init__(self) -> None:
        super().__init__()
        with brainstate.random.seed_context(0):
            self.inp = Linear(3, 4)

    def init_state(self, *_: Any, **__: Any) -> None:
        self.z, self.u, self.v = (HiddenState(jnp.zeros(4)) for _ in range(3))

    def update(self, x: jax.Array) -> Any:
        self.z.value = jnp.tanh(self.inp(x))
        self.u.value = self.z.value**2 + jnp.sin(self.z.value)
        self.v.value = 0.8 * self.v.value + self.u.value * self.z.value
        return self.v.value * (1 + self.u.value) + self.z.value


@pytest.mark.parametrize("window", [1, 2, None])
def test_a_way_from_group_to_group_within_a_step_counts_once(window: int | None) -> None:
    inputs = np.random.default_rng(0).standard_normal((5, 3))
    learner, _ = pb.capture(Passing(), inputs[0], algorithm=D)
    assert {row.groups for row in pb.explain(learner).rows} == {("u, v, z",)}
    got, want = gradient(Passing(), "D_RTRL published", inputs, window=window), gradient(Passing(), "BPTT", inputs)
    assert_gradients_alive(got)
    assert_close(got, want)


@pytest.mark.parametrize("rule", ["ES_D_RTRL published", "Hybrid published", "EProp"])
def test_so_it_does_with_other_rules(rule: str) -> None:
    """In one step, after which they are exact."""
    inputs = np.random.default_rng(0).standard_normal((1, 3))
    assert_close(gradient(Passing(), rule, inputs), gradient(Passing(), "BPTT", inputs))


def test_explain_says_what_the_default_rule_leaves_out() -> None:
    net = Element(READOUTS["the product and the old state"])
    by_default, complete = (pb.explain(pb.capture(net, np.ones(3), algorithm=rule)[0]) for rule in (RULES["D_RTRL"], D))
    (row,) = by_default.rows
    assert row.incomplete == (
        "leaves out the way of its result to the output past the hidden states and what the output reads of the old h"
    )
    assert f"the rule {row.incomplete}" in str(by_default)
    assert [row.incomplete for row in complete.rows] == [""]


def test_explain_says_what_the_default_rule_counts_twice() -> None:
    rows = pb.explain(bench(NAME, 0, RULES["D_RTRL"]).learner).rows
    said = [row.weight for row in rows if row.incomplete.startswith("counts what this use does within a step twice")]
    assert said == ["both.weight_op"]
