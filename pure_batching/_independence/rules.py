"""The rules that say where the samples lie in the result of an operation, from where they lie in its operands.

A rule is called only where the samples of every operand are known. It never looks at sizes to find the samples. It
raises `Mixing` where an operation brings samples together, and `Unclear` where it cannot tell.
"""

from collections.abc import Mapping
from math import prod

from .._reader.primitives import ELEMENT_WISE, POSITION_WISE
from .indexing import INDEXING
from .operation import At, Mixing, Rule, Unclear, agreed, put, without
from .values import Along


def _element_wise(at: At) -> Along:
    """Keep the samples in place; an operand that holds them has the shape of the result along their axis."""
    along, shapes = agreed(at), [at.shape(i) for i, place in enumerate(at.places) if place is not None]
    if any(len(shape) != len(at.out) or shape[along.axis] != at.out[along.axis] for shape in shapes):
        raise Unclear
    return along


def _leading(at: At) -> Along:
    """Keep the samples in place where an operation works on last axes, as those on random keys do."""
    along = agreed(at)
    if along.axis >= min(len(at.shape(i)) for i, place in enumerate(at.places) if place is not None):
        raise Unclear
    return along


def _on_matrices(at: At) -> Along:
    along = agreed(at)
    if any(place is not None and along.axis >= len(at.shape(i)) - 2 for i, place in enumerate(at.places)):
        raise Mixing
    return along


def _unwrapped(at: At) -> Along:
    if at.only.axis >= len(at.out):
        raise Unclear
    return at.only


def _position_wise(at: At) -> list[Along | None]:
    """Give each result the place of its operand."""
    return list(at.places)


def _broadcast(at: At) -> Along:
    return put(at.only, at.params["broadcast_dimensions"][at.only.axis])


def _transpose(at: At) -> Along:
    return put(at.only, tuple(at.params["permutation"]).index(at.only.axis))


def _squeeze(at: At) -> Along:
    return without(at.only, at.params["dimensions"])


def _reduce(at: At) -> Along:
    axes = at.params["axes"] if "axes" in at.params else at.params["dimensions"]
    return without(agreed(at), axes)


def _collective(at: At) -> list[Along | None]:
    """Remove the axes that a sum or maximum under `jax.vmap(..., axis_name=)` reduces."""
    if not all(isinstance(axis, int) for axis in at.params["axes"]):
        raise Unclear
    return [None if place is None else without(place, at.params["axes"]) for place in at.places]


def _reshape(at: At) -> Along:
    """Find the new axis that counts the samples; in memory they are `apart` numbers from each other."""
    order = at.params.get("dimensions") or tuple(range(len(at.shape())))
    along, old, new = put(at.only, order.index(at.only.axis)), [at.shape()[axis] for axis in order], at.out
    apart = prod(old[along.axis + 1 :]) * along.inner
    samples = old[along.axis] // (along.outer * along.inner)
    for axis, size in enumerate(new):
        stride = prod(new[axis + 1 :])
        if size > 1 and stride and apart % stride == 0 and (stride * size) % (apart * samples) == 0:
            return Along(axis, stride * size // (apart * samples), apart // stride)
    raise Unclear


def _running(at: At) -> Along:
    if at.only.axis == at.params["axis"]:
        raise Mixing
    return at.only


def _sort(at: At) -> Along:
    along = agreed(at)
    if along.axis == at.params["dimension"]:
        raise Mixing
    return along


def _reverse(at: At) -> Along:
    if at.only.axis in at.params["dimensions"]:
        raise Mixing
    return at.only


def _top_k(at: At) -> Along:
    axis = at.params.get("axis", -1) % len(at.shape())
    if at.only.axis == axis:
        raise Mixing
    return at.only


def _transform(at: At) -> Along:
    """Keep the samples in place where a Fourier transform runs over the last axes."""
    if at.only.axis >= len(at.shape()) - len(at.params["fft_lengths"]):
        raise Mixing
    return at.only


def _window(at: At) -> Along:
    """Keep the samples in place where the window covers one sample at a time, in steps of one."""
    along = agreed(at)
    single = {"window_dimensions": 1, "window_strides": 1, "padding": (0, 0), "base_dilation": 1, "window_dilation": 1}
    for name, value in single.items():
        given = at.params.get(name)
        if given is not None and given[along.axis] not in (value, list(value) if isinstance(value, tuple) else value):
            raise Mixing
    return along


def _dot(at: At) -> Along:
    """Where both operands hold samples, their axes must be the same batch axis of the product."""
    found = {_dot_side(at, side, place) for side, place in enumerate(at.places) if place is not None}
    if len(found) != 1:
        raise Mixing
    return found.pop()


def _dot_side(at: At, side: int, along: Along) -> Along:
    """Batch axes come first, then the free axes of the left side, then those of the right one."""
    contract, batch = at.params["dimension_numbers"]
    if along.axis in contract[side]:
        raise Mixing
    if along.axis in batch[side]:
        return put(along, tuple(batch[side]).index(along.axis))
    free = [[i for i in range(len(at.shape(k))) if i not in (*contract[k], *batch[k])] for k in (0, 1)]
    return put(along, len(batch[side]) + len(free[0]) * side + free[side].index(along.axis))


def _convolution(at: At) -> Along:
    """Where images and kernels both hold samples, both must lead to the same place in the result."""
    sides = (_of_images, _of_kernels)
    found = {side(at, place) for side, place in zip(sides, at.places, strict=True) if place is not None}
    if len(found) != 1:
        raise Mixing
    return found.pop()


def _of_images(at: At, along: Along) -> Along:
    """A convolution mixes neither images nor feature groups."""
    numbers = at.params["dimension_numbers"]
    image, feature = numbers.lhs_spec[:2]
    groups = {image: at.params["batch_group_count"], feature: at.params["feature_group_count"]}.get(along.axis, 1)
    if along.axis == image and groups == 1:
        return put(along, numbers.out_spec[0])
    of_group = at.shape()[along.axis] // groups
    if along.inner % of_group:
        raise Mixing if groups == 1 else Unclear
    made = numbers.out_spec[1]
    return Along(made, along.outer, along.inner // of_group * (at.out[made] // groups))


def _of_kernels(at: At, along: Along) -> Along:
    """Each output feature is made by its own kernel."""
    numbers = at.params["dimension_numbers"]
    if along.axis != numbers.rhs_spec[0]:
        raise Mixing
    return put(along, numbers.out_spec[1])


_REDUCTIONS = (
    *("argmax", "argmin", "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"),
    "reduce_xor",
)
_WINDOWS = ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum", "select_and_gather_add")
_MATRICES = ("cholesky", "eig", "eigh", "lu", "qr", "svd", "triangular_solve")

RULES: Mapping[str, Rule] = {
    **INDEXING,
    **dict.fromkeys(ELEMENT_WISE, _element_wise),
    **dict.fromkeys(POSITION_WISE, _position_wise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"), _running),
    **dict.fromkeys(("pmax", "pmin", "psum"), _collective),
    **dict.fromkeys((*_WINDOWS, "select_and_scatter_add"), _window),
    **dict.fromkeys(_MATRICES, _on_matrices),
    **dict.fromkeys(("random_bits", "random_seed", "random_split", "random_unwrap"), _leading),
    "broadcast_in_dim": _broadcast,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "fft": _transform,
    "random_gamma": _leading,
    "random_wrap": _unwrapped,
    "reshape": _reshape,
    "rev": _reverse,
    "sort": _sort,
    "squeeze": _squeeze,
    "top_k": _top_k,
    "transpose": _transpose,
}
