"""A few samples at a time: what is held for each sample is held for those alone."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from .._strategies.base import MapSamples
from .._strategies.devices import side_by_side
from .._strategies.loop import samples_moved
from .._tree import Tree

# How many terms `sum_of_samples` adds up in one pass.
SUMMED_AT_ONCE = 16


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
            results = jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), results)
            if left:
                results = jax.tree.map(lambda *x: jnp.concatenate(x), results, run(whole * tile, left))
            return samples_moved(results, out_axes, to_front=False)

        return mapped

    return each


def sum_of_samples(fun: Callable[..., Any], size: int) -> Callable[..., Any]:
    """The sum over samples of `fun(*own)`, whose results may be as large as weights; the arguments are `[size, ...]`.

    The results of a few samples are added up element by element, in one pass over what they are made of. XLA's own sum
    over the leading axis takes ten times as long. Where the number of devices divides that of samples, each device adds
    up its own, if it has more than a few.
    """
    devices = jax.device_count()
    if devices == 1 or size % devices:
        return _sum_in_turn(fun, size)
    own = size // devices

    def summed(*given: Any) -> Any:
        if own < SUMMED_AT_ONCE:
            return _over_first(jax.vmap(fun)(*given))
        of_devices = jax.tree.map(lambda x: x.reshape(devices, own, *x.shape[1:]), given)
        return _over_first(jax.vmap(_sum_in_turn(fun, own))(*of_devices))

    return summed


def _over_first(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: x.sum(0), tree)


def _sum_in_turn(fun: Callable[..., Any], size: int) -> Callable[..., Any]:
    """Two groups at least, since only what a loop makes is an array that XLA does not make again where it is read."""
    group = max(1, min(SUMMED_AT_ONCE, size // 2))
    whole, left = divmod(size, group)

    def summed(*own: Any) -> Any:
        def add(start: Any, count: int, total: Any) -> Any:
            terms = (fun(*_sample(own, start + i)) for i in range(count))
            return reduce(lambda a, b: jax.tree.map(jnp.add, a, b), terms, total)

        made = jax.eval_shape(lambda: fun(*_sample(own, 0)))
        zeros = jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), made)
        begun = add(whole * group, left, zeros)
        return jax.lax.fori_loop(0, whole, lambda k, total: add(k * group, group, total), begun)

    return summed


def _sample(tree: Tree, place: Any) -> Tree:
    take = jax.lax.index_in_dim if isinstance(place, int) else jax.lax.dynamic_index_in_dim
    return jax.tree.map(lambda x: take(x, place, keepdims=False), tree)


def _cut(tree: Tree, axes: Any, start: Any, count: int) -> Tree:
    """`count` samples of each leaf from `start`, along the axis that `axes` says."""

    def cut(axis: int, part: Tree) -> Tree:
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, count, axis), part)

    return jax.tree.map(cut, axes, tree)
