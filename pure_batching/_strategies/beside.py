"""`Beside`: equal shares of a batch beside each other, one for each device of a mesh."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType

from .._tree import Tree
from .base import SUMMED, RunOf, SampleAxes, Strategy
from .devices import merged, split
from .shares import Sharing, axes_of_arguments, axes_of_leaves, with_sums


@dataclasses.dataclass(frozen=True)
class Beside(Sharing):
    """Equal shares of a batch, by `jax.vmap` over the shares.

    Whatever is summed over samples, in a loop over steps or windows too, is summed for each share. The sums of shares
    are added up at the end, all at once, so that nothing crosses devices before. On one device this would cost time,
    since each share has sums of its own, as large as the weights.

    Attributes:
      size: `B`.
      inner: the strategy of the samples of one share.
    """

    name = "shares beside each other"

    def in_shares(self, run: RunOf, axes: SampleAxes) -> Callable[..., Any]:
        """See `Strategy.in_shares`."""
        shares = self.size // (self.inner.batch_size or 1)

        def whole(*args: Any) -> Any:
            leaves, structure = jax.tree.flatten(args)
            along = axes_of_arguments(axes.given, args)

            def of_share(*own: Any) -> Any:
                return self.inner.in_shares(run, axes)(*jax.tree.unflatten(structure, own))

            parts = [
                leaf if axis is None else split(leaf, axis, shares) for leaf, axis in zip(leaves, along, strict=True)
            ]
            places = jax.tree.map(_place, axes.made, is_leaf=_is_none)
            return _put_together(jax.vmap(of_share, tuple(along), places, axis_size=shares)(*parts), axes.made)

        return whole


def beside(strategy: Strategy) -> Strategy:
    """The strategy itself, or shares of its samples where a mesh is in force whose devices can share them out."""
    size = strategy.batch_size or 1
    shares = math.gcd(size, _devices_in_force())
    return strategy if shares == 1 else Beside(size, strategy.resized(size // shares))


def _devices_in_force() -> int:
    """The number of devices of the mesh in force, without the axes along which `jax.shard_map` gave each its share."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in sizes if kind != AxisType.Manual)


def _place(axis: Any) -> int:
    """Where `jax.vmap` puts the shares of a result."""
    return axis if isinstance(axis, int) else 0


def _put_together(made: Tree, axes: Any) -> Tree:
    def of_part(axis: Any, part: Tree) -> Tree:
        return jax.tree.map(lambda leaf: _joined(leaf, axis), part)

    joined = jax.tree.map(of_part, axes, made, is_leaf=_is_none)
    return with_sums(joined, axes_of_leaves(axes, joined), lambda sums: [leaf.sum(0) for leaf in sums])


def _joined(leaf: jax.Array, axis: Any) -> jax.Array:
    if axis == SUMMED:
        return leaf
    return leaf[0] if axis is None else merged(leaf, axis)


def _is_none(axis: Any) -> bool:
    return axis is None
