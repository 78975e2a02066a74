"""Lookups in a table of weights, as products with a row of zeros and a one, which a trace can follow.

The number of a row is nothing that a trace could add up over time. Which row is taken is: a one there, and zeros
elsewhere. The product of these with the table is the row itself.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .flat import equations_of, flat
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Var, evaluate, inner, program
from .marking import MIXING
from .pieces import reads, spec_of_var, tainted_by
from .primitives import name_of
from .step import TracedStep
from .written_out import call_of

_INT32 = jnp.dtype(jnp.int32)


class _Lookup(NamedTuple):
    """An equation that takes one element along some axes of a table, and all along the others.

    Attributes:
      table: its variable.
      indices: the variables and numbers of the places: one array `[*batch, len(axes)]`, or a number for each axis.
      axes: of the table, along which one element is taken.
      dropped: those of them that the result has not.
      offset: the axes of the result that are axes of the table; the others are those of the batch.
      fill: the number in place of what is out of range; None where the nearest place is taken.
    """

    table: Any
    indices: tuple[Any, ...]
    axes: tuple[int, ...]
    dropped: tuple[int, ...]
    offset: tuple[int, ...]
    fill: Any

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the table along `axes`."""
        return tuple(spec_of_var(self.table).shape[axis] for axis in self.axes)

    @property
    def is_whole(self) -> bool:
        """Whether the result has the axes of the table, and no others."""
        return self.offset == tuple(range(len(spec_of_var(self.table).shape)))

    def chosen(self, index: Sequence[jax.Array]) -> jax.Array:
        """`[*batch, *sizes]`: a one at the places, and zeros elsewhere; zeros alone where one is out of range."""
        rows = [self._ones(place, size) for place, size in zip(self._places(index), self.sizes, strict=True)]
        batch = rows[0].ndim - 1
        return reduce(lambda whole, row: whole[..., None] * jnp.expand_dims(row, range(batch, whole.ndim)), rows)

    def taken(self, chosen: jax.Array, table: jax.Array) -> jax.Array:
        """The result, with zeros where a place is out of range; in full precision, so that it is the element itself."""
        batch = chosen.ndim - len(self.axes)
        contracted = tuple(range(batch, chosen.ndim)), self.axes
        found = jax.lax.dot_general(chosen, table, (contracted, ((), ())), precision=jax.lax.Precision.HIGHEST)
        kept = [axis for axis in range(table.ndim) if axis not in self.dropped]
        whole = found.reshape(*chosen.shape[:batch], *(1 if a in self.axes else table.shape[a] for a in kept))
        return jnp.moveaxis(whole, range(batch, whole.ndim), self.offset)

    def filled(self, result: jax.Array, index: Sequence[jax.Array]) -> jax.Array:
        """The result with the fill where a place is out of range."""
        inside = reduce(jnp.logical_and, map(_is_inside, self._places(index), self.sizes))
        return jnp.where(jnp.expand_dims(inside, self.offset), result, jnp.asarray(self.fill, result.dtype))

    def _places(self, index: Sequence[jax.Array]) -> list[jax.Array]:
        is_gather = len(index) == 1 and index[0].ndim > 0
        places = [index[0][..., j] for j in range(len(self.axes))] if is_gather else index
        return [place.astype(jnp.int32) if place.dtype.itemsize < _INT32.itemsize else place for place in places]

    def _ones(self, place: jax.Array, size: int) -> jax.Array:
        within = place if self.fill is not None else jnp.clip(place, 0, size - 1)
        return (within[..., None] == jnp.arange(size, dtype=place.dtype)).astype(spec_of_var(self.table).dtype)


def _is_inside(place: jax.Array, size: int) -> jax.Array:
    return (place >= 0) & (place < size)


def with_products(step: TracedStep) -> TracedStep:
    """A marked step in which lookups that reach hidden states, with places made of data, are products.

    A lookup that reaches none, or reaches them through another use of a weight, has no trace and stays as it is.
    """
    jaxpr, consts = inner(step.jaxpr)
    before, after = step.variables(jaxpr)
    weights = {var for path in step.of_kind("param") for var in before[path]}
    hidden = {var for path in step.of_kind("hidden") for var in after[path]}

    def is_blocked(eqn: JaxprEqn) -> bool:
        return eqn.primitive.name == "stop_gradient" or (step.marks.is_use(eqn) and not step.marks.is_followed(eqn))

    made: list[JaxprEqn] = []
    replaced: set[int] = set()
    for eqn in jaxpr.eqns:
        product = _Call.of(eqn, weights) if name_of(eqn) == MIXING else None
        if product is not None and tainted_by(jaxpr.eqns, eqn.outvars, is_blocked) & hidden:
            squeeze = _squeeze_after(eqn, jaxpr) if product.lookup.is_whole else None
            replaced.update(() if squeeze is None else (id(squeeze),))
            made += product.equations(squeeze)
        elif id(eqn) not in replaced:
            made.append(eqn)
    whole = program(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, made, jaxpr)
    return step._replace(jaxpr=ClosedJaxpr(whole, consts))


class _Call(NamedTuple):
    """A use of weights whose result is a lookup.

    Attributes:
      eqn: the call.
      body: its equations, flat.
      weights, data: positions of its operands.
      lookup: its last equation.
    """

    eqn: JaxprEqn
    body: ClosedJaxpr
    weights: tuple[int, ...]
    data: tuple[int, ...]
    lookup: _Lookup

    @classmethod
    def of(cls, eqn: JaxprEqn, weights: set[Any]) -> "_Call | None":
        """The call, if its places are made of data alone and its table of weights alone; else None."""
        body = flat(eqn.params["jaxpr"])
        jaxpr, _ = inner(body)
        own = tuple(i for i, atom in enumerate(eqn.invars) if atom in weights)
        others = tuple(i for i in range(len(eqn.invars)) if i not in own)
        lookup = next((found for made in jaxpr.eqns if (found := _lookup(made, jaxpr.outvars)) is not None), None)
        if lookup is None:
            return None
        of_weights, of_data = (tainted_by(jaxpr.eqns, [jaxpr.invars[i] for i in part]) for part in (own, others))
        index = {atom for atom in lookup.indices if isinstance(atom, Var)}
        is_known = lookup.table in of_weights - of_data and index & of_data and not index & of_weights
        return cls(eqn, body, own, others, lookup) if is_known else None

    def equations(self, squeeze: JaxprEqn | None) -> list[JaxprEqn]:
        """The equations in its place, and in that of the squeeze of its result where there is one."""
        lookup = self.lookup
        if squeeze is not None:
            lookup = _squeezed(lookup, squeeze.params["dimensions"])
        index = self._part(self.data, lookup.indices)
        data, weights = ([self.eqn.invars[i] for i in part] for part in (self.data, self.weights))
        before, chosen = equations_of(lambda *values: lookup.chosen(index(*values)), *data)
        (result,) = (self.eqn if squeeze is None else squeeze).outvars
        product = result if lookup.fill is None else Var(result.aval)
        table = self._part(self.weights, [lookup.table])
        call = call_of(
            lambda *values: lookup.taken(values[-1], *table(*values[:-1])),
            self.eqn.replace(invars=[*weights, chosen], outvars=[product]),
            MIXING,
        )
        if lookup.fill is None:
            return [*before, call]
        after, filled = equations_of(lambda y, *values: lookup.filled(y, index(*values)), product, *data)
        renamed = [one.replace(outvars=[result if v is filled else v for v in one.outvars]) for one in after]
        return [*before, call, *renamed]

    def _part(self, given: Sequence[int], results: Sequence[Any]) -> Callable[..., list[jax.Array]]:
        """The part of the body from some operands to what is made of them alone."""
        jaxpr, consts = inner(self.body)
        others = [var for i, var in enumerate(jaxpr.invars) if i not in given]
        unknown = tainted_by(jaxpr.eqns, others)
        eqns = [eqn for eqn in jaxpr.eqns if not reads(eqn, unknown)]
        part = program(jaxpr.constvars, [jaxpr.invars[i] for i in given], results, eqns, jaxpr)
        return lambda *values: evaluate(ClosedJaxpr(part, consts), *values)


def _squeeze_after(eqn: JaxprEqn, jaxpr: Jaxpr) -> JaxprEqn | None:
    """The squeeze that alone reads the result of an equation."""
    readers = [other for other in jaxpr.eqns if reads(other, eqn.outvars)]
    is_alone = len(readers) == 1 and not set(eqn.outvars) & {a for a in jaxpr.outvars if isinstance(a, Var)}
    return readers[0] if is_alone and readers[0].primitive.name == "squeeze" else None


def _squeezed(lookup: _Lookup, dimensions: Sequence[int]) -> _Lookup:
    """A lookup whose result has lost some axes, each of one element; its result had all axes of the table."""
    left = spec_of_var(lookup.table).shape
    return lookup._replace(dropped=tuple(dimensions), offset=tuple(range(len(left) - len(dimensions))))


def _lookup(eqn: JaxprEqn, results: Sequence[Any]) -> _Lookup | None:
    """The lookup that an equation is, if it makes the result; else None."""
    if list(eqn.outvars) != list(results):
        return None
    return _FORMS[eqn.primitive.name](eqn) if eqn.primitive.name in _FORMS else None


def _gather(eqn: JaxprEqn) -> _Lookup | None:
    numbers, sizes, mode = (eqn.params[name] for name in ("dimension_numbers", "slice_sizes", "mode"))
    table, index = eqn.invars
    axes = tuple(numbers.start_index_map)
    if numbers.operand_batching_dims or not _takes_one(table, axes, sizes):
        return None
    fills = mode == jax.lax.GatherScatterMode.FILL_OR_DROP
    fill = eqn.params["fill_value"] if fills and eqn.params["fill_value"] is not None else jnp.nan if fills else None
    return _Lookup(table, (index,), axes, tuple(numbers.collapsed_slice_dims), tuple(numbers.offset_dims), fill)


def _dynamic_slice(eqn: JaxprEqn) -> _Lookup | None:
    (table, *starts), sizes = eqn.invars, eqn.params["slice_sizes"]
    shape = spec_of_var(table).shape
    axes = tuple(axis for axis, size in enumerate(shape) if size != sizes[axis])
    if not axes or not _takes_one(table, axes, sizes):
        return None
    return _Lookup(table, tuple(starts[axis] for axis in axes), axes, (), tuple(range(len(shape))), None)


def _takes_one(table: Any, axes: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether one element is taken along some axes, and all along the others."""
    shape = spec_of_var(table).shape
    return all(sizes[axis] == (1 if axis in axes else size) for axis, size in enumerate(shape))


_FORMS: dict[str, Callable[[JaxprEqn], _Lookup | None]] = {"gather": _gather, "dynamic_slice": _dynamic_slice}
