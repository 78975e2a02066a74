"""The rules of operations that cut, join and index arrays: where the samples lie in the result."""

from collections.abc import Mapping, Sequence

import numpy as np

from .operation import At, Mixing, Rule, Unclear, agreed, put, without
from .values import Along


def _concatenate(at: At) -> Along:
    axis, places = at.params["dimension"], at.places
    if all(place is None or place.axis != axis for place in places):
        return agreed(at)
    known = [place for place in places if place is not None]
    if len({(place.axis, place.inner) for place in known}) > 1:
        raise Mixing
    if len(known) < len(places):
        raise Unclear
    return Along(axis, sum(place.outer for place in known), known[0].inner)


def _stack(at: At) -> Along:
    along, axis = agreed(at), at.params["axis"] % len(at.out)
    return put(along, along.axis + (along.axis >= axis))


def _unstack(at: At) -> Along:
    return without(at.only, (at.params["axis"] % len(at.shape()),))


def _tile(at: At) -> Along:
    along = at.only
    return Along(along.axis, along.outer * at.params["reps"][along.axis], along.inner)


def _pad(at: At) -> Along:
    if tuple(at.params["padding_config"][at.only.axis]) != (0, 0, 0):
        raise Unclear
    return at.only


def _slice(at: At) -> Along:
    along = at.only
    strides = at.params["strides"]
    start, stop = (at.params[name][along.axis] for name in ("start_indices", "limit_indices"))
    return _part(at, start, stop, 1 if strides is None else strides[along.axis])


def _split(at: At) -> list[Along | None]:
    if at.only.axis != at.params["axis"]:
        return [at.only] * len(at.eqn.outvars)
    stops = np.cumsum(at.params["sizes"])
    return [_part(at, stop - size, stop, 1) for stop, size in zip(stops, at.params["sizes"], strict=True)]


def _part(at: At, start: int, stop: int, stride: int) -> Along:
    """Cut along the samples' axis: whole blocks keep every sample, and a part of a block drops some."""
    along, size = at.only, at.shape()[at.only.axis]
    block = size // along.outer
    if stride != 1 or start % block or stop % block:
        raise Mixing
    if start == stop:
        raise Unclear
    return Along(along.axis, int(stop - start) // block, along.inner)


def _dynamic_slice(at: At) -> Along:
    if at.params["slice_sizes"][at.only.axis] != at.shape()[at.only.axis]:
        raise Unclear
    return at.only


def _dynamic_update(at: At) -> Along:
    along = agreed(at)
    if at.shape(1)[along.axis] != at.shape(0)[along.axis]:
        raise Unclear if at.places[1] is not None else Mixing  # what is no sample's own is written to some of them
    return along


def _gather(at: At) -> Along:
    numbers, (operand, indices) = at.params["dimension_numbers"], at.places
    free = [axis for axis in range(len(at.out)) if axis not in numbers.offset_dims]
    found = set()
    if indices is not None:
        if indices.axis >= len(free):
            raise Unclear
        found.add(put(indices, free[indices.axis]))
    if operand is not None:
        found.add(_gathered(at, operand, free))
    if len(found) != 1:
        raise Mixing
    return found.pop()


def _gathered(at: At, along: Along, free: Sequence[int]) -> Along:
    """Find where the samples of a gather's operand lie in the result."""
    numbers, axis, width = at.params["dimension_numbers"], along.axis, at.params["slice_sizes"][along.axis]
    if axis in numbers.operand_batching_dims:
        place = numbers.operand_batching_dims.index(axis)
        return put(along, free[numbers.start_indices_batching_dims[place]])
    if width not in (1, at.shape()[axis]):
        raise Unclear
    if width != at.shape()[axis]:
        return put(along, free[_counted(at, numbers.start_index_map, axis)])
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(at.shape())) if i not in gone]
    return put(along, numbers.offset_dims[kept.index(axis)])


def _counted(at: At, index_map: Sequence[int], axis: int) -> int:
    """Find the axis of the indices along which they count 0, 1, 2, so that entry `i` reads sample `i`."""
    if axis not in index_map:
        raise Mixing
    indices = at.column(1, tuple(index_map).index(axis))
    if indices is None:
        raise Unclear
    size = at.shape(0)[axis]
    for place, length in enumerate(indices.shape):
        count = np.arange(size).reshape(*(size if i == place else 1 for i in range(indices.ndim)))
        if length == size and np.array_equal(indices, np.broadcast_to(count, indices.shape)):
            return place
    raise Mixing


def _scatter(at: At) -> Along:
    """Operand, indices and updates must agree on where the samples lie in the result."""
    operand, indices, updates = at.places
    found = set() if operand is None else {operand}
    if indices is not None:
        found.add(put(indices, _scattered(at, indices.axis)))
    if updates is not None:
        found.add(_updated(at, updates))
    if len(found) != 1 or (operand is not None and updates is None and _tells_apart(at, operand.axis)):
        raise Mixing
    return found.pop()


def _tells_apart(at: At, axis: int) -> bool:
    """Whether what is no sample's own is written to some samples, and not to the others: `h.at[0].set(0.0)`."""
    numbers = at.params["dimension_numbers"]
    if axis not in numbers.scatter_dims_to_operand_dims:
        return False
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [i for i in range(len(at.shape())) if i not in gone]
    if axis in kept:
        return at.shape(2)[numbers.update_window_dims[kept.index(axis)]] != at.shape()[axis]
    written = at.column(1, tuple(numbers.scatter_dims_to_operand_dims).index(axis))
    return written is None or len(np.unique(written)) < at.shape()[axis]


def _updated(at: At, updates: Along) -> Along:
    numbers, shape = at.params["dimension_numbers"], at.shape(2)
    if updates.axis not in numbers.update_window_dims:
        free = [axis for axis in range(len(shape)) if axis not in numbers.update_window_dims]
        return put(updates, _scattered(at, free.index(updates.axis)))
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [axis for axis in range(len(at.shape())) if axis not in gone]
    axis = kept[numbers.update_window_dims.index(updates.axis)]
    if shape[updates.axis] != at.shape()[axis]:
        raise Unclear
    return put(updates, axis)


def _scattered(at: At, place: int) -> int:
    """Find the axis of the result that an axis of the indices counts through."""
    numbers = at.params["dimension_numbers"]
    if place in numbers.scatter_indices_batching_dims:
        return numbers.operand_batching_dims[numbers.scatter_indices_batching_dims.index(place)]
    for axis in numbers.scatter_dims_to_operand_dims:
        try:
            is_counted = _counted(at, numbers.scatter_dims_to_operand_dims, axis) == place
        except (Mixing, Unclear):
            continue
        if is_counted and axis in numbers.inserted_window_dims:
            return axis
    raise Unclear


INDEXING: Mapping[str, Rule] = {
    **dict.fromkeys(("scatter", "scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"), _scatter),
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "gather": _gather,
    "pad": _pad,
    "slice": _slice,
    "split": _split,
    "stack": _stack,
    "tile": _tile,
    "unstack": _unstack,
}
