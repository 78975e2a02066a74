"""Strategy: a value that says how functions of one sample are run for all samples of a batch."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

from jax.sharding import Mesh

from .._program import Params, Perturbation, Program, States, Step
from .._sources.base import Source
from .._tree import Tree

# The place of the samples in a result that is a sum over them.
SUMMED = "summed"


class SampleAxes(NamedTuple):
    """Where the samples lie.

    Attributes:
      given: in each argument, as a prefix of their tree; None for an argument that all samples share.
      made: in the result; `SUMMED` for a sum over samples, None for what is the same for every sample.
    """

    given: Any
    made: Any


class MapSamples(Protocol):
    """Turns `fun(shared, *per_sample)` of one sample into a function of all samples.

    `in_axes` says where the samples lie in each of `per_sample`, and `out_axes` where they lie in the result, as in
    `jax.vmap`. `shared` is the same for all samples.
    """

    def __call__(self, fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        """The function of all samples."""
        ...


@dataclasses.dataclass(frozen=True)
class Strategy(abc.ABC):
    """How functions of one sample are run for all samples.

    A strategy is plain data: two of the same kind and size are equal and have the same hash, so that JAX compiles
    nothing for the second. It may wrap another strategy, and then calls the same methods of that one.

    Attributes:
      name: how an error and an audit call the strategy, such as `pb.vmap`.
    """

    name: ClassVar[str]

    @property
    def runs_own_batch(self) -> bool:
        """Whether the source's own code sees the batch axis, and so may couple the samples."""
        return False

    @property
    def axis(self) -> tuple[str, ...]:
        """The names of the axes of a mesh along which the strategy shares a batch out."""
        return ()

    @property
    def own_mesh(self) -> Mesh | None:
        """The devices of the strategy; None where it runs on those of its arguments."""
        return None

    @property
    def within(self) -> "Strategy":
        """The strategy of samples that run at once: this one, unless it shares a batch out."""
        return self

    @property
    @abc.abstractmethod
    def batch_size(self) -> int | None:
        """`B`, or None where a sample has no batch axis."""

    @abc.abstractmethod
    def program(self, source: Source) -> Program:
        """The step of one of the samples.

        Raises:
          StrategyError: the strategy cannot run this source.
        """

    @abc.abstractmethod
    def execute(
        self, source: Source, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation
    ) -> Step:
        """`Program.execute` for all samples: every leaf but those of `params` and `states.shared` is `[B, ...]`."""

    @abc.abstractmethod
    def each(self, source: Source) -> MapSamples:
        """The mapping of any function of one sample over all samples."""

    @property
    def on_one_device(self) -> "Strategy":
        """The strategy of the samples of one device: this one, unless it puts samples on several."""
        return self

    def placed(self, args: tuple[Tree, ...], axes: Any) -> tuple[Tree, ...]:
        """The arguments on the devices of the strategy; as they are where it has none.

        Args:
          args: any of them may hold traced arrays, of which only JAX knows where they lie.
          axes: where the samples lie in each of them.
        """
        del axes
        return args

    def at_home(self, args: tuple[Tree, ...], axes: Any) -> tuple[Tree, ...]:
        """Numbers and arrays laid out as the strategy lays out its results; as they are where it has no devices.

        What is compiled for arguments that lie so serves every later call, whatever the arguments came from.

        Args:
          args: none of them holds a traced array.
          axes: where the samples lie in each of them.
        """
        del axes
        return args

    def in_shares(self, run: "RunOf", axes: SampleAxes) -> Callable[..., Any]:
        """A function of all samples from `run(strategy)`, that of as many samples as the strategy has.

        A strategy that shares a batch out calls it for each share; this one does not.

        Args:
          run: makes the function; it may be called for several strategies.
          axes: where the samples lie in its arguments and in its result.
        """
        del axes
        return run(self)

    def resized(self, size: int) -> "Strategy":
        """The same strategy for another number of samples."""
        return dataclasses.replace(self, size=size)  # type: ignore[call-arg]

    @abc.abstractmethod
    def kept_once(self, source: Source) -> frozenset[str]:
        """The paths of the states that belong to a sample, but of which the batched step computes only one."""


# `run(strategy)` is the function of as many samples as the strategy has.
RunOf = Callable[[Strategy], Callable[..., Any]]


def not_mapped(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
    """The function itself: one sample has no axis to map over."""
    del in_axes, out_axes
    return fun
