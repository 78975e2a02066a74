"""Functions that are compiled once for a learner, and freed with it.

`jax.jit` keeps every static argument until its caches are cleared. So a learner is none: a function of a learner is a
closure over it, which the learner's source keeps.
"""

import inspect
from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax

from .._strategies.base import SampleAxes, Strategy
from .._strategies.beside import beside
from .devices import settled
from .once import without_derivative
from .sharding import under_automatic_axes

if TYPE_CHECKING:
    from .learner import Learner


def compiled(
    learner: "Learner", function: Callable[..., Any], *statics: Hashable, axes: SampleAxes
) -> Callable[..., Any]:
    """`jax.jit` of `function(learner, *statics, ...)`, the same for equal learners and statics.

    Arrays among the hyperparameters of the learner's rule are arguments of what is compiled, by which it has no
    derivative. What it is called with lies where the strategy can run it, or is a DeviceError.

    Args:
      learner: whose memory keeps the function.
      function: what is compiled.
      statics: its arguments behind the learner, which are hashed.
      axes: where the samples lie in its other arguments and in its result.
    """

    def make() -> Callable[..., Any]:
        others = learner.parted()[1]

        def run(numbers: Any, *args: Any) -> Any:
            return function(others.with_numbers(without_derivative(numbers)), *statics, *args)

        given, strategy = (None, *axes.given), learner.strategy
        program = jax.jit(under_automatic_axes(run, SampleAxes(given, axes.made), strategy))
        names = ["rule", *[*inspect.signature(function).parameters][1 + len(statics) :]]
        return lambda *args: program(*settled(strategy, names, args, given))

    return partial(kept(learner, make, function, *statics), learner.algorithm)


def in_shares(learner: "Learner", function: Callable[..., Any], *statics: Any, axes: SampleAxes) -> Callable[..., Any]:
    """`function(learner, *statics, ...)` for a batch that the strategy may share out.

    Args:
      learner: of all samples; the function gets that of one share.
      function: what is run.
      statics: its arguments behind the learner, the same for all shares; they hold no traced array.
      axes: where the samples lie in its other arguments and in its result.
    """
    numbers, others = learner.parted()

    def run(strategy: Strategy) -> Callable[..., Any]:
        own = others if strategy == learner.strategy else learner.run_by(strategy).parted()[1]
        return lambda numbers, *args: function(own.with_numbers(numbers), *statics, *args)

    strategy = _for_devices(learner)
    return partial(strategy.in_shares(run, SampleAxes((None, *axes.given), axes.made)), numbers)


def _for_devices(learner: "Learner") -> Strategy:
    """The learner's strategy, with shares for the devices of a mesh in force unless it shares out, or samples meet."""
    strategy = learner.strategy
    shares_out = strategy.within is not strategy
    return strategy if shares_out or learner.source.axis_name is not None else beside(strategy)


def kept(learner: "Learner", make: Callable[[], Any], *name: Hashable) -> Any:
    """What `make` gives, made once for equal learners and names."""
    memory, key = learner.source.memory, (jax.tree.structure(learner.algorithm), learner.strategy, *name)
    if key not in memory:
        memory[key] = make()
    return memory[key]
