"""Learner: a program and an algorithm, and the differentiable step."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._algorithms.base import Algorithm
from .._conform import check_numbers, conform
from .._program import Params, Program
from .._sources.capture import capture_program
from .._tree import Tree, is_key, spec_text
from .._wording import count
from ..errors import (
    CarryError,
    DtypeError,
    OptionError,
    PureBatchingError,
    ShapeError,
    StructureError,
)
from .execution import Carry, Execution
from .step import differentiable_step


class Learner(eqx.Module):
    """A program with an algorithm: pure functions that own no arrays and no State.

    Attributes:
      execution: the program, the algorithm, and how they are run for one sample or a batch.
    """

    execution: Execution = eqx.field(static=True)

    def __repr__(self) -> str:
        inputs = ", ".join(spec_text(spec) for spec in self.program.inputs)
        batch = "one sample" if self.batch_size is None else f"{self.execution.name} of {self.batch_size} samples"
        return f"Learner({self.algorithm}, {batch}, inputs=({inputs}), output={spec_text(self.program.output)})"

    @property
    def program(self) -> Program:
        """The step of one sample."""
        return self.execution.program

    @property
    def algorithm(self) -> Algorithm:
        """The learning rule."""
        return self.execution.algorithm

    @property
    def batch_size(self) -> int | None:
        """`B`, None for one sample."""
        return self.execution.batch_size

    def init(self, key: jax.Array | None = None) -> Carry:
        """A fresh carry.

        Args:
          key: a random key, typed or raw, for random initial states and random steps; None stands for
            `jax.random.key(0)`. Sample `i` of a batch gets `jax.random.fold_in(key, i)`.

        Returns:
          the carry before the first step, the same leaves in every strategy.

        Raises:
          DtypeError: no random key.
        """
        return _init(self.execution, jax.random.key(0) if key is None else check_key(key))

    def step(self, params: Params, carry: Carry, *inputs: Tree) -> tuple[Carry, Tree]:
        """One step.

        `jax.grad` through it with respect to `params` gives the online gradient of this step, and with respect to
        `inputs` the ordinary one. No gradient flows through the carry.

        Args:
          params: trainable values by path.
          carry: what the last step returned, or `init()`.
          inputs: the module's arguments, `[...]` or `[B, ...]`.

        Returns:
          the next carry and the module's output.

        Raises:
          StructureError, ShapeError, BatchSizeError, DtypeError, UnitError: an argument does not fit.
          CarryError: the carry belongs to another learner.
        """
        return _step(self.execution, self.check_params(params), self.check_carry(carry), self.check_inputs(inputs))

    def check_params(self, params: Params) -> Params:
        """`params` in the captured units and dtypes."""
        if not isinstance(params, Mapping):
            raise StructureError(
                "params",
                got=type(params).__name__,
                expected="{path: value}",
                repair="pb.capture returns a learner and its params; pass the second.",
            )
        try:
            return conform(params, self.program.params, "params")
        except ShapeError as error:
            repair = "Pass the params that capture() returned with this learner."
            raise ShapeError(error.where, got=error.got, expected=error.expected, repair=repair) from error

    def check_carry(self, carry: Carry) -> Carry:
        """`carry` in the captured units, or CarryError."""
        if not isinstance(carry, Carry):
            raise CarryError(
                "carry", got=type(carry).__name__, expected="a Carry", repair="Pass learner.init() or aux.carry."
            )
        try:
            return conform(carry, self.execution.carry_spec(is_apart=self._is_apart(carry)), "carry")
        except PureBatchingError as error:
            raise CarryError(
                error.where,
                got=error.got,
                expected=error.expected,
                repair="The carry belongs to another learner or another batch size; start from init().",
            ) from error

    def _is_apart(self, carry: Carry) -> bool:
        """Whether each sample has its own of what the module shares."""
        return bool(self.program.states.shared) and not carry.shared

    def axes(self, *lead: tuple[str, int | None]) -> tuple[tuple[str, int | None], ...]:
        """The axes in front of every leaf that belongs to a sample, after those of `lead`."""
        return lead if self.batch_size is None else (*lead, ("B", self.batch_size))

    def check_inputs(self, inputs: tuple[Tree, ...]) -> tuple[Tree, ...]:
        """`inputs` in the captured units and dtypes."""
        if len(inputs) != len(self.program.inputs):
            raise StructureError(
                "inputs",
                got=count(len(inputs), "argument"),
                expected=f"{len(self.program.inputs)}",
                repair="Pass the arguments that capture() saw as examples.",
            )
        return conform(inputs, self.program.inputs, "inputs", self.axes())


def check_key(key: Any) -> jax.Array:
    """One random key, typed or raw."""
    is_array = isinstance(key, (jax.Array, np.ndarray))
    is_typed = is_array and is_key(key.dtype) and key.shape == ()
    is_raw = is_array and key.dtype == "uint32" and key.shape == jax.random.key_data(jax.random.key(0)).shape
    if not is_typed and not is_raw:
        raise DtypeError(
            "key",
            got=f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key),
            expected="one random key",
            repair="Pass jax.random.key(seed); each sample gets a key of its own from it.",
        )
    return jnp.asarray(key)


def check_learner(learner: object, name: str) -> None:
    """Raise StructureError for what is no learner."""
    if not isinstance(learner, Learner):
        raise StructureError(
            f"pb.{name}",
            got=type(learner).__name__,
            expected="a Learner",
            repair="pb.capture returns a learner and its params; pass the first.",
        )


def capture(
    net: Any,
    *example_inputs: Tree,
    algorithm: Algorithm,
    environ: dict[str, Any] | None = None,
    axis_name: str | None = None,
) -> tuple[Learner, Params]:
    """A BrainScale module as a learner of one sample, and its trainable values.

    The module is read and left as it was. Its hidden states must be `HiddenState`s and its traced weights
    `ETraceParam`s; `NonTempParam` and plain `ParamState` weights get the ordinary gradient of each step.

    Args:
      net: a `brainstate.nn.Module` whose `update(*inputs)` is one step.
      example_inputs: the arguments of one step of one sample, without a batch axis; only their shapes, dtypes and units
        are used.
      algorithm: the learning rule, such as `pb.ES_D_RTRL(0.9)`.
      environ: settings (`dt`, `fit`) on top of those in force; the learner keeps them.
      axis_name: the name of the axis along which the module's own code reaches the other samples of a batch
        (`BatchNorm1d(..., axis_name="batch")`, `jax.lax.pmean`). The samples are coupled then, alike in `pb.vmap` and
        `pb.manual`; a learner of one sample is a batch of one. The gradient of a sample is its share of the batch's.

    Returns:
      the learner, and `{path: value}` of every trainable value.

    Raises:
      CaptureError: the module cannot be traced or compiled; the text quotes the reason.
      StructureError: no algorithm.
      DtypeError: an example that is no array of numbers.
      OptionError: an `environ` that is no mapping from names, or an axis name that is none.
    """
    if not isinstance(algorithm, Algorithm):
        raise StructureError(
            "algorithm",
            got=f"the class {algorithm.__name__}" if isinstance(algorithm, type) else type(algorithm).__name__,
            expected="an algorithm",
            repair="Pass an instance: pb.ES_D_RTRL(0.9), say.",
        )
    if axis_name is not None and not (isinstance(axis_name, str) and axis_name):
        raise OptionError(
            "axis_name", got=repr(axis_name), expected="a name", repair="Pass the one that the module's code uses."
        )
    check_numbers(example_inputs, "example_inputs")
    program, params = capture_program(net, example_inputs, environ, axis_name)
    return Learner(Execution.of_one_sample(program, algorithm)), params


@partial(jax.jit, static_argnums=0)
def _init(execution: Execution, key: jax.Array) -> Carry:
    return execution.fresh(key)


@partial(jax.jit, static_argnums=0)
def _step(execution: Execution, params: Params, carry: Carry, inputs: tuple[Tree, ...]) -> tuple[Carry, Tree]:
    return differentiable_step(execution, params, carry, inputs)
