"""A sequence's data: what changes from step to step, what stays, which steps count, and where a sample starts anew."""

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


class Moment(eqx.Module):
    """The data of one step.

    Attributes:
      inputs, targets: of the step, `[B, ...]`.
      mask: whether the step counts, `[B]`; None where all do.
      reset: whether a sample starts anew before the step, `[B]`; None where none does.
    """

    inputs: tuple[Tree, ...]
    targets: Tree
    mask: jax.Array | None
    reset: jax.Array | None


class Steps(eqx.Module):
    """The data of a sequence: `Moment` with a time axis in front."""

    inputs: Timed
    targets: Timed
    mask: jax.Array | None
    reset: jax.Array | None

    def changing(self) -> Any:
        """What a scan over the steps runs over."""
        return self.inputs.changing, self.targets.changing, self.mask, self.reset

    def at(self, changing: Any) -> Moment:
        """One step, from what a scan hands out."""
        inputs, targets, mask, reset = changing
        data = (self.inputs.at(inputs), self.targets.at(targets))
        arguments, wanted = data if mask is None else _blank(data, mask)
        return Moment(arguments, wanted, mask, reset)

    @property
    def have_flags(self) -> bool:
        """Whether the samples of a batch need not make the same steps."""
        return self.mask is not None or self.reset is not None

    @property
    def length(self) -> int:
        """`T`."""
        return jax.tree.leaves(self.changing())[0].shape[0]

    def window(self, start: jax.Array | int, length: int) -> "Steps":
        """`length` steps from `start`."""

        def cut(tree: Tree) -> Tree:
            return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), tree)

        inputs, targets, mask, reset = cut(self.changing())
        return Steps(Timed(inputs, self.inputs.constant), Timed(targets, self.targets.constant), mask, reset)

    def with_weights(self, weights: jax.Array) -> "Steps":
        """The same steps, whose targets come with a number for each sample, `[B]`."""
        targets = Timed((self.targets.changing, None), (self.targets.constant, weights))
        return Steps(self.inputs, targets, self.mask, self.reset)

    @staticmethod
    def sample_axes() -> "Steps":
        """Where the samples lie."""
        timed: Any = Timed(1, 0)
        axis: Any = 1
        return Steps(timed, timed, axis, axis)


def select(condition: jax.Array, yes: Tree, no: Tree) -> Tree:
    """`jnp.where` for trees whose leaves lead with the condition's axes."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (a.ndim - condition.ndim)), a, b)

    return jax.tree.map(choose, yes, no)


def _blank(data: Tree, mask: jax.Array) -> Tree:
    """The data of masked steps are ones, or the class 0, so that padding of any kind (NaN too) reaches no derivative.

    At ones, unlike zeros, a norm, a root and a logarithm have a derivative.
    """
    return select(mask, data, jax.tree.map(_harmless, data))


def _harmless(leaf: jax.Array) -> jax.Array:
    return jnp.ones_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.zeros_like(leaf)
