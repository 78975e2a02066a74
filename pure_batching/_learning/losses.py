"""The loss of one sample at one step: its check, and its parts as arguments of a compiled function."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._program import Loss
from .._reader.callbacks import ordered_callback, unmapped_callback
from .._reader.jaxprs import Jaxpr
from .._tree import Tree, spec_text, unit_of
from ..errors import LossError
from .learner import Learner
from .steps import Timed


def check_loss_function(loss: object) -> None:
    """Raise LossError for what is no function."""
    if not callable(loss):
        raise LossError(
            "loss",
            got=type(loss).__name__,
            expected="a function (output, target) -> []",
            repair="Pass the loss of one sample at one step.",
        )


def _repair_of_loss(reason: Exception) -> str:
    if isinstance(reason, jax.errors.ConcretizationTypeError):
        return "It is traced: jnp.where chooses between arrays, where Python's `if` has no number to look at."
    if isinstance(reason, (NameError, AttributeError, ImportError)):
        return "Mend what the message names."
    return "It gets those of one sample at one step."


def check_loss(learner: Learner, loss: Loss, targets: Timed) -> None:
    """Raise LossError unless the loss of one sample at one step is a real number."""

    def value(output: Tree, target: Tree) -> Any:
        return loss(output, target)

    target = targets.spec(len(learner.lead))
    try:
        jaxpr, result = jax.make_jaxpr(value, return_shape=True)(learner.program.output, target)
    except Exception as reason:
        raise LossError(
            "loss",
            got=f"{type(reason).__name__}: {str(reason).splitlines()[0] if str(reason) else ''}",
            expected=f"a function of an output {spec_text(learner.program.output)} and a target {spec_text(target)}",
            repair=_repair_of_loss(reason),
        ) from reason
    leaves = jax.tree.leaves(result)
    is_number = len(leaves) == 1 and leaves[0].shape == () and jnp.issubdtype(leaves[0].dtype, jnp.floating)
    if not is_number or not unit_of(result).is_unitless:
        raise LossError(
            "loss",
            got=spec_text(result),
            expected="one real number without a unit for the output and target of one sample at one step",
            repair="Reduce over features inside the loss; samples and time are added up outside.",
        )
    _check_callbacks(learner, jaxpr.jaxpr)


def _check_callbacks(learner: Learner, loss: Jaxpr) -> None:
    """Raise LossError for a callback in the loss of one sample that JAX does not call for many."""
    if learner.strategy.own_mesh is not None:
        found, way = ordered_callback(loss), "runs on several devices"
    else:
        found, way = "" if learner.batch_size is None else unmapped_callback(loss), "maps over samples"
    if found:
        raise LossError(
            "loss",
            got=f"a callback that keeps its order, {found}",
            expected=f"a loss that JAX {way}, under {learner.strategy.name}",
            repair="Take the callback out, or leave out ordered=True.",
        )


class SplitLoss(NamedTuple):
    """A loss whose arrays are arguments of a compiled function, and whose other parts choose the function.

    Attributes:
      rest: the parts that are no arrays, which can be hashed.
      arrays: its arrays, for a loss that is a pytree such as an `equinox.Module`.
    """

    rest: Hashable
    arrays: Any

    @classmethod
    def of(cls, loss: Loss) -> "SplitLoss":
        """Split a loss; one that JAX knows no parts of, and that has no hash, is known by its identity."""
        arrays, others = eqx.partition(loss, lambda leaf: isinstance(leaf, (jax.Array, np.ndarray)))
        leaves, structure = jax.tree.flatten(others)
        rest = (tuple(leaves), structure)
        return cls(rest, arrays) if _is_hashable(rest) else cls(Same(loss), None)

    def whole(self) -> Loss:
        """The loss."""
        if isinstance(self.rest, Same):
            return self.rest.value
        leaves, structure = self.rest  # type: ignore[misc]
        return eqx.combine(self.arrays, jax.tree.unflatten(structure, leaves))


class Same:
    """A value that is equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
        return bool(value == value)  # noqa: PLR0124 - an array among the parts makes no bool
    except (TypeError, ValueError):
        return False
