"""Batching rules for sparse products, which their libraries leave without one."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn
from jax.interpreters import batching

from ._jaxpr import spec_of_var
from ._tree import with_lead

Arrays = tuple[jax.Array, ...]


def add_batching_rules(jaxpr: Jaxpr) -> None:
    """Give every sparse product in a jaxpr a batching rule, unless it has one."""
    for eqn in _all_equations(jaxpr):
        product = _PRODUCTS.get(eqn.primitive.name)
        if product is not None and not _can_be_mapped(eqn):
            batching.primitive_batchers[eqn.primitive] = _mapped(product)


def _can_be_mapped(eqn: JaxprEqn) -> bool:
    arguments = with_lead([spec_of_var(var) for var in eqn.invars], (1,))
    try:
        jax.eval_shape(jax.vmap(lambda *one: eqn.primitive.bind(*one, **eqn.params)), *arguments)
    except NotImplementedError:
        return False
    return True


def _mapped(product: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, int]]:
    def rule(arrays: Arrays, axes: tuple[int | None, ...], **params: Any) -> tuple[jax.Array, int]:
        return jax.vmap(lambda *one: product(*one, **params), in_axes=axes)(*arrays), 0

    return rule


def _csr(
    data: jax.Array, indices: jax.Array, indptr: jax.Array, v: jax.Array, *, shape: Any, transpose: bool, **_: Any
) -> jax.Array:
    rows = jnp.searchsorted(indptr, jnp.arange(data.shape[0]), side="right") - 1
    return _gathered(data, rows, indices, v, shape, transpose=transpose)


def _coo(
    data: jax.Array, row: jax.Array, col: jax.Array, v: jax.Array, *, spinfo: Any, transpose: bool, **_: Any
) -> Any:
    return _gathered(data, row, col, v, spinfo.shape, transpose=transpose)


def _gathered(
    data: jax.Array, rows: jax.Array, columns: jax.Array, v: jax.Array, shape: Any, *, transpose: bool
) -> jax.Array:
    """`A v`, or `A^T v`: each stored number times what it meets, added up where it leads."""
    source, target, size = (rows, columns, shape[1]) if transpose else (columns, rows, shape[0])
    return jnp.zeros(size, jnp.result_type(data, v)).at[target].add(data * v[source])


_PRODUCTS: Mapping[str, Callable[..., jax.Array]] = {"csr_matvec": _csr, "coo_matvec": _coo}


def _all_equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, Jaxpr):
                yield from _all_equations(inner)
