"""One sample without a batch axis: alone, or as one of the samples over which the caller maps."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from .._program import Params, Perturbation, Program, States, Step
from .._sources.base import Source
from .._tree import Tree
from .base import MapSamples, Strategy, not_mapped


@dataclasses.dataclass(frozen=True)
class Alone(Strategy):
    """One sample. Where the source names an axis, the sample is a batch of one along it."""

    name = "one sample"

    @property
    def batch_size(self) -> None:
        """No batch axis."""

    def program(self, source: Source) -> Program:
        """The step of a sample that has the named axis to itself."""
        return source.one_of(1)

    def execute(
        self, source: Source, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation
    ) -> Step:
        """See `Strategy.execute`; no leaf has a batch axis."""
        return execute_alone(self.program(source))(params, states, inputs, perturbation)

    def each(self, source: Source) -> MapSamples:
        """See `Strategy.each`."""
        del source
        return not_mapped

    def kept_once(self, source: Source) -> frozenset[str]:
        """None."""
        del source
        return frozenset()


@dataclasses.dataclass(frozen=True)
class OneOf(Strategy):
    """One of `size` samples, over which the caller maps, along the named axis where there is one.

    Attributes:
      size: how many samples the caller maps over.
    """

    size: int

    name = "one of a batch"

    @property
    def batch_size(self) -> None:
        """No batch axis."""

    def program(self, source: Source) -> Program:
        """The step of one of `size` samples."""
        return source.one_of(self.size)

    def execute(
        self, source: Source, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation
    ) -> Step:
        """See `Strategy.execute`; the caller's mapping adds the batch axis."""
        return self.program(source).execute(params, states, inputs, perturbation)

    def each(self, source: Source) -> MapSamples:
        """See `Strategy.each`."""
        del source
        return not_mapped

    def kept_once(self, source: Source) -> frozenset[str]:
        """None."""
        del source
        return frozenset()


def execute_alone(program: Program) -> Callable[..., Step]:
    """`program.execute` under its named axis, if it has one, with nobody else along it."""
    if program.axis_name is None:
        return program.execute

    def run(params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation) -> Step:
        one = jax.vmap(lambda _: program.execute(params, states, inputs, perturbation), axis_name=program.axis_name)
        return jax.tree.map(lambda x: x[0], one(jnp.zeros(1)))

    return run
