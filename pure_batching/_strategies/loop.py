"""`Loop`: one sample after the other, the meaning of the other strategies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._program import Params, Perturbation, Program, States, Step
from .._sources.base import Source
from .._tree import Tree
from ..errors import StrategyError
from .base import MapSamples, Strategy
from .devices import side_by_side
from .vmap import mappable


@dataclasses.dataclass(frozen=True)
class Loop(Strategy):
    """The samples in turn, by `jax.lax.map`; those of several devices side by side.

    Attributes:
      size: `B`.
    """

    size: int

    name = "pb.loop"

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.size

    def program(self, source: Source) -> Program:
        """The step of one sample.

        Raises:
          StrategyError: the samples reach each other along an axis, or the step has a callback that keeps its order,
            which JAX leaves out of a loop that has a derivative.
        """
        if source.axis_name is not None:
            raise StrategyError(
                self.name,
                got=f"a learner whose samples reach each other along the axis {source.axis_name!r}",
                expected="samples that can be run one after the other",
                repair="Use pb.vmap or pb.manual.",
            )
        return mappable(source.one_of(self.size), self.name)

    def execute(
        self, source: Source, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation
    ) -> Step:
        """See `Strategy.execute`."""
        program = self.program(source)

        def one(shared: Any, own: States, args: tuple[Tree, ...], perturb: Perturbation) -> Step:
            return program.execute(params, own._replace(shared=shared), args, perturb)

        done = self.each(source)(one)(states.shared, states._replace(shared={}), inputs, perturbation)
        shared = jax.tree.map(lambda leaf: leaf[0], done.states.shared)  # every sample computes the same
        return done._replace(states=done.states._replace(shared=shared))

    def each(self, source: Source) -> MapSamples:
        """See `Strategy.each`."""
        del source
        return side_by_side(self.size, each_in_turn)

    def kept_once(self, source: Source) -> frozenset[str]:
        """None: the step of one sample computes every state of that sample."""
        del source
        return frozenset()


def each_in_turn(size: int) -> MapSamples:
    """The mapping by `jax.lax.map`, one sample after the other."""

    def each(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        def mapped(shared: Any, *own: Any) -> Any:
            axes = (in_axes,) * len(own) if isinstance(in_axes, int) else in_axes
            samples = (jnp.arange(size), samples_moved(own, axes, to_front=True))
            results = jax.lax.map(lambda sample: fun(shared, *sample[1]), samples)
            return samples_moved(results, out_axes, to_front=False)

        return mapped

    return each


def samples_moved(tree: Tree, axes: Any, *, to_front: bool) -> Tree:
    """The samples' axis of each leaf moved from where `axes` says to the front, or back."""

    def move(axis: int, part: Tree) -> Tree:
        return jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0) if to_front else jnp.moveaxis(x, 0, axis), part)

    return jax.tree.map(move, axes, tree)
