"""Streams of one and of eight samples: a step with its gradient, and what a bare call costs outside `jax.jit`.

    python benchmarks/small_batches.py

Results go to `build/benchmarks/`; `--help` lists the options.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import _streams
import jax
import numpy as np
import optax
from _bars import Bar, Overhead, ratio
from _cases import Strategy
from _command import Section, main
from _floors import DECAY, Weights, weights_of
from _measuring import Run, compiled
from _problem import Sizes, make_problem

import pure_batching as pb
from pure_batching._tutorial.training import loss

RULES: dict[str, pb.Algorithm] = {
    "ES_D_RTRL": pb.ES_D_RTRL(DECAY),
    "D_RTRL published": pb.D_RTRL(rule="published"),
}
STRATEGIES: dict[str, Strategy] = {"manual": pb.manual, "vmap": pb.vmap}

# What the checks of arguments may cost.
MICROSECONDS = 200

# Steps before the one that is timed, so that spikes and traces are there.
BEFORE = 4

ByHand = Callable[[Weights, Any, jax.Array, jax.Array], tuple[Any, Any]]
HAND: dict[str, tuple[Callable[[Weights, int], Any], ByHand]] = {
    "ES_D_RTRL": (_streams.es_start, _streams.es_step),
    "D_RTRL published": (_streams.d_start, _streams.d_step),
}


class Stream:
    """The tutorial's network under one rule, a few steps after its start.

    Attributes:
      learner, params, carry: of the batch.
      x, labels: of the next step, `[B, F]` and `[B]`.
    """

    def __init__(self, algorithm: pb.Algorithm, strategy: Strategy, samples: int) -> None:
        net, data = make_problem(Sizes(steps=BEFORE + 1, samples=samples))
        one, self.params = pb.capture(net, data.inputs[0, 0], algorithm=algorithm)
        self.learner: pb.Learner = strategy(one, samples)
        self.carry = self.learner.init()
        for x in data.inputs[:-1]:
            self.carry, _ = self.learner.step(self.params, self.carry, x)
        self.x, self.labels = data.inputs[-1], data.labels

    def gradient(self, params: Any, carry: pb.Carry, x: jax.Array, labels: jax.Array) -> Any:
        """A step of the learner, and the gradient of its mean loss: the carry and the gradient."""

        def mean_loss(params: Any) -> Any:
            after, logits = self.learner.step(params, carry, x)
            return jax.vmap(loss)(logits, labels).mean(), after

        gradients, after = jax.grad(mean_loss, has_aux=True)(params)
        return gradients, after

    def by_grad_fn(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """`pb.sequence_grad` of one step, and its arguments."""
        grad_fn = pb.sequence_grad(self.learner, loss)
        return grad_fn, (self.params, self.carry, self.x[None], self.labels[None])


def hand(rule: str, samples: int) -> Run:
    """The same step, written out."""
    net, data = make_problem(Sizes(steps=BEFORE + 1, samples=samples))
    weights = weights_of(net, data.inputs.shape[-1])
    start, step = HAND[rule]
    carry = start(weights, samples)
    for x in data.inputs[:-1]:
        carry, _ = jax.jit(step)(weights, carry, x, data.labels)

    def gradient(weights: Weights, carry: Any, x: jax.Array, labels: jax.Array) -> Any:
        after, gradients = step(weights, carry, x, labels)
        return gradients, after

    return compiled(gradient, weights, carry, data.inputs[-1], data.labels)


def steps(samples: int) -> Section:
    """A jitted step with its gradient, which reads and writes the carry."""
    cases: dict[str, Run] = {}
    for rule, algorithm in RULES.items():
        for how, by in STRATEGIES.items():
            stream = Stream(algorithm, by, samples)
            arguments = stream.params, stream.carry, stream.x, stream.labels
            cases[f"{rule}, learner.step, {how}"] = compiled(stream.gradient, *arguments)
            grad_fn, given = stream.by_grad_fn()
            cases[f"{rule}, sequence_grad of a step, {how}"] = compiled(grad_fn, *given)
        cases[f"{rule}, by hand"] = hand(rule, samples)
    ways = [f"{way}, {how}" for way in ("learner.step", "sequence_grad of a step") for how in STRATEGIES]
    bars = [ratio(f"{rule}, {way}", f"{rule}, by hand", at_most=1.05) for rule in RULES for way in ways]
    same = [[f"{rule}, by hand", *(f"{rule}, {way}" for way in ways)] for rule in RULES]
    title = f"B={samples}, 100 -> 200 -> 10, one jitted step with its gradient"
    return Section(title, cases, bars, same, gradient=lambda result: result[0])


def overhead() -> Section:
    """Bare calls, which check their arguments, and the same functions compiled as a whole."""
    cases, bars = dict[str, Run](), list[Bar]()
    for samples in (1, 8):
        stream = Stream(RULES["ES_D_RTRL"], pb.vmap, samples)
        grad_fn, given = stream.by_grad_fn()
        one_step = stream.params, stream.carry, stream.x
        for name, function, arguments in (
            ("learner.step", stream.learner.step, one_step),
            ("grad_fn", grad_fn, given),
        ):
            bare, inside = f"{name}, B={samples}, bare", f"{name}, B={samples}, in jit"
            cases[bare] = Run(partial(function, *arguments))
            cases[inside] = compiled(function, *arguments)
            bars.append(Overhead(case=bare, against=inside, at_most=MICROSECONDS))
    return Section("the cost of a call outside jit, ES_D_RTRL, vmap", cases, bars)


def sessions() -> Section:
    """An update of a table of eight sessions, whose ids are looked up on the host, and of a learner of eight."""
    cases: dict[str, Run] = {}
    optimizer = optax.sgd(0.0)
    for rule, algorithm in RULES.items():
        net, data = make_problem(Sizes(steps=2, samples=8))
        learner, params = pb.capture(net, data.inputs[0, 0], algorithm=algorithm)
        slots, ids = pb.Slots(learner, 8), np.arange(8)
        table = slots.empty()
        for session in ids:
            table = slots.admit(table, int(session))
        state = optimizer.init(params)
        x, labels = np.asarray(data.inputs[0]), np.asarray(data.labels)
        options = {"loss": loss, "optimizer": optimizer}
        learn = partial(slots.learn, params, state, table, ids, x, labels, **options)
        cases[f"{rule}, Slots.learn"] = Run(lambda learn=learn: learn()[:2])
        cases[f"{rule}, Slots.step"] = Run(lambda slots=slots, given=(params, table, ids, x): slots.step(*given)[1])
        batched = pb.vmap(learner, 8)
        train = pb.online(batched, loss, optimizer, every=1)
        given = params, state, batched.init(), x[None], labels[None]
        cases[f"{rule}, pb.online of a step"] = compiled(train, *given)
    bars = [Overhead(case=f"{rule}, Slots.learn", against=f"{rule}, pb.online of a step") for rule in RULES]
    return Section("eight sessions, an update after a step", cases, bars)


SECTIONS = {
    "B=1": partial(steps, 1),
    "B=8": partial(steps, 8),
    "overhead": overhead,
    "sessions": sessions,
}

if __name__ == "__main__":
    main(SECTIONS)
