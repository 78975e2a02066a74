"""Operations that cannot be mapped or differentiated as they are, written out in others.

The libraries of sparse matrices give their products no batching rule, and differentiate `x @ A` wrongly with respect to
the stored numbers of `A` (measured with saiunit 0.3.2 and 0.5.2). The derivative of a convolution of one image by its
kernel, mapped over samples, is a convolution in which each sample is a group with one channel. XLA makes of those one
that multiplies the other samples by zero, which keeps finite numbers apart, but not NaN (measured with jax 0.9.2).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, program
from .pieces import spec_of_var

# By the name of a primitive.
Operations = Mapping[str, Callable[..., jax.Array]]


def written_out(jaxpr: Jaxpr) -> Jaxpr:
    """The same jaxpr, variable for variable, with such operations written out."""
    return _written(jaxpr, _OPERATIONS)


def by_patches(jaxpr: Jaxpr) -> Jaxpr:
    """The same with each convolution of one image as a product of its patches with the kernel.

    That takes more memory, but XLA has no fast program for the derivatives of a convolution place by place.
    """
    return _written(jaxpr, {**_OPERATIONS, "conv_general_dilated": _product_of_patches})


def _written(jaxpr: Jaxpr, operations: Operations) -> Jaxpr:
    eqns = [_written_equation(eqn, operations) for eqn in jaxpr.eqns]
    return program(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, eqns, jaxpr)


def _written_equation(eqn: JaxprEqn, operations: Operations) -> JaxprEqn:
    """The same equation, itself or within a call, with such operations written out."""
    if _is_written_out(eqn):
        operation = operations[eqn.primitive.name]
        return call_of(lambda *arrays: operation(*arrays, **eqn.params), eqn)
    inner = eqn.params.get("jaxpr")
    if isinstance(inner, ClosedJaxpr) and _holds_one(inner.jaxpr):
        body = ClosedJaxpr(_written(inner.jaxpr, operations), inner.consts)
        return eqn.replace(params={**eqn.params, "jaxpr": body})
    return eqn


def call_of(function: Callable[..., jax.Array], eqn: JaxprEqn, name: str = "written_out") -> JaxprEqn:
    """An equation that calls `function`, under a name, between the variables of `eqn`."""

    def run(*arrays: jax.Array) -> jax.Array:
        return function(*arrays)

    run.__name__ = name
    traced = jax.make_jaxpr(jax.jit(run))(*(spec_of_var(var) for var in eqn.invars))
    (call,) = traced.jaxpr.eqns
    return call.replace(invars=eqn.invars, outvars=eqn.outvars, source_info=eqn.source_info)


def _is_written_out(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name in _OPERATIONS and (eqn.primitive.name != "conv_general_dilated" or _is_of_one_image(eqn))


def _is_of_one_image(eqn: JaxprEqn) -> bool:
    images = spec_of_var(eqn.invars[0]).shape[eqn.params["dimension_numbers"].lhs_spec[0]]
    return images == eqn.params["batch_group_count"] == 1


def _holds_one(jaxpr: Jaxpr) -> bool:
    inner = [eqn.params.get("jaxpr") for eqn in jaxpr.eqns]
    return any(map(_is_written_out, jaxpr.eqns)) or any(
        _holds_one(closed.jaxpr) for closed in inner if isinstance(closed, ClosedJaxpr)
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


def _convolved(image: jax.Array, kernel: jax.Array, **params: Any) -> jax.Array:
    """A convolution of one image, whose derivative by the kernel sees a second image of zeros, and so two channels."""
    convolve = partial(jax.lax.conv_general_dilated, **params)
    if params["feature_group_count"] > 1:  # XLA keeps NaN of a sample apart by itself then, which a test holds
        return convolve(image, kernel)
    images, made = params["dimension_numbers"].lhs_spec[0], params["dimension_numbers"].out_spec[0]

    @jax.custom_jvp
    def convolved(image: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(image, kernel)

    @partial(convolved.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> tuple[jax.Array, Any]:
        (image, kernel), (of_image, of_kernel) = primals, tangents
        parts = []
        if not isinstance(of_image, SymbolicZero):
            parts.append(convolve(of_image, kernel))
        if not isinstance(of_kernel, SymbolicZero):
            two = jnp.concatenate([image, jnp.zeros_like(image)], images)
            parts.append(jax.lax.slice_in_dim(convolve(two, of_kernel), 0, 1, axis=made))
        return convolve(image, kernel), sum(parts[1:], start=parts[0])

    return convolved(image, kernel)


def _product_of_patches(
    image: jax.Array,
    kernel: jax.Array,
    *,
    dimension_numbers: Any,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    **_: Any,
) -> jax.Array:
    """A convolution of one image, `kernel[out, cw] @ patches[cw, place]` in each group of channels."""
    image = image.transpose(dimension_numbers.lhs_spec)  # [1, channels, *image]
    kernel = kernel.transpose(dimension_numbers.rhs_spec)  # [out, channels of a group, *window]
    between = [(low, high, step - 1) for (low, high), step in zip(padding, lhs_dilation, strict=True)]
    padded = jax.lax.pad(image[0], jnp.zeros((), image.dtype), [(0, 0, 0), *between])
    window, sizes = kernel.shape[2:], zip(padded.shape[1:], kernel.shape[2:], rhs_dilation, window_strides, strict=True)
    places = [(size - (width - 1) * apart - 1) // step + 1 for size, width, apart, step in sizes]

    def at(offset: Sequence[int]) -> jax.Array:
        first = [i * apart for i, apart in zip(offset, rhs_dilation, strict=True)]
        last = [i + (n - 1) * step + 1 for i, n, step in zip(first, places, window_strides, strict=True)]
        return jax.lax.slice(padded, (0, *first), (len(padded), *last), (1, *window_strides))

    groups, channels = feature_group_count, kernel.shape[1]
    patches = jnp.stack([at(offset) for offset in np.ndindex(*window)])
    patches = patches.reshape(-1, groups, channels, math.prod(places)).transpose(1, 2, 0, 3)
    kernels = kernel.reshape(groups, -1, channels * math.prod(window))
    made = jnp.matmul(kernels, patches.reshape(groups, kernels.shape[2], -1)).reshape(1, len(kernel), *places)
    return made.transpose(np.argsort(dimension_numbers.out_spec))


_OPERATIONS: Operations = {
    "csr_matvec": _csr,
    "csr_matmat": _csr,
    "coo_matvec": _coo,
    "coo_matmat": _coo,
    "conv_general_dilated": _convolved,
}
