"""The task of a window and its result, and what a step does about losses, masks and resets."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from .._program import Jacobians, Loss, Params
from .._tree import Tree, is_quantity
from .carry import Carry
from .steps import StepData, harmless, select

if TYPE_CHECKING:
    from .learner import Learner


class Task(NamedTuple):
    """The question that a window answers.

    Attributes:
      learner: how steps are run.
      loss: `(output, target) -> []` of one sample at one step.
      per_sample: whether the gradient keeps the samples apart, `[B, *param.shape]`.
      outputs: whether the module's outputs are kept.
    """

    learner: "Learner"
    loss: Loss
    per_sample: bool
    outputs: bool


class Window(NamedTuple):
    """The result of a window: the carry after it, its gradient, its losses `[K, B]` and outputs `[K, B, ...]`."""

    carry: Carry
    gradients: Params
    losses: jax.Array
    outputs: Tree


def losses_of(task: Task, output: Tree, data: StepData) -> jax.Array:
    """The loss of each sample at one step, `[B]`; 0 where the step is masked."""

    def loss(_: None, *own: Any) -> jax.Array:
        return loss_of(task, *own)

    return task.learner.each(loss)(None, output, data.targets, data.mask)


def loss_of(task: Task, output: Tree, target: Tree, mask: jax.Array | None) -> jax.Array:
    """The loss of one sample at one step; 0 where the step is masked.

    The output is selected before the loss, the loss after it: where a masked output has no derivative, such as a norm
    at zero, no NaN comes back from it.
    """
    if mask is None:
        return number(task.loss(output, target))
    return jnp.where(mask, number(task.loss(select(mask, output, harmless(output)), target)), 0)


def number(loss: Any) -> Any:
    """A dimensionless quantity as its number."""
    return loss.to_decimal() if is_quantity(loss) else loss


def blanked(tree: Tree, mask: jax.Array | None) -> Tree:
    """A tree with zeros where the step is masked."""
    return tree if mask is None else select(mask, tree, jax.tree.map(jnp.zeros_like, tree))


def restarted(task: Task, now: Any, fresh: Any, data: StepData) -> Any:
    """A carry (or its states) before a step, fresh for the samples that start anew; their random keys go on.

    Args:
      task: how samples are run.
      now: the carry or the states after the last step.
      fresh: the same of a fresh start.
      data: of the step.
    """
    if data.reset is None:
        return now
    if data.restart_key is not None:
        drawn = task.learner.fresh_samples(data.restart_key)
        fresh = fresh._replace(hidden=drawn.hidden, other={**fresh.other, **drawn.other})
    return select(data.reset, fresh._replace(keys=now.keys), now)


def runnable(before: Any, fresh: Any, mask: jax.Array | None) -> Any:
    """What a step is run from: at a masked step a fresh start, since the sample's own states may be broken."""
    return before if mask is None else select(mask, before, fresh)


def frozen(new: Any, old: Any, mask: jax.Array | None) -> Any:
    """The old values where the step is masked: a masked step is no step."""
    return new if mask is None else select(mask, new, old)


def neutral(jacobians: Jacobians, data: StepData) -> Jacobians:
    """Derivatives that leave a trace as it is at a masked step, and that forget it where a sample starts anew."""
    if data.mask is not None:
        zeros = jax.tree.map(jnp.zeros_like, jacobians)
        kept = {k: jnp.broadcast_to(jnp.eye(d.shape[-1], dtype=d.dtype), d.shape) for k, d in zeros.diagonals.items()}
        jacobians = select(data.mask, jacobians, zeros._replace(xs=harmless(zeros.xs), diagonals=kept))
    if data.reset is not None:
        gone = jax.tree.map(jnp.zeros_like, jacobians.diagonals)
        jacobians = jacobians._replace(diagonals=select(data.reset, gone, jacobians.diagonals))
    return jacobians
