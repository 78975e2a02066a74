"""`manual`: the module's own arithmetic on arrays with a batch axis."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from .._errors import RandomnessError, StrategyError
from .._execution import Execution
from .._learner import Learner
from .._program import Params, Perturbation, Program, States, Step
from .._tree import Tree, moved
from .base import check_unbatched
from .vmap import each_by_vmap


def manual(learner: Learner, batch_size: int) -> Learner:
    """A batch by tracing the module again, on `(B, ...)` arrays; its meaning is `pb.loop`.

    Args:
      learner: a learner of one sample.
      batch_size: `B`.

    Raises:
      StrategyError: the learner has a batch already, or the module's own code does not carry a batch axis; the text
        names the state or output that came out wrong.
      RandomnessError: the module draws random numbers inside its step: one `(B, M)` draw from one key cannot equal a
        key for each sample.
      BatchSizeError: not a positive integer.
    """
    size = check_unbatched(learner, batch_size, "manual")
    _refuse_random(learner.program)
    batched = learner.program.retrace(size, learner.program)
    _check_same_relations(learner.program, batched)
    execute = _batch_in_front(batched, learner.program, size)
    return Learner(Execution("pb.manual", learner.program, learner.algorithm, size, execute, each_by_vmap(size)))


def _batch_in_front(program: Program, single: Program, batch_size: int) -> Callable[..., Step]:
    """`program.execute` with the batch axis in front of every leaf, wherever the module keeps it."""
    axes = single.batch_axes()

    def execute(params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation) -> Step:
        inside = states._replace(other=moved(states.other, axes, to_module=True))
        done = program.execute(params, inside, inputs, perturbation)
        outside = done.states._replace(other=moved(done.states.other, axes, to_module=False))
        jacobians = done.jacobians._replace(xs=_for_each_sample(done.jacobians.xs, single, batch_size))
        chex.assert_tree_shape_prefix((done.output, outside.hidden, outside.other, jacobians), (batch_size,))
        return Step(done.output, outside, jacobians)

    return execute


def _for_each_sample(xs: dict[str, jax.Array], single: Program, batch_size: int) -> dict[str, jax.Array]:
    """A weight's input that the module computes once for all samples stands for each of them."""
    rank = {name: len(x.spec.shape) for name, x in single.weight_inputs().items()}
    return {name: jnp.broadcast_to(x, (batch_size, *x.shape)) if x.ndim == rank[name] else x for name, x in xs.items()}


def _refuse_random(program: Program) -> None:
    if program.states.keys:
        raise RandomnessError(
            "pb.manual",
            got=f"a module that draws from the random key {', '.join(program.states.keys)!r} inside its step",
            expected="a step without random numbers",
            repair="Use pb.vmap, which gives each sample a key of its own.",
        )


def _check_same_relations(single: Program, batched: Program) -> None:
    names = [[relation.name for relation in program.relations] for program in (single, batched)]
    if names[0] != names[1]:
        raise StrategyError(
            "pb.manual",
            got=f"the traced weights {names[1]} with a batch axis",
            expected=f"{names[0]}, as for one sample",
            repair="The module takes another way with a batch axis; use pb.vmap.",
        )
