"""The data of a sequence: inputs and targets over time, the mask, and the resets."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._tree import Tree


class Timed(eqx.Module):
    """A tree over time.

    Attributes:
      changing: the leaves with a time axis, `[T, ...]`, None in the other places.
      constant: the leaves that are the same at every step, None in the other places.
    """

    changing: Tree
    constant: Tree

    def at(self, changing: Tree) -> Tree:
        """The whole tree at one step, from what changes at this step."""
        return eqx.combine(changing, self.constant)

    def spec(self, batch_axes: int) -> Tree:
        """The specification of one sample at one step."""

        def trimmed(tree: Tree, count: int) -> Tree:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[count:], x.dtype), tree)

        return eqx.combine(trimmed(self.changing, 1 + batch_axes), trimmed(self.constant, batch_axes))


class StepData(eqx.Module):
    """The data of one step.

    Attributes:
      inputs, targets: of the step, `[B, ...]`.
      mask: whether the step counts, `[B]`; None where every step counts.
      reset: whether a sample starts anew before the step, `[B]`; None where no sample does.
      restart_key: the random key from which a sample that starts anew draws its states, `[B]`; None where the initial
        state draws no random numbers, or no sample starts anew.
    """

    inputs: tuple[Tree, ...]
    targets: Tree
    mask: jax.Array | None
    reset: jax.Array | None
    restart_key: jax.Array | None


class Steps(eqx.Module):
    """The data of a sequence, or of a window of it: the fields of `StepData` with a time axis in front.

    Attributes:
      positions: where the steps of a window stand in the inputs and targets, which are those of the whole sequence:
        a copy of them would cost as much memory as the records of a window. None where they are the window's own.
      stand_in: the inputs and targets of one step, `[B, ...]`, on which masked steps are run; None without a mask.
    """

    inputs: Timed
    targets: Timed
    mask: jax.Array | None
    reset: jax.Array | None
    restart_key: jax.Array | None = None
    positions: jax.Array | None = None
    stand_in: Any = None

    def changing(self) -> Any:
        """The arrays with a time axis, over which a scan runs."""
        data = (self.inputs.changing, self.targets.changing) if self.positions is None else self.positions
        return data, self.mask, self.reset, self.restart_key

    def at(self, changing: Any) -> StepData:
        """The data of one step, from one slice of `changing()`."""
        found, mask, reset, restart_key = changing
        inputs, targets = found if self.positions is None else self._data_at(found)
        data = (self.inputs.at(inputs), self.targets.at(targets))
        arguments, wanted = data if mask is None else select(mask, data, self.stand_in)
        return StepData(arguments, wanted, mask, reset, restart_key)

    @property
    def have_flags(self) -> bool:
        """Whether the samples of a batch need not make the same steps."""
        return self.mask is not None or self.reset is not None

    @property
    def length(self) -> int:
        """`T`."""
        return jax.tree.leaves(self.changing())[0].shape[0]

    def window(self, start: jax.Array | int, length: int) -> "Steps":
        """`length` steps from `start` of the whole sequence."""
        flags = _cut((self.mask, self.reset, self.restart_key), start, length)
        positions = start + jnp.arange(length, dtype=jnp.int32)
        return Steps(self.inputs, self.targets, *flags, positions=positions, stand_in=self.stand_in)

    def cut(self, start: jax.Array | int, length: int) -> "Steps":
        """A copy of `length` steps from `start`, for short windows."""
        inputs, targets = (
            Timed(_cut(timed.changing, start, length), timed.constant) for timed in (self.inputs, self.targets)
        )
        flags = _cut((self.mask, self.reset, self.restart_key), start, length)
        return Steps(inputs, targets, *flags, stand_in=self.stand_in)

    def _data_at(self, position: jax.Array) -> tuple[Tree, Tree]:
        data = (self.inputs.changing, self.targets.changing)
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, position, keepdims=False), data)

    def with_weights(self, weights: jax.Array) -> "Steps":
        """The same steps, whose targets come with a number for each sample, `[B]`."""
        targets = Timed((self.targets.changing, None), (self.targets.constant, weights))
        return dataclasses.replace(self, targets=targets)

    def with_stand_in(self) -> "Steps":
        """The same steps, with the data of the first step of each sample that counts, in place of those that do not.

        No padding then reaches a derivative, NaN included, and a step that has a derivative at all that it is given has
        one at masked steps too. A sample without a step that counts gets ones (or the class 0).
        """
        if self.mask is None:
            return self
        first, counts = self.mask.argmax(0), self.mask.any(0)

        def row(leaf: jax.Array) -> jax.Array:
            return leaf[first] if first.ndim == 0 else jax.vmap(lambda own, i: own[i], (1, 0))(leaf, first)

        inputs, targets = jax.tree.map(row, (self.inputs.changing, self.targets.changing))
        data = (self.inputs.at(inputs), self.targets.at(targets))
        return dataclasses.replace(self, stand_in=select(counts, data, harmless(data)))

    def with_restart_keys(self, sample_keys: jax.Array) -> "Steps":
        """The same steps, with a random key for each step of each sample: `fold_in` of the sample's key and the step.

        Two lives of a sample, and two samples, so start from different states.

        Args:
          sample_keys: the random key of each sample, `[B]`, or one key for one sample.
        """
        batched = jnp.ndim(jax.tree.leaves(self.reset)[0]) > 1
        fold = jax.vmap(jax.random.fold_in, (0, None)) if batched else jax.random.fold_in
        keys = jax.vmap(lambda step: fold(sample_keys, step))(jnp.arange(self.length))
        return dataclasses.replace(self, restart_key=keys)

    @staticmethod
    def sample_axes() -> "Steps":
        """The axis of the samples in each leaf: behind time, or in front where a leaf has no time axis."""
        timed: Any = Timed(1, 0)
        axis: Any = 1
        front: Any = 0
        return Steps(timed, timed, axis, axis, axis, stand_in=front)


def _cut(tree: Tree, start: jax.Array | int, length: int) -> Tree:
    """`length` steps of each leaf from `start`."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), tree)


def select(condition: jax.Array, yes: Tree, no: Tree) -> Tree:
    """`jnp.where` for trees whose leaves lead with the condition's axes."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(choose, yes, no)


def harmless(tree: Tree) -> Tree:
    """Ones in place of real numbers, 0 in place of integers.

    A norm, a root and a logarithm have no derivative at zero, but they have one at one.
    """

    def constant(leaf: jax.Array) -> jax.Array:
        return jnp.ones_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.zeros_like(leaf)

    return jax.tree.map(constant, tree)
