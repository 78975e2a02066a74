"""Which elements of a weight operation's output does each weight element reach?

A weight element that reaches one output element only needs a trace of one number for each hidden state; the matrix of a
product, a bias, a mask, an element-wise function of either are such weights. One that reaches several needs as many
numbers: an element of a convolution's kernel reaches every place of one channel. This module finds out by following the
axes of a weight through the operation's jaxpr: an axis of an intermediate value is *aligned* with an axis of the weight
if element `i` of the one depends on the elements with index `i` of the other alone, and *scattered* from it if it
depends on those that a table leads to `i`, as the tables of a sparse matrix do with its stored numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._relation import Axes, Scattered
from .constants import Numbers, nothing, numbers_of
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, inner
from .pieces import spec_of_var
from .primitives import ELEMENT_WISE, POSITION_WISE, called

# A rule: the alignment of an equation's result, given that of its operands, None for one that the weight cannot reach.
Rule = Callable[[JaxprEqn, Sequence[Axes | None], Numbers], Axes]


def aligned_axes(operation: Jaxpr | ClosedJaxpr, leaf: Var) -> Axes:
    """Find the axis of `leaf` that each axis of the only output is aligned with.

    It is None where an element of the leaf spreads along an axis of the output, and may be None for one of size one.
    """
    jaxpr, _ = inner(operation)
    (axes,) = _follow(jaxpr, {leaf: tuple(range(len(spec_of_var(leaf).shape)))}, numbers_of(operation))
    return _spread(jaxpr.outvars[0]) if axes is None else axes


def stretched(axes: Axes, old: Sequence[int], new: Sequence[int]) -> Axes:
    """The alignment of a value that is broadcast from one shape to another."""
    lead = len(new) - len(old)
    kept = [axis if size == whole else None for axis, size, whole in zip(axes, old, new[lead:], strict=True)]
    return (*(None,) * lead, *kept)


def is_product(jaxpr: Jaxpr, x: Var, leaf: Var) -> bool:
    """Whether the output is `x @ leaf` or `leaf @ x`, of a vector and a matrix, plus terms without the leaf."""
    eqn = _only_reader(jaxpr, leaf)
    ranks = [len(spec_of_var(var).shape) for var in (x, leaf)]
    if eqn is None or eqn.primitive.name != "dot_general" or ranks != [1, 2]:
        return False
    products: Any = {(x, leaf): ((0,), (0,)), (leaf, x): ((1,), (0,))}
    contracted, batched = eqn.params["dimension_numbers"]
    if products.get(tuple(eqn.invars)) != contracted or batched != ((), ()):
        return False
    while eqn.outvars[0] is not jaxpr.outvars[0]:
        eqn = _only_reader(jaxpr, eqn.outvars[0])
        if eqn is None or eqn.primitive.name != "add":
            return False
    return True


def _only_reader(jaxpr: Jaxpr, var: Var) -> JaxprEqn | None:
    """The equation that reads a variable, None if it is read several times or never."""
    readers = [eqn for eqn in jaxpr.eqns for atom in eqn.invars if atom is var]
    return readers[0] if len(readers) == 1 else None


def _follow(jaxpr: Jaxpr, known: Mapping[Var, Axes], numbers: Numbers) -> list[Axes | None]:
    axes: dict[Any, Axes] = dict(known)
    for eqn in jaxpr.eqns:
        given = [None if isinstance(var, Literal) else axes.get(var) for var in eqn.invars]
        if any(one is not None for one in given):
            axes.update(zip(eqn.outvars, _apply(eqn, given, numbers), strict=True))
    return [None if isinstance(var, Literal) else axes.get(var) for var in jaxpr.outvars]


def _apply(eqn: JaxprEqn, given: Sequence[Axes | None], numbers: Numbers) -> list[Axes]:
    name, body = eqn.primitive.name, called(eqn)
    if body is not None:
        return _call(body, eqn, given)
    if name in ELEMENT_WISE:
        return [_merged(eqn, given)] * len(eqn.outvars)
    if name in POSITION_WISE:
        return [_spread(var) if axes is None else axes for axes, var in zip(given, eqn.outvars, strict=True)]
    rule = _RULES.get(name)
    return [_spread(var) for var in eqn.outvars] if rule is None else [rule(eqn, given, numbers)]


def _call(body: ClosedJaxpr, eqn: JaxprEqn, given: Sequence[Axes | None]) -> list[Axes]:
    equations, _ = inner(body)
    known = {var: axes for var, axes in zip(equations.invars, given, strict=True) if axes is not None}
    found = _follow(equations, known, nothing)
    return [_spread(var) if axes is None else axes for axes, var in zip(found, eqn.outvars, strict=True)]


def _spread(var: Any) -> Axes:
    return (None,) * len(_shape(var))


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(spec_of_var(var).shape)


def _merged(eqn: JaxprEqn, given: Sequence[Axes | None]) -> Axes:
    """Element-wise: an axis stays aligned where every operand that depends on the weight agrees and has its size."""
    sizes = _shape(eqn.outvars[0])
    columns: list[set[Any]] = [set() for _ in sizes]
    for var, axes in zip(eqn.invars, given, strict=True):
        if axes is not None and len(axes) != len(sizes):  # a scalar operand spreads over everything
            return (None,) * len(sizes)
        if axes is not None:
            for column, axis, size, whole in zip(columns, axes, _shape(var), sizes, strict=True):
                column.add(axis if size == whole else None)
    return tuple(column.pop() if len(column) == 1 else None for column in columns)


def _broadcast(eqn: JaxprEqn, given: Sequence[Axes | None], _: Numbers) -> Axes:
    axes, shape = given[0], _shape(eqn.invars[0])
    places, sizes = eqn.params["broadcast_dimensions"], eqn.params["shape"]
    out: list[Any] = [None] * len(sizes)
    for axis, size, place in zip(axes or (), shape, places, strict=True):
        out[place] = axis if size == sizes[place] else None
    return tuple(out)


def _transpose(eqn: JaxprEqn, given: Sequence[Axes | None], _: Numbers) -> Axes:
    axes: Any = given[0]
    return tuple(axes[i] for i in eqn.params["permutation"])


def _drop(eqn: JaxprEqn, given: Sequence[Axes | None], _: Numbers) -> Axes:
    """A sum or squeeze over some axes: what is left stays aligned."""
    gone = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
    return tuple(axis for i, axis in enumerate(given[0] or ()) if i not in gone)


def _reshape(eqn: JaxprEqn, given: Sequence[Axes | None], _: Numbers) -> Axes:
    """An axis is kept where the number of elements in front of it, and its size, stay."""
    old, new = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    kept = {place: axis for place, axis in zip(_places(old), given[0] or (), strict=True) if place[1] != 1}
    return tuple(kept.get(place) for place in _places(new))


def _places(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """For each axis, how many elements all axes in front of it have, and its size."""
    return [(math.prod(shape[:axis]), size) for axis, size in enumerate(shape)]


def _concatenate(eqn: JaxprEqn, given: Sequence[Axes | None], _: Numbers) -> Axes:
    """Every axis but the one along which operands are put together."""
    joined, sizes = eqn.params["dimension"], _shape(eqn.outvars[0])
    columns = [{axes[i] for axes in given if axes is not None} for i in range(len(sizes))]
    return tuple(None if i == joined or len(column) > 1 else next(iter(column)) for i, column in enumerate(columns))


def _stack(eqn: JaxprEqn, given: Sequence[Axes | None], _: Numbers) -> Axes:
    """Every axis but the new one along which operands are put together."""
    new = range(len(_shape(eqn.outvars[0])))[eqn.params["axis"]]
    columns = [set(column) for column in zip(*(axes for axes in given if axes is not None), strict=True)]
    kept = [column.pop() if len(column) == 1 else None for column in columns]
    return (*kept[:new], None, *kept[new:])


def _dot(eqn: JaxprEqn, given: Sequence[Axes | None], _: Numbers) -> Axes:
    """Batch axes and the free axes of the side that depends on the weight stay aligned; the other side's spread."""
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    left, right = given
    if left is not None and right is not None:
        return _spread(eqn.outvars[0])
    own: Any = right if left is None else left
    batch = [own[i] for i in (batch_l if left is not None else batch_r)]

    def free(side: Axes | None, var: Any, used: Sequence[int]) -> list[Any]:
        rest = [i for i in range(len(_shape(var))) if i not in used]
        return [None if side is None else side[i] for i in rest]

    return tuple(
        batch + free(left, eqn.invars[0], [*contract_l, *batch_l]) + free(right, eqn.invars[1], [*contract_r, *batch_r])
    )


def _convolution(eqn: JaxprEqn, given: Sequence[Axes | None], _: Numbers) -> Axes:
    """The kernel of an output channel reaches that channel alone, at any place, with groups and without."""
    (image, kernel), dimensions = given, eqn.params["dimension_numbers"]
    out: list[Any] = [None] * len(_shape(eqn.outvars[0]))
    if image is None and kernel is not None:
        out[dimensions.out_spec[1]] = kernel[dimensions.rhs_spec[0]]
    return tuple(out)


def _scatter_add(eqn: JaxprEqn, given: Sequence[Axes | None], numbers: Numbers) -> Axes:
    """Rows that are added at places of a constant table, one axis of the output by one axis of the updates."""
    operand, indices, updates = given
    rule, shape, moved = eqn.params["dimension_numbers"], _shape(eqn.outvars[0]), _shape(eqn.invars[2])
    if operand is not None or indices is not None or updates is None or rule.operand_batching_dims:
        return _spread(eqn.outvars[0])
    whole = [axis for axis in range(len(shape)) if axis not in rule.inserted_window_dims]
    out: list[Any] = [None] * len(shape)
    for axis, window in zip(whole, rule.update_window_dims, strict=True):
        if shape[axis] == moved[window] and axis not in rule.scatter_dims_to_operand_dims:
            out[axis] = updates[window]
    rows = [axis for axis in range(len(moved)) if axis not in rule.update_window_dims]
    if len(rows) == len(rule.scatter_dims_to_operand_dims) == 1:
        (axis,), row, table = rule.scatter_dims_to_operand_dims, updates[rows[0]], numbers(eqn.invars[1])
        if axis in rule.inserted_window_dims and isinstance(row, int) and table is not None:
            out[axis] = Scattered(row, table[:, 0])
    return tuple(out)


_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reduce_sum": _drop,
    "squeeze": _drop,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "stack": _stack,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "scatter-add": _scatter_add,
}
