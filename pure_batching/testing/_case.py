"""A captured module with its strategies, and a batch of data: the arguments of a law."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from .._algorithms.base import Algorithm
from .._batching import loop, manual, vmap
from .._capture import capture, capture_function
from .._learning.carry import Carry
from .._learning.learner import Learner
from .._learning.sequence import sequence_grad
from .._program import Loss, Params
from .._sources.blueprint import settings_in_force
from .._tree import Tree
from ..errors import StrategyError
from ._kept import kept

NetFactory = Callable[[], Any]


class Function(NamedTuple):
    """A plain JAX function with its params and its state, as `pb.capture_function` takes them.

    Attributes:
      step: `(params, state, *inputs) -> (state, output)` of one sample.
      params: the trainable values.
      state: of one sample, before the first step.
    """

    step: Callable[..., tuple[Tree, Tree]]
    params: Tree
    state: Tree


class Data(NamedTuple):
    """Inputs and targets of a batch.

    Attributes:
      inputs: the module's arguments, each `[T, B, ...]`.
      targets: `[T, B, ...]`.
    """

    inputs: tuple[Tree, ...]
    targets: Tree

    @property
    def steps(self) -> int:
        """`T`."""
        return jax.tree.leaves(self.inputs)[0].shape[0]

    @property
    def samples(self) -> int:
        """`B`."""
        return jax.tree.leaves(self.inputs)[0].shape[1]

    def of_steps(self, start: int, stop: int) -> "Data":
        """Take some steps of every sample."""
        return jax.tree.map(lambda x: x[start:stop], self)

    def of_samples(self, samples: Any) -> "Data":
        """Take some samples, in the order given."""
        rows = np.asarray(samples)
        return jax.tree.map(lambda x: x[:, rows], self)


class Result(NamedTuple):
    """The results of a run.

    Attributes:
      outputs: `[T, B, ...]`.
      losses: `[T, B]`.
      gradients: by path, `[B, *param.shape]` of each sample, or reduced over samples.
      carry: after the last step.
    """

    outputs: Tree
    losses: Any
    gradients: Params
    carry: Carry


class Request(NamedTuple):
    """How a gradient is asked for.

    Attributes:
      reduction: over samples, as in `pb.sequence_grad`.
      window: as in `pb.sequence_grad`.
    """

    reduction: str = "none"
    window: int | None = None


class Runner(Protocol):
    """A batch of samples that can be run: a strategy's learner, or an adapter of something else."""

    def init(self, key: jax.Array | None = None) -> Any:
        """The carry before the first step."""
        ...

    def run(self, request: Request, params: Params, carry: Any, data: Data, flags: Mapping[str, Any]) -> Result:
        """The gradient of a sequence from a carry; flags are `mask` and `reset`."""
        ...


MakeRunner = Callable[[Learner, int], Learner | Runner]

STRATEGIES: Mapping[str, MakeRunner] = {
    "loop": loop,
    "vmap": vmap,
    "manual": functools.partial(manual, allow_coupling=True),
}
"""The strategies by name; the first is what the others are compared with.

Whether samples reach each other is for the law of locality to find out, in numbers.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class OfLearner:
    """A strategy's learner as a runner; each kind of gradient is made once."""

    learner: Learner
    loss: Loss

    def init(self, key: jax.Array | None = None) -> Carry:
        """See `Learner.init`."""
        return self.learner.init(key)

    def run(
        self, request: Request, params: Params, carry: Carry | None, data: Data, flags: Mapping[str, Any]
    ) -> Result:
        """Run the learner's `sequence_grad`."""
        gradients, aux = self._grad_fn(request)(params, carry, data.inputs, data.targets, **flags)
        return Result(aux.outputs, aux.losses, gradients, aux.carry)

    @kept
    def _grad_fn(self, request: Request) -> Any:
        return sequence_grad(self.learner, self.loss, reduction=request.reduction, window=request.window, outputs=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Counted:
    """A loss with a list that grows whenever it is traced."""

    loss: Loss
    traces: list[None] = dataclasses.field(default_factory=list)

    def __call__(self, output: Tree, target: Tree) -> jax.Array:
        """The loss."""
        self.traces.append(None)
        return self.loss(output, target)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A captured module or function with an algorithm, which is compiled once and then run on any values.

    Attributes:
      net_factory: a new module, with its weights, or a `Function`.
      learner: of one sample.
      params: the weights of the module that was captured.
      loss: `(output, target) -> []` of one sample at one step.
      strategies: by name; the first is what the others are compared with.
      environ: the settings of the capture.
      axis_name: of the axis along which samples reach each other, None where they are independent.
      is_exact: whether the published D_RTRL is exact for the module: one layer without recurrent weights, or an
        element-wise recurrence, and a readout without memory.
      traces: counts how often the loss was traced, which only happens when something is compiled.
      settings: those of BrainState that were in force.
    """

    net_factory: NetFactory
    learner: Learner
    params: Params
    loss: Loss
    strategies: Mapping[str, MakeRunner]
    environ: dict[str, Any] | None
    axis_name: str | None = None
    is_exact: bool = False
    traces: list[None] = dataclasses.field(default_factory=list)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=settings_in_force)

    @classmethod
    def of(
        cls,
        net_factory: NetFactory,
        algorithm: Algorithm,
        example_inputs: tuple[Tree, ...],
        loss: Loss,
        *,
        environ: dict[str, Any] | None = None,
        axis_name: str | None = None,
        strategies: Mapping[str, MakeRunner] = STRATEGIES,
        is_exact: bool = False,
    ) -> "Subject":
        """Capture a module.

        Args:
          net_factory: `() -> module`, or `() -> Function`.
          algorithm: the learning rule.
          example_inputs: the arguments of one step of one sample.
          loss: `(output, target) -> []`.
          environ: settings of the capture.
          axis_name: see the attribute.
          strategies: by name, `(learner, B) -> learner` or an adapter.
          is_exact: see the attribute.
        """
        learner, params = _captured(net_factory(), example_inputs, algorithm, environ, axis_name)
        counted = Counted(loss)
        return cls(net_factory, learner, params, counted, strategies, environ, axis_name, is_exact, counted.traces)

    def captured(self, net: Any, data: Data, algorithm: Algorithm | None = None) -> Learner:
        """Capture a module as the subject was captured, with another algorithm if one is given."""
        example = jax.tree.map(lambda x: x[0, 0], data.inputs)
        chosen = self.algorithm if algorithm is None else algorithm
        return _captured(net, example, chosen, self.environ, self.axis_name)[0]

    @property
    def algorithm(self) -> Algorithm:
        """The learning rule."""
        return self.learner.algorithm

    @property
    def own_loss(self) -> Loss:
        """The loss as it was given."""
        return self.loss.loss if isinstance(self.loss, Counted) else self.loss

    @kept
    def runner(self, name: str, samples: int) -> Runner:
        """Build a strategy for a number of samples."""
        made = self.strategies[name](self.learner, samples)
        return OfLearner(made, self.loss) if isinstance(made, Learner) else made

    @functools.cached_property
    def refused(self) -> dict[str, str]:
        """The strategies that cannot run the module, and why; one size may be that of a feature, where one can."""
        reasons = {}
        for name, samples in itertools.product(self.strategies, (2, 3)):
            try:
                self.runner(name, samples)
            except StrategyError as reason:
                reasons[name] = str(reason)
        return reasons

    @property
    def names(self) -> list[str]:
        """The strategies that run the module."""
        return [name for name in self.strategies if name not in self.refused]


def _captured(
    net: Any, example: tuple[Tree, ...], algorithm: Algorithm, environ: dict[str, Any] | None, axis_name: str | None
) -> tuple[Learner, Any]:
    """A module or a function as a learner of one sample, and its params."""
    if isinstance(net, Function):
        return capture_function(net.step, net.params, net.state, *example, algorithm=algorithm)
    return capture(net, *example, algorithm=algorithm, environ=environ, axis_name=axis_name)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A subject with weights and data, on which a law is checked.

    Attributes:
      subject: the module, its algorithm and its strategies.
      params: the weights in use.
      data: of a batch.
      window: of the gradients compared, shorter than the sequence where that has more than one step.
      key: what initial states are drawn from.
    """

    subject: Subject
    params: Params
    data: Data
    window: int = 2
    key: jax.Array = dataclasses.field(default_factory=lambda: jax.random.key(0))

    def init(self, name: str) -> Any:
        """Make a fresh carry."""
        return self.subject.runner(name, self.data.samples).init(self.key)

    def run(
        self, name: str, data: Data | None = None, carry: Any = None, request: Request | None = None, **flags: Any
    ) -> Result:
        """Compute the gradient under a strategy, from a fresh carry unless one is given."""
        data = self.data if data is None else data
        runner = self.subject.runner(name, data.samples)
        carry = runner.init(self.key) if carry is None else carry
        request = Request(window=self.window) if request is None else request
        if flags.get("reset") is not None:
            flags["key"] = self.key  # new states are drawn at a reset
        return runner.run(request, self.params, carry, data, flags)

    @kept
    def result(self, name: str) -> Result:
        """Compute the gradient of each sample of the case's own data under a strategy."""
        return self.run(name)

    @property
    def reference(self) -> str:
        """The strategy that the others are compared with."""
        return self.subject.names[0]

    @property
    def others(self) -> list[str]:
        """The strategies that are compared with it."""
        return self.subject.names[1:]

    def with_data(self, data: Data) -> "Case":
        """The same subject and weights on other data."""
        return dataclasses.replace(self, data=data)
