"""Which element of a weight operation's output does each weight element reach?

A weight element that reaches one output element only needs a trace of one number for each hidden state; the matrix of a
product, a bias, a mask, an element-wise function of either are such weights. This module finds them by following the
axes of a weight through the operation's jaxpr: an axis of an intermediate value is *aligned* with an axis of the weight
if element `i` of the one depends on the elements with index `i` of the other alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, inner
from .pieces import spec_of_var
from .primitives import ELEMENT_WISE, POSITION_WISE, called

# For each axis of a value, the axis of the weight that it is aligned with; None for an axis along which a weight
# element spreads. A value that does not depend on the weight has no alignment at all.
Axes = tuple[int | None, ...]


def aligned_axes(jaxpr: Jaxpr, leaf: Var) -> Axes | None:
    """Find the axis of `leaf` that each axis of the only output is aligned with.

    An axis of size one may be aligned with none. The whole is None where a weight element reaches several outputs.
    """
    (axes,) = _follow(jaxpr, {leaf: tuple(range(len(spec_of_var(leaf).shape)))})
    if axes is None:
        return None
    shape = spec_of_var(jaxpr.outvars[0]).shape  # type: ignore[arg-type]
    spreads = any(axis is None and size != 1 for axis, size in zip(axes, shape, strict=True))
    return None if spreads else axes


def is_product(jaxpr: Jaxpr, x: Var, leaf: Var) -> bool:
    """Whether the output is `x @ leaf`, for a vector and a matrix, plus what does not depend on the leaf."""
    readers = [eqn for eqn in jaxpr.eqns if leaf in eqn.invars]
    if len(readers) != 1 or readers[0].primitive.name != "dot_general" or list(readers[0].invars) != [x, leaf]:
        return False
    dimensions = (((0,), (0,)), ((), ()))
    found, var = readers[0].params["dimension_numbers"] == dimensions, readers[0].outvars[0]
    for eqn in jaxpr.eqns:
        if var in eqn.invars:
            is_one_term = eqn.primitive.name == "add" and list(eqn.invars).count(var) == 1
            found, var = found and is_one_term, eqn.outvars[0]
    return found and var is jaxpr.outvars[0]


def _follow(jaxpr: Jaxpr, known: Mapping[Var, Axes]) -> list[Axes | None]:
    axes: dict[Any, Axes] = dict(known)
    for eqn in jaxpr.eqns:
        given = [None if isinstance(var, Literal) else axes.get(var) for var in eqn.invars]
        if any(one is not None for one in given):
            axes.update(zip(eqn.outvars, _apply(eqn, given), strict=True))
    return [axes.get(var) for var in jaxpr.outvars]


def _apply(eqn: JaxprEqn, given: Sequence[Axes | None]) -> list[Axes]:
    name, body = eqn.primitive.name, called(eqn)
    if body is not None:
        return _call(body, eqn, given)
    if name in ELEMENT_WISE:
        return [_merged(eqn, given)] * len(eqn.outvars)
    if name in POSITION_WISE:
        return [_spread(var) if axes is None else axes for axes, var in zip(given, eqn.outvars, strict=True)]
    rule = _RULES.get(name)
    return [_spread(var) for var in eqn.outvars] if rule is None else [rule(eqn, given)]


def _call(body: ClosedJaxpr, eqn: JaxprEqn, given: Sequence[Axes | None]) -> list[Axes]:
    equations, _ = inner(body)
    known = {var: axes for var, axes in zip(equations.invars, given, strict=True) if axes is not None}
    found = _follow(equations, known)
    return [_spread(var) if axes is None else axes for axes, var in zip(found, eqn.outvars, strict=True)]


def _spread(var: Any) -> Axes:
    return (None,) * len(_shape(var))


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(spec_of_var(var).shape)


def _merged(eqn: JaxprEqn, given: Sequence[Axes | None]) -> Axes:
    """Element-wise: an axis stays aligned where every operand that depends on the weight agrees and has its size."""
    sizes = _shape(eqn.outvars[0])
    columns: list[set[int | None]] = [set() for _ in sizes]
    for var, axes in zip(eqn.invars, given, strict=True):
        if axes is not None and len(axes) != len(sizes):  # a scalar operand spreads over everything
            return (None,) * len(sizes)
        if axes is not None:
            for column, axis, size, whole in zip(columns, axes, _shape(var), sizes, strict=True):
                column.add(axis if size == whole else None)
    return tuple(column.pop() if len(column) == 1 else None for column in columns)


def _broadcast(eqn: JaxprEqn, given: Sequence[Axes | None]) -> Axes:
    axes, shape = given[0], _shape(eqn.invars[0])
    places, sizes = eqn.params["broadcast_dimensions"], eqn.params["shape"]
    out: list[int | None] = [None] * len(sizes)
    for axis, size, place in zip(axes or (), shape, places, strict=True):
        out[place] = axis if size == sizes[place] else None
    return tuple(out)


def _transpose(eqn: JaxprEqn, given: Sequence[Axes | None]) -> Axes:
    axes: Any = given[0]
    return tuple(axes[i] for i in eqn.params["permutation"])


def _drop(eqn: JaxprEqn, given: Sequence[Axes | None]) -> Axes:
    """A sum or squeeze over some axes: what is left stays aligned."""
    gone = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
    return tuple(axis for i, axis in enumerate(given[0] or ()) if i not in gone)


def _reshape(eqn: JaxprEqn, given: Sequence[Axes | None]) -> Axes:
    """A reshape that only adds or removes axes of size one keeps the others."""
    old, new = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    kept = [axis for axis, size in zip(given[0] or (), old, strict=True) if size != 1]
    if [size for size in old if size != 1] != [size for size in new if size != 1]:
        return (None,) * len(new)
    rest = iter(kept)
    return tuple(None if size == 1 else next(rest) for size in new)


def _dot(eqn: JaxprEqn, given: Sequence[Axes | None]) -> Axes:
    """Batch axes and the free axes of the side that depends on the weight stay aligned; the other side's spread."""
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    left, right = given
    if left is not None and right is not None:
        return _spread(eqn.outvars[0])
    own: Any = right if left is None else left
    batch = [own[i] for i in (batch_l if left is not None else batch_r)]

    def free(side: Axes | None, var: Any, used: Sequence[int]) -> list[int | None]:
        rest = [i for i in range(len(_shape(var))) if i not in used]
        return [None if side is None else side[i] for i in rest]

    return tuple(
        batch + free(left, eqn.invars[0], [*contract_l, *batch_l]) + free(right, eqn.invars[1], [*contract_r, *batch_r])
    )


_RULES: dict[str, Callable[[JaxprEqn, Sequence[Axes | None]], Axes]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reduce_sum": _drop,
    "squeeze": _drop,
    "reshape": _reshape,
    "dot_general": _dot,
}
