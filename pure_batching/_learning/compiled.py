"""Functions that are compiled once for a learner, and freed with it.

`jax.jit` keeps every static argument until its caches are cleared. So a learner is none: a function of a learner is a
closure over it, which the learner's source keeps.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import numpy as np

from .._program import Loss
from .sharding import SampleAxes, under_automatic_axes

if TYPE_CHECKING:
    from .learner import Learner


def compiled(
    learner: "Learner", function: Callable[..., Any], *statics: Hashable, axes: SampleAxes
) -> Callable[..., Any]:
    """`jax.jit` of `function(learner, *statics, ...)`, the same for equal learners and statics.

    Args:
      learner: whose memory keeps the function.
      function: what is compiled.
      statics: its arguments behind the learner, which are hashed.
      axes: where the samples lie in its other arguments and in its result.
    """

    def make() -> Callable[..., Any]:
        return jax.jit(under_automatic_axes(partial(function, learner, *statics), axes))

    return kept(learner, make, function, *statics)


def kept(learner: "Learner", make: Callable[[], Any], *name: Hashable) -> Any:
    """What `make` gives, made once for equal learners and names."""
    memory, key = learner.source.memory, (jax.tree.structure(learner.algorithm), learner.strategy, *name)
    if key not in memory:
        memory[key] = make()
    return memory[key]


class SplitLoss(eqx.Module):
    """A loss whose arrays are arguments of a compiled function, and whose other parts choose the function.

    Attributes:
      arrays: its arrays, for a loss that is a pytree such as an `equinox.Module`.
      rest: the other parts, which can be hashed.
    """

    arrays: Any
    rest: Hashable = eqx.field(static=True)

    @classmethod
    def of(cls, loss: Loss) -> "SplitLoss":
        """Split a loss; one that JAX knows no parts of, and that has no hash, is known by its identity."""
        arrays, others = eqx.partition(loss, lambda leaf: isinstance(leaf, (jax.Array, np.ndarray)))
        leaves, structure = jax.tree.flatten(others)
        rest = (tuple(leaves), structure)
        return cls(arrays, rest) if _is_hashable(rest) else cls(None, _Same(loss))

    def whole(self) -> Loss:
        """The loss."""
        if isinstance(self.rest, _Same):
            return self.rest.value
        leaves, structure = self.rest  # type: ignore[misc]
        return eqx.combine(self.arrays, jax.tree.unflatten(structure, leaves))


class _Same:
    """A value that is equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
        return bool(value == value)  # noqa: PLR0124 - an array among the parts makes no bool
    except (TypeError, ValueError):
        return False
