"""BrainScale's own training loop: one sample, a batch by hand, a batch by vmap."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp

import pure_batching as pb

from ..bench import SAMPLES, Bench, bench

Tree = Any
Make = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """An algorithm of ours, and BrainScale's."""

    ours: pb.Algorithm
    native: Make


RULES = {
    "ES_D_RTRL": Rule(pb.ES_D_RTRL(0.9), functools.partial(brainscale.ES_D_RTRL, decay_or_rank=0.9)),
    "D_RTRL": Rule(pb.D_RTRL(), brainscale.D_RTRL),
}


@dataclasses.dataclass(frozen=True)
class Ran:
    """What BrainScale computed."""

    gradients: Tree
    losses: jax.Array
    outputs: Tree
    algorithm: Any


class Native:
    """A compiled algorithm that can run many sequences, each from the states that it was compiled with."""

    def __init__(self, net: brainstate.nn.Module, algorithm: Any, step: Make, loss: Make) -> None:
        self.net, self.algorithm, self.step, self.loss = net, algorithm, step, loss
        self.weights = net.states(brainstate.ParamState)
        states = brainstate.graph.states(algorithm).values()
        self.start = [(s, s.value) for s in states if not isinstance(s, brainstate.ParamState)]
        self.compiled = brainstate.transform.jit(self._sequence)

    def run(self, inputs: tuple[Tree, ...], targets: Tree) -> Ran:
        """The gradient summed over a sequence, step by step."""
        gradients, (losses, outputs) = self.compiled(inputs, targets)
        named = {".".join(map(str, path)): value for path, value in gradients.items()}
        return Ran(dict(sorted(named.items())), losses, outputs, self.algorithm)

    def _sequence(self, inputs: tuple[Tree, ...], targets: Tree) -> Any:
        for state, value in self.start:
            state.value = value
        zeros = jax.tree.map(u.math.zeros_like, self.weights.to_dict_values(), is_leaf=u.math.is_quantity)
        return brainstate.transform.scan(self._add, zeros, (inputs, targets))

    def _add(self, total: Tree, given: tuple[tuple[Tree, ...], Tree]) -> Any:
        def losses() -> Any:
            output = self.step(*given[0])
            return self.loss(output, given[1]).sum(), (self.loss(output, given[1]), output)

        gradient, kept = brainstate.transform.grad(losses, self.weights, has_aux=True)()
        return jax.tree.map(lambda a, b: a + b, total, gradient, is_leaf=u.math.is_quantity), kept


def one_sample(made: Bench, rule: str) -> Native:
    """BrainScale on one sample."""
    net, (inputs, _) = made.model.build(made.seed), arrays(made.data())
    with brainstate.environ.context(**made.model.settings):
        brainstate.nn.init_all_states(net)
        algorithm = RULES[rule].native(net)
        algorithm.compile_graph(*inputs)
    return Native(net, algorithm, algorithm, made.model.loss)


def by_hand(made: Bench, rule: str) -> Native:
    """BrainScale's manual batching."""
    net, (inputs, _) = made.model.build(made.seed), arrays(made.data(SAMPLES))
    with brainstate.environ.context(**made.model.settings):
        brainstate.nn.init_all_states(net, batch_size=SAMPLES)
        algorithm = RULES[rule].native(net, mode=brainstate.mixin.Batching())
        algorithm.compile_graph(*inputs)
    return Native(net, algorithm, algorithm, jax.vmap(made.model.loss))


def by_vmap(made: Bench, rule: str) -> Native:
    """BrainScale's automatic batching."""
    net, (inputs, _) = made.model.build(made.seed), arrays(made.data())
    algorithm = RULES[rule].native(net)

    @brainstate.transform.vmap_new_states(state_tag="new", axis_size=SAMPLES)
    def init() -> None:
        brainstate.nn.init_all_states(net)
        algorithm.compile_graph(*inputs)

    with brainstate.environ.context(**made.model.settings):
        init()
    mapped = brainstate.nn.Vmap(algorithm, vmap_states="new")
    return Native(net, algorithm, mapped, jax.vmap(made.model.loss))


@functools.cache
def native(kind: Callable[[Bench, str], Native], name: str, rule: str, seed: int) -> tuple[Bench, Native]:
    """A model of the registry, captured by us and compiled by BrainScale."""
    made = bench(name, seed, RULES[rule].ours)
    with brainstate.environ.context(**made.model.settings):
        return made, kind(made, rule)


def arrays(tree: Tree) -> Tree:
    """A tree of numpy arrays as JAX's."""
    return jax.tree.map(jnp.asarray, tree)
