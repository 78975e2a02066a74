"""`Vmap`: the program of one sample, mapped."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from .._program import Params, Perturbation, Program, States, Step
from .._sources.base import Source
from .._tree import Tree
from ..errors import StrategyError
from .base import MapSamples, Strategy

_AXES: Any = (0, 0, 0, None)
STATE_AXES = States(*_AXES)


@dataclasses.dataclass(frozen=True)
class Vmap(Strategy):
    """All samples at once, by `jax.vmap` of the step of one, along the source's named axis where there is one.

    Attributes:
      size: `B`.
    """

    size: int

    name = "pb.vmap"

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.size

    def program(self, source: Source) -> Program:
        """The step of one of `B` samples.

        Raises:
          StrategyError: the step has a callback that keeps its order.
        """
        return mappable(source.one_of(self.size), self.name)

    def execute(
        self, source: Source, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation
    ) -> Step:
        """See `Strategy.execute`."""
        return execute_by_vmap(self.program(source), self.size)(params, states, inputs, perturbation)

    def each(self, source: Source) -> MapSamples:
        """See `Strategy.each`."""
        return each_by_vmap(source.axis_name, self.size)

    def kept_once(self, source: Source) -> frozenset[str]:
        """None: the step of one sample computes every state of that sample."""
        del source
        return frozenset()


def mappable(program: Program, name: str) -> Program:
    """The program, which can be mapped over samples.

    Raises:
      StrategyError: it has an `io_callback` that keeps its order: `jax.vmap` refuses it, or calls it once for all.
    """
    if program.unmapped:
        raise StrategyError(
            name,
            got=f"a step with a callback that keeps its order, {program.unmapped}",
            expected="a step that JAX maps over samples",
            repair="Take the callback out, leave out ordered=True, or use jax.debug.callback, which may keep an order.",
        )
    return program


def execute_by_vmap(program: Program, size: int) -> Callable[..., Step]:
    """`program.execute` of one sample, mapped over `size` samples."""
    step_axes: Any = Step(0, STATE_AXES, 0)  # type: ignore[arg-type]
    in_axes = (None, STATE_AXES, 0, 0)
    return jax.vmap(program.execute, in_axes, step_axes, axis_name=program.axis_name, axis_size=size)


def each_by_vmap(axis_name: str | None, size: int) -> MapSamples:
    """The mapping by `jax.vmap`, along an axis that may have a name."""

    def each(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        def mapped(shared: Any, *own: Any) -> Any:
            one = partial(fun, shared)
            return jax.vmap(one, in_axes, out_axes, axis_name=axis_name, axis_size=size)(*own)

        return mapped

    return each
