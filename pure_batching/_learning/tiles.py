"""A few samples at a time: what is held for each sample is held for those alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._strategies.base import MapSamples
from .._strategies.devices import side_by_side
from .._strategies.loop import samples_moved
from .._tree import Tree


def each_in_tiles(size: int, tile: int) -> MapSamples:
    """The mapping that runs `tile` of `size` samples at once, one on each device at least, one tile after the other."""
    return side_by_side(size, lambda own: _in_tiles(own, max(1, tile * own // size)))


def _in_tiles(size: int, tile: int) -> MapSamples:
    """Samples are cut out where they lie; moving their axis to the front would copy a whole sequence."""

    def each(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
        def mapped(shared: Any, *own: Any) -> Any:
            axes = (in_axes,) * len(own) if isinstance(in_axes, int) else in_axes

            def run(start: Any, count: int) -> Any:
                return jax.vmap(fun, (None, *axes))(shared, *_cut(own, axes, start, count))

            whole, left = divmod(size, tile)
            results = jax.lax.map(lambda k: run(k * tile, tile), jnp.arange(whole))
            results = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)
            if left:
                results = jax.tree.map(lambda *x: jnp.concatenate(x), results, run(whole * tile, left))
            return samples_moved(results, out_axes, to_front=False)

        return mapped

    return each


def _cut(tree: Tree, axes: Any, start: Any, count: int) -> Tree:
    """`count` samples of each leaf from `start`, along the axis that `axes` says."""

    def cut(axis: int, part: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, count, axis), part)

    return jax.tree.map(cut, axes, tree)
