"""Source: what was captured, and the programs that can be read from it."""

import abc
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import jax.core

from .._numerics import Numerics, without_mesh
from .._program import Params, Program, States
from .._reader.step import TracedStep
from .._tree import Tree, strong

Traced = TypeVar("Traced", Program, TracedStep)


def assembled(specs: States, known: Mapping[str, Tree]) -> States:
    """The states of a step by duty, from their values by path."""
    found = States(*({path: known[path] for path in field} for field in specs))
    return States(*(strong(field, spec) for field, spec in zip(found, specs, strict=True)))


@contextmanager
def reading() -> Iterator[None]:
    """What a program is traced under: in `jax.jit` no tracer may stay in it, nor a mesh of devices that is in force.

    `jax.disable_jit` may hide no call.
    """
    with jax.core.eval_context(), without_mesh(), jax.disable_jit(disable=False):
        yield


def remembered(traced: dict[int, Traced], size: int, trace: Callable[[int], Traced]) -> Traced:
    """The program, or the step, of a size, traced once."""
    if size not in traced:
        with reading():
            traced[size] = trace(size)
    return traced[size]


class Source(abc.ABC):
    """What was captured. It belongs to a learner and is equal to itself alone.

    Attributes:
      name: how an error calls the captured thing, such as the class of a module.
      axis_name: the name of the axis along which the step's own code reaches other samples; None where there is none.
      draws_at_start: whether the initial state depends on the random key.
      numerics: JAX's settings at capture, which hold wherever the source's step is traced or run.
      memory: what was made once for learners of this source, such as compiled functions; it is freed with the source.
    """

    name: str
    axis_name: str | None
    draws_at_start: bool
    numerics: Numerics
    memory: dict[Hashable, Any]

    @abc.abstractmethod
    def checked_params(self, params: Tree) -> Params:
        """Trainable values by path, from the structure that the user has them in, in the captured units and dtypes.

        Raises:
          StructureError, ShapeError, DtypeError, UnitError: they do not fit.
        """

    @abc.abstractmethod
    def as_given(self, params: Params) -> Tree:
        """Trainable values, or their gradients, in the structure that the user has them in."""

    @abc.abstractmethod
    def one_of(self, size: int) -> Program:
        """The step of one of `size` samples along the named axis; the same for every size without a named axis."""

    @abc.abstractmethod
    def batched(self, size: int) -> Program:
        """The source's own arithmetic on arrays with a batch axis of `size` samples.

        Raises:
          StrategyError: the source's own code does not carry a batch axis.
        """

    @abc.abstractmethod
    def own_step(self, size: int) -> TracedStep:
        """The same as it was traced, in which no weight was looked for yet.

        Raises:
          StrategyError: the source's own code does not carry a batch axis.
        """

    @abc.abstractmethod
    def batch_axes(self) -> Mapping[str, Tree]:
        """For each hidden and other state of a sample, the axis where the source keeps the batch in each leaf."""

    @abc.abstractmethod
    def recipe(self) -> tuple[Callable[..., "Source"], tuple[Any, ...]]:
        """A function that captures the same again, in another process too, and its arguments, which can be pickled.

        Raises:
          PickleError: what was captured cannot be sent to another process.
        """

    @abc.abstractmethod
    def fresh(self, key: jax.Array) -> States:
        """The states of one sample before the first step."""
