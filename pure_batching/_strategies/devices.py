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
    """The samples' axis of each leaf as two: the devices, and the samples of each."""

    def split(axis: int, part: Tree) -> Tree:
        return jax.tree.map(lambda x: x.reshape(*x.shape[:axis], devices, -1, *x.shape[axis + 1 :]), part)

    return jax.tree.map(split, axes, tree)


def _merged(tree: Tree, axes: Any) -> Tree:
    def merge(axis: int, part: Tree) -> Tree:
        return jax.tree.map(lambda x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :]), part)

    return jax.tree.map(merge, axes, tree)
