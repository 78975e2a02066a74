"""`loop`: one sample after the other, the meaning of the other strategies."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._learning.execution import Each, Execution
from .._learning.learner import Learner
from .._program import Params, Perturbation, Program, States, Step
from .._tree import Tree
from ..errors import StrategyError
from .base import check_unbatched


def loop(learner: Learner, batch_size: int) -> Learner:
    """A batch by `jax.lax.map` over samples: slow, and the definition of `pb.manual` and `pb.vmap`.

        def step(params, carries, inputs):
            return [learner.step(params, carries[i], inputs[i]) for i in range(B)]

    Args:
      learner: a learner of one sample.
      batch_size: `B`.

    Returns:
      a learner whose inputs, outputs and carry lead with the axis `B`.

    Raises:
      StrategyError: the learner has a batch already, or its samples reach each other along an axis.
      BatchSizeError: not a positive integer.
    """
    size = check_unbatched(learner, batch_size, "loop")
    _check_alone(learner.program)
    execute = _execute_in_turn(learner.program, size)
    return Learner(Execution("pb.loop", learner.program, learner.algorithm, size, execute, each_in_turn(size)))


def _check_alone(program: Program) -> None:
    if program.axis is not None:
        raise StrategyError(
            "pb.loop",
            got=f"a learner whose samples reach each other along the axis {program.axis.name!r}",
            expected="samples that can be run one after the other",
            repair="Use pb.vmap or pb.manual.",
        )


def each_in_turn(size: int, tile: int = 1) -> Each:
    """Functions of one sample by `jax.lax.map`, `tile` samples at once."""

    def each(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        def mapped(shared: Any, *own: Any) -> Any:
            axes = (in_axes,) * len(own) if isinstance(in_axes, int) else in_axes
            samples = (jnp.arange(size), _moved(own, axes, to_front=True))
            results = jax.lax.map(
                lambda sample: fun(shared, *sample[1]), samples, batch_size=tile if tile > 1 else None
            )
            return _moved(results, out_axes, to_front=False)

        return mapped

    return each


def _moved(tree: Tree, axes: Any, *, to_front: bool) -> Tree:
    def move(axis: int, part: Tree) -> Tree:
        return jax.tree.map(lambda x: jnp.moveaxis(x, axis, 0) if to_front else jnp.moveaxis(x, 0, axis), part)

    return jax.tree.map(move, axes, tree)


def _execute_in_turn(program: Program, size: int) -> Callable[..., Step]:
    def execute(params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation) -> Step:
        def one(_: None, own: States, args: tuple[Tree, ...], perturb: Perturbation) -> Step:
            return program.execute(params, own._replace(shared=states.shared), args, perturb)

        done = each_in_turn(size)(one)(None, states._replace(shared={}), inputs, perturbation)
        shared = jax.tree.map(lambda leaf: leaf[0], done.states.shared)  # the same for every sample
        return done._replace(states=done.states._replace(shared=shared))

    return execute
