"""A captured model with its strategies, its data and its gradients, each made once in a test run."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import brainstate
import jax

import pure_batching as pb
from pure_batching.testing import Case, Data, Subject
from pure_batching.testing._kept import kept

from .models import MODELS, Model

Tree = Any

# The batch and the sequence of every comparison; the window is shorter than the sequence, and divides it.
SAMPLES, STEPS, WINDOW = 3, 6, 3


def in_chunks(learner: pb.Learner, samples: int) -> pb.Learner:
    """Two samples at a time, and what is left."""
    return pb.chunked(learner, samples, chunk=min(2, samples))


def on_devices(learner: pb.Learner, samples: int) -> pb.Learner:
    """As many devices as divide the batch, with one sample after the other on each."""
    devices = max(n for n in range(1, jax.device_count() + 1) if samples % n == 0)
    mesh = jax.make_mesh((devices,), ("batch",), devices=jax.devices()[:devices])
    return pb.sharded(learner, samples, mesh=mesh, by=functools.partial(pb.chunked, chunk=1))


def in_chunks_on_devices(learner: pb.Learner, samples: int) -> pb.Learner:
    """At least three samples on each device, two of them at a time by `pb.manual`, and what is left."""
    devices = max([n for n in range(1, jax.device_count() + 1) if samples % n == 0 and samples // n > 2], default=1)
    mesh = jax.make_mesh((devices,), ("batch",), devices=jax.devices()[:devices])
    by = functools.partial(pb.chunked, chunk=min(2, samples // devices), by=pb.manual)
    return pb.sharded(learner, samples, mesh=mesh, by=by)


# As a user calls them: `pb.manual` refuses what couples samples.
PLAIN = {"loop": pb.loop, "vmap": pb.vmap, "manual": pb.manual}
SHARING = {"chunked": in_chunks, "sharded": on_devices}
STRATEGIES = {**PLAIN, **SHARING}

# What is left out by default: each of the strategies inside it is shown by itself.
NESTED = {"nested": in_chunks_on_devices}
SHARED_OUT = {**SHARING, **NESTED}
MAKERS = {**STRATEGIES, **NESTED}

# One model for each way of keeping states, where a law costs too much for all of them.
REPRESENTATIVES = ("tutorial", "LSTMCell", "delayed", "trees")


def shared_out(model: Model) -> list[str]:
    """The strategies that share a batch of the model out."""
    return [*SHARED_OUT] if "manual" in model.strategies else [*SHARING]


# Every model with every strategy that runs it, and those runs that must equal the loop.
RUNS = [(model.name, strategy) for model in MODELS.values() for strategy in (*model.strategies, *shared_out(model))]
BATCHED_RUNS = [(name, strategy) for name, strategy in RUNS if strategy != "loop"]
REPRESENTATIVE_RUNS = [(name, strategy) for name in REPRESENTATIVES for strategy in STRATEGIES]

# One model for each kind of weight operation, and for weights without a trace.
WEIGHTS = (
    *("tutorial", "LRUCell", "conv_rates", "lora", "masked", "signed", "element_wise", "trees", "used_twice"),
    *("readouts", "stack"),
)

# Every algorithm, with every rule and every learning signal.
RULES: Mapping[str, pb.Algorithm] = {
    "ES_D_RTRL": pb.ES_D_RTRL(0.9),
    "ES_D_RTRL published": pb.ES_D_RTRL(5, rule="published"),
    "ES_D_RTRL multi-step": pb.ES_D_RTRL(0.9, vjp="multi-step"),
    "ES_D_RTRL published multi-step": pb.ES_D_RTRL(5, rule="published", vjp="multi-step"),
    "D_RTRL": pb.D_RTRL(),
    "D_RTRL published": pb.D_RTRL(rule="published"),
    "D_RTRL multi-step": pb.D_RTRL(vjp="multi-step"),
    "D_RTRL published multi-step": pb.D_RTRL(rule="published", vjp="multi-step"),
    "Hybrid": pb.Hybrid(0.9),
    "Hybrid published": pb.Hybrid(5, rule="published"),
    "Hybrid multi-step": pb.Hybrid(0.9, vjp="multi-step"),
    "EProp": pb.EProp(0.8),
    "OTTT": pb.OTTT(0.9),
    "RTRL": pb.RTRL(),
    "BPTT": pb.BPTT(),
}

# Those whose gradient does not depend on the window, and those that propagate back through it with a trace behind it.
ONLINE_RULES = {name: rule for name, rule in RULES.items() if rule.credit == "trace"}
MULTI_STEP_RULES = {name: rule for name, rule in RULES.items() if name.endswith("multi-step")}


@dataclasses.dataclass(frozen=True)
class Request:
    """What a gradient is asked for with; no strategy stands for one sample."""

    strategy: str | None = "vmap"
    reduction: str = "none"
    window: int | None = WINDOW
    samples: int = SAMPLES
    steps: int = STEPS

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes in front of inputs and targets."""
        return (self.steps,) if self.strategy is None else (self.steps, self.samples)


@dataclasses.dataclass(frozen=True)
class Result:
    """A gradient, and what it came with."""

    gradients: Tree
    aux: pb.Aux


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """A captured model.

    Attributes:
      model: the registry's entry.
      seed: what weights and data are drawn from.
      precision: of its weights, states and data, in bits.
      learner, params: what the capture gave.
    """

    model: Model
    seed: int
    precision: int
    learner: pb.Learner
    params: Tree

    @functools.cached_property
    def subject(self) -> Subject:
        """What the laws and the meaning of a gradient are about."""
        make, environ = functools.partial(self.model.build, self.seed), self.model.settings
        return Subject(make, self.learner, self.params, self.model.loss, STRATEGIES, environ)

    def case(self, data: Data) -> Case:
        """The subject with its own weights, on some data."""
        return Case(self.subject, self.params, data)

    @kept
    def batched(self, strategy: str | None, samples: int = SAMPLES) -> pb.Learner:
        """The learner under a strategy, or itself."""
        return self.learner if strategy is None else MAKERS[strategy](self.learner, samples)

    @kept
    def start(self, strategy: str | None, samples: int = SAMPLES) -> pb.Carry:
        """A fresh carry, as a gradient without one begins."""
        return self.batched(strategy, samples).init()

    @kept
    def data(self, *lead: int) -> Data:
        """Inputs and targets with leading axes."""
        with brainstate.environ.context(precision=self.precision):
            return Data(self.model.inputs(self.seed, *lead), self.model.targets(self.seed, *lead))

    @kept
    def grad_fn(self, request: Request) -> Any:
        """The gradient function of a request."""
        learner = self.batched(request.strategy, request.samples)
        return pb.sequence_grad(
            learner, self.model.loss, reduction=request.reduction, window=request.window, outputs=True
        )

    def run(self, request: Request, carry: pb.Carry | None, data: Data) -> Result:
        """The gradient of a request, of given data from a given carry."""
        return Result(*self.grad_fn(request)(self.params, carry, *data, key=jax.random.key(0)))

    @kept
    def result(self, request: Request) -> Result:
        """The gradient of a request, of its own data from a fresh start; made once."""
        return self.run(request, None, self.data(*request.lead))


@functools.cache
def bench(name: str, seed: int, algorithm: pb.Algorithm | None = None, precision: int = 64) -> Bench:
    """A model of the registry, captured."""
    return bench_of(MODELS[name], seed, algorithm, precision)


def bench_of(model: Model, seed: int, algorithm: pb.Algorithm | None = None, precision: int = 64) -> Bench:
    """Any model, captured."""
    rule = algorithm or pb.ES_D_RTRL(0.9)
    with brainstate.environ.context(precision=precision):
        net, example = model.build(seed), model.inputs(seed)
        learner, params = pb.capture(net, *example, algorithm=rule, environ=model.settings)
    return Bench(model, seed, precision, learner, params)
