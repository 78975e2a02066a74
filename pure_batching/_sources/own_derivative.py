"""The derivative that a weight operation of a user's own brings, `ETraceOp.xy_to_dw`."""

import sys
from typing import Any

import jax
import jax.numpy as jnp

from .._reader.jaxprs import ClosedJaxpr
from .._tree import Tree
from ..errors import CaptureError
from .reasons import first_lines


def own_derivative(
    weight: Any, path: str, x: jax.ShapeDtypeStruct | None, y: jax.ShapeDtypeStruct
) -> ClosedJaxpr | None:
    """`(x, dy, *arrays of w) -> dw` of an operation whose class overrides `xy_to_dw`; None for any other.

    Raises:
      CaptureError: `xy_to_dw` fails for one sample, or returns other arrays than those of the weight.
    """
    brainscale = sys.modules["brainscale"]
    # What BrainScale's own operations have: the derivative of `xw_to_y`, which needs no function of its own.
    if type(weight.op).xy_to_dw in (brainscale.ETraceOp.xy_to_dw, brainscale.ElemWiseOp.xy_to_dw):
        return None
    return _traced(weight.op, path, x, y, weight.value)


def _traced(op: Any, path: str, x: jax.ShapeDtypeStruct | None, y: jax.ShapeDtypeStruct, weight: Tree) -> ClosedJaxpr:
    where, wanted = f"{path}, {type(op).__name__}.xy_to_dw", [leaf.shape for leaf in jax.tree.leaves(weight)]

    def refused(got: str, expected: str) -> CaptureError:
        repair = "Return the gradient of one sample's weight from its x and dy, in the weight's structure."
        return CaptureError(where, got=got, expected=expected, repair=repair)

    def asked(x: Any, dy: jax.Array, weight: Tree) -> list[Any]:
        try:
            return jax.tree.leaves(op.xy_to_dw(x, dy, weight))
        except Exception as error:
            given = f"dy {dy.shape}" if x is None else f"x {x.shape} and dy {dy.shape}"
            raise refused(f"{type(error).__name__}: {first_lines(error)}", f"a function of {given}") from error

    def derivative(x: Any, dy: jax.Array, weight: Tree) -> list[jax.Array]:
        arrays = asked(x, dy, weight)
        found = [jnp.shape(array) for array in arrays]
        if found != wanted:
            raise refused(f"arrays of the shapes {found}", f"the weight's own, {wanted}")
        leaves = zip(arrays, jax.tree.leaves(weight), strict=True)
        return [jnp.asarray(array, leaf.dtype) for array, leaf in leaves]

    return jax.make_jaxpr(derivative)(x, y, weight)
