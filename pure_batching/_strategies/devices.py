"""Samples that are run a few at a time, when they may lie on several devices."""

from collections.abc import Callable
from typing import Any

import jax

from .._tree import Tree
from .base import MapSamples


def side_by_side(size: int, each_of: Callable[[int], MapSamples]) -> MapSamples:
    """The mapping over `size` samples in which each device maps over its own, where the devices share them evenly.

    Samples in turn would be fetched from one device after the other. Whether the samples lie on several devices is not
    known while a function is traced, so the number of devices decides.

    Args:
      size: the number of samples.
      each_of: makes the mapping over some number of samples.
    """
    devices = jax.device_count()
    if devices == 1 or size % devices:
        return each_of(size)
    each_own = each_of(size // devices)

    def each(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        def mapped(shared: Any, *own: Any) -> Any:
            axes = (in_axes,) * len(own) if isinstance(in_axes, int) else in_axes
            run = jax.vmap(each_own(fun, axes, out_axes), (None, *axes), out_axes, axis_size=devices)
            return _merged(run(shared, *_shared_out(own, axes, devices)), out_axes)

        return mapped

    return each


def _shared_out(tree: Tree, axes: Any, devices: int) -> Tree:
    def of_part(axis: int, part: Tree) -> Tree:
        return jax.tree.map(lambda x: split(x, axis, devices), part)

    return jax.tree.map(of_part, axes, tree)


def _merged(tree: Tree, axes: Any) -> Tree:
    def of_part(axis: int, part: Tree) -> Tree:
        return jax.tree.map(lambda x: merged(x, axis), part)

    return jax.tree.map(of_part, axes, tree)


def split(leaf: jax.Array, axis: int, shares: int) -> jax.Array:
    """The samples' axis as two: the shares, and the samples of each."""
    return leaf.reshape(*leaf.shape[:axis], shares, leaf.shape[axis] // shares, *leaf.shape[axis + 1 :])


def merged(leaf: jax.Array, axis: int) -> jax.Array:
    """The inverse of `split`."""
    return jax.lax.collapse(leaf, axis, axis + 2)
