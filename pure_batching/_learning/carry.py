"""Carry: the arrays that a learner hands from one step to the next."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._algorithms.base import Trace
from .._conform import check_numbers
from .._program import States
from .._tree import Tree, described, mantissa, named_leaves, spec_text
from ..errors import ShapeError, StructureError


class Carry(NamedTuple):
    """The arrays that one step hands to the next.

    Every leaf but those of `shared` has a leading axis `[B, ...]` in a batch.

    Attributes:
      hidden: the hidden states by path, in their units.
      other: the other states of a sample (short-term states, statistics, delay buffers) by path.
      keys: random keys by path.
      shared: states that are the same for every sample (write pointers, counters) by path. A mask or a reset moves
        samples apart: from then on each sample has its own of these states, in `other`.
      trace: the algorithm's eligibility traces.
      update_count: the number of updates so far, `[]` or `[B]` int32. An update is a step; with BPTT, RTRL and
        `vjp="multi-step"` it is a window.
    """

    hidden: Mapping[str, Tree]
    other: Mapping[str, Tree]
    keys: Mapping[str, jax.Array]
    shared: Mapping[str, Tree]
    trace: Trace
    update_count: jax.Array

    def __repr__(self) -> str:
        """The shapes and dtypes of each field, without the numbers."""
        return f"Carry({', '.join(f'{name}={spec_text(field)}' for name, field in self._asdict().items())})"

    @staticmethod
    def sample_axes() -> "Carry":
        """The axis of the samples in each field; None for what they share."""
        axes: Any = 0
        nowhere: Any = None
        return Carry(axes, axes, axes, nowhere, axes, axes)

    @property
    def states(self) -> States:
        """The module's part of the carry."""
        return States(self.hidden, self.other, self.keys, self.shared)


def apart(carry: Carry) -> Carry:
    """The same carry, in which every sample has its own copy of the states that the samples shared.

    The samples may then differ in these states. A mask or a reset does this by itself. Call it for carries that made
    different numbers of steps, before `stack`, `concat` or `scatter` puts them together.

    Raises:
      StructureError: no carry.
      ShapeError: an array that does not lead with the samples.
    """
    lead = check_whole("carry", carry)
    own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*lead, *leaf.shape)), carry.shared)
    return carry._replace(other={**carry.other, **own}, shared={})


def check_whole(name: str, carry: object) -> tuple[int, ...]:
    """The leading axes of a carry: `(B,)` for a batch, `()` for one sample.

    Units, dtypes and features are not checked here: a learner knows them, or another carry.

    Raises:
      StructureError: the value is no carry.
      ShapeError: an array that does not lead with the samples.
    """
    if not isinstance(carry, Carry):
        raise StructureError(name, got=type(carry).__name__, expected="a Carry", repair=_OF_A_LEARNER)
    check_numbers(carry, name)
    for field, tree in carry.states._asdict().items():
        if not isinstance(tree, Mapping):
            raise StructureError(
                f"{name}.{field}", got=type(tree).__name__, expected="{path: value}", repair=_OF_A_LEARNER
            )
    lead = _lead(f"{name}.update_count", carry.update_count)
    for leaf, value in named_leaves(carry._replace(shared={}), name):
        shape = jnp.shape(mantissa(value))
        if shape[: len(lead)] != lead:
            raise ShapeError(leaf, got=f"shape {shape}", expected=f"(B={lead[0]}, ...)", repair=_OF_A_LEARNER)
    return lead


_OF_A_LEARNER = "Pass learner.init() or aux.carry."


def _lead(name: str, update_count: Any) -> tuple[int, ...]:
    """The leading axes, read from the update count, which has no other axes."""
    leaves = jax.tree.leaves(update_count)
    is_array = len(leaves) == 1 and leaves[0] is update_count
    if not is_array or jnp.ndim(update_count) > 1 or not jnp.issubdtype(jnp.result_type(update_count), jnp.integer):
        raise StructureError(
            name,
            got=described(update_count),
            expected="int32[], or int32[B] of a batch",
            repair=_OF_A_LEARNER,
        )
    return jnp.shape(update_count)
