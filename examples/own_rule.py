"""A learning rule of one's own, a three-factor rule in forty lines, and the laws that it has to obey."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

import pure_batching as pb
from pure_batching.rules import Factors, Jacobians, Params, Program, Relation, Signal
from pure_batching.testing import Function, assert_interchangeable


class Traces(NamedTuple):
    """Of each weight's input, and of each neuron's response, `dh/dy`."""

    before: dict[str, jax.Array]
    after: dict[str, jax.Array]


class ThreeFactor(pb.Algorithm):
    """A trace of the input, times a trace of the response, times the learning signal.

    Source: Gerstner et al., "Eligibility Traces and Plasticity on Behavioral Time Scales" (2018),
    doi:10.3389/fncir.2018.00053.
    """

    decay_before: float = eqx.field(static=True)
    decay_after: float = eqx.field(static=True)

    def init(self, program: Program) -> Traces:
        """Zeros."""
        inputs = {name: jnp.zeros(x.spec.shape, x.spec.dtype) for name, x in program.weight_inputs().items()}
        return Traces(inputs, {link.df: jnp.zeros(link.shape, link.group.dtype) for link in program.links()})

    def step(
        self, program: Program, params: Params, trace: Traces, jacobians: Jacobians, signal: Signal, count: jax.Array
    ) -> tuple[Traces, tuple[Factors, ...]]:
        """Let both traces decay, add what is new, and hand over `x (x) dy`."""
        del params, count
        before = {name: self.decay_before * eps + jacobians.xs[name] for name, eps in trace.before.items()}
        after = {name: self.decay_after * eps + jacobians.dfs[name] for name, eps in trace.after.items()}
        dys = {relation.name: (self._dy(relation, after, signal),) for relation in program.relations}
        return Traces(before, after), (Factors(before, dys),)

    def _dy(self, relation: Relation, after: dict[str, jax.Array], signal: Signal) -> jax.Array:
        """`sum_s eps_df L` of all hidden groups that a use reaches."""
        return sum(
            ((after[link.df] * link.seen(signal.new[link.group.name])).sum(-1) for link in relation.links),
            start=jnp.zeros((), relation.y.dtype),
        )

    def traces_of(self, relation: Relation, trace: Traces) -> dict[str, jax.Array]:
        """What `pb.explain` shows."""
        inputs = {} if relation.x is None else {"x": trace.before[relation.x.name]}
        return inputs | {f"df of {link.group.name}": trace.after[link.df] for link in relation.links}


def step(params: Any, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    hidden = 0.8 * hidden + jnp.tanh(x @ params["w"] + hidden @ params["u"])
    return hidden, hidden @ params["out"]


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    return ((output - target) ** 2).sum()


keys, sizes = jax.random.split(jax.random.key(0), 5), (("w", (3, 8)), ("u", (8, 8)), ("out", (8, 2)))
params = {name: jax.random.normal(key, size) / 3 for key, (name, size) in zip(keys, sizes, strict=False)}
inputs, targets = jax.random.normal(keys[3], (6, 4, 3)), jax.random.normal(keys[4], (6, 4, 2))
learner, _ = pb.capture_function(step, params, jnp.zeros(8), inputs[0, 0], algorithm=(rule := ThreeFactor(0.9, 0.5)))
print(pb.explain(learner))
grads, losses = pb.sequence_grad(pb.vmap(learner, 4), loss), []
for _ in range(100):
    gradients, aux = grads(params, None, inputs, targets)
    params = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradients)
    losses.append(aux.losses.mean())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
assert losses[-1] < losses[0] / 2
print(assert_interchangeable(lambda: Function(step, params, jnp.zeros(8)), rule, inputs, targets, loss))
