"""Sparse products, written out in operations that JAX can map and differentiate.

The libraries of sparse matrices give their products no batching rule, and differentiate `x @ A` wrongly with respect to
the stored numbers of `A` (measured with saiunit 0.3.2 and 0.5.2).
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from ._jaxpr import spec_of_var


def written_out(jaxpr: Jaxpr) -> Jaxpr:
    """The same jaxpr, variable for variable, with its sparse products written out."""
    return Jaxpr(
        jaxpr.constvars,
        jaxpr.invars,
        jaxpr.outvars,
        [written_out_equation(eqn) for eqn in jaxpr.eqns],
        jaxpr.effects,
        jaxpr.debug_info,
    )


def written_out_equation(eqn: JaxprEqn) -> JaxprEqn:
    """The same equation, itself or within a call, with its sparse products written out."""
    product = _PRODUCTS.get(eqn.primitive.name)
    if product is not None:
        return _call(lambda *arrays: product(*arrays, **eqn.params), eqn)
    inner = eqn.params.get("jaxpr")
    if isinstance(inner, ClosedJaxpr) and _has_product(inner.jaxpr):
        return eqn.replace(params={**eqn.params, "jaxpr": ClosedJaxpr(written_out(inner.jaxpr), inner.consts)})
    return eqn


def _call(function: Callable[..., jax.Array], eqn: JaxprEqn) -> JaxprEqn:
    """An equation that calls `function` between the variables of `eqn`."""
    traced = jax.make_jaxpr(jax.jit(function))(*(spec_of_var(var) for var in eqn.invars))
    (call,) = traced.jaxpr.eqns
    return call.replace(invars=eqn.invars, outvars=eqn.outvars)


def _has_product(jaxpr: Jaxpr) -> bool:
    inner = [eqn.params.get("jaxpr") for eqn in jaxpr.eqns]
    return any(eqn.primitive.name in _PRODUCTS for eqn in jaxpr.eqns) or any(
        _has_product(closed.jaxpr) for closed in inner if isinstance(closed, ClosedJaxpr)
    )


def _csr(data: Any, indices: Any, indptr: Any, v: Any, *, shape: Any, transpose: bool, **_: Any) -> jax.Array:
    rows = jnp.searchsorted(indptr, jnp.arange(data.shape[0]), side="right") - 1
    return _gathered(data, rows, indices, v, shape, transpose=transpose)


def _coo(data: Any, row: Any, col: Any, v: Any, *, spinfo: Any, transpose: bool, **_: Any) -> jax.Array:
    return _gathered(data, row, col, v, spinfo.shape, transpose=transpose)


def _gathered(data: Any, rows: Any, columns: Any, v: Any, shape: Any, *, transpose: bool) -> jax.Array:
    """`A v`, or `A^T v`, for a vector or a matrix: each stored number times what it meets, added up where it leads."""
    source, target, size = (rows, columns, shape[1]) if transpose else (columns, rows, shape[0])
    met = v[source]
    terms = data.reshape(-1, *(1 for _ in met.shape[1:])) * met
    return jnp.zeros((size, *met.shape[1:]), terms.dtype).at[target].add(terms)


_PRODUCTS: Mapping[str, Callable[..., jax.Array]] = {
    "csr_matvec": _csr,
    "csr_matmat": _csr,
    "coo_matvec": _coo,
    "coo_matmat": _coo,
}
