"""The gradient of all weights, from parts that each name some of them."""

import jax
import jax.numpy as jnp

from .._algorithms.base import add_gradients
from .._precision import accumulator, cast_like
from .._program import Params


def summed(params: Params, *parts: Params, lead: tuple[int, ...] = ()) -> Params:
    """The sum of partial gradients, zeros for a weight that no part names, in the dtypes in which they are added up.

    Args:
      params: trainable values by path.
      parts: gradients `[*lead, *param.shape]` of some of the weights.
      lead: the axes of the samples that are kept apart.
    """
    zeros = jax.tree.map(lambda spec: jnp.zeros((*lead, *spec.shape), spec.dtype), accumulator(params))
    return add_gradients(zeros, *(accumulating_part(params, part) for part in parts))


def accumulating_part(params: Params, part: Params) -> Params:
    """A partial gradient in the dtypes in which it is added up."""
    return cast_like(part, accumulator({path: params[path] for path in part}))
