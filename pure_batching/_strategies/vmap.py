"""`vmap`: the program of one sample, mapped."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from .._learning.execution import Each, Execution
from .._learning.learner import Learner
from .._program import Program, States, Step
from .base import check_unbatched

_AXES: Any = (0, 0, 0, None)
STATE_AXES = States(*_AXES)


def vmap(learner: Learner, batch_size: int) -> Learner:
    """A batch by `jax.vmap` of the single-sample program; its meaning is `pb.loop`.

    Where the learner was captured with an `axis_name`, samples reach each other along it.

    Args:
      learner: a learner of one sample.
      batch_size: `B`.

    Returns:
      a learner whose inputs, outputs and carry lead with the axis `B`.

    Raises:
      StrategyError: the learner has a batch already.
      BatchSizeError: not a positive integer.
    """
    size = check_unbatched(learner, batch_size, "vmap")
    program = learner.program.among(size)
    execute, each = execute_by_vmap(program, size), each_by_vmap(program, size)
    return Learner(Execution("pb.vmap", program, learner.algorithm, size, execute, each))


def execute_by_vmap(program: Program, size: int) -> Callable[..., Step]:
    """The step of one sample, mapped."""
    step_axes: Any = Step(0, STATE_AXES, 0)  # type: ignore[arg-type]
    in_axes = (None, STATE_AXES, 0, 0)
    return jax.vmap(program.execute, in_axes, step_axes, axis_name=program.axis_name, axis_size=size)


def each_by_vmap(program: Program, size: int) -> Each:
    """Functions of one sample by `jax.vmap`."""

    def each(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        def mapped(shared: Any, *own: Any) -> Any:
            one = partial(fun, shared)
            return jax.vmap(one, in_axes, out_axes, axis_name=program.axis_name, axis_size=size)(*own)

        return mapped

    return each
