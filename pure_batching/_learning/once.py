"""Gradients of an online rule have no derivative: the traces that they are made of are held constant."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from .._tree import Tree
from ..errors import AlgorithmError


def first_derivative(tree: Tree) -> Tree:
    """The same arrays; a derivative through them is an error, where JAX would give a wrong one.

    Raises:
      AlgorithmError: when JAX differentiates through them.
    """
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, _held(*leaves))


@jax.custom_jvp
def _held(*arrays: jax.Array) -> Sequence[jax.Array]:
    return arrays


@partial(_held.defjvp, symbolic_zeros=True)
def _refuse(primals: Sequence[jax.Array], tangents: Sequence[Any]) -> Any:
    if all(isinstance(tangent, SymbolicZero) for tangent in tangents):
        return primals, tangents
    raise AlgorithmError(
        "the gradient",
        got="a derivative of a derivative by eligibility traces",
        expected="a first derivative: an online rule holds its traces constant, so that the second would be wrong",
        repair='Use pb.BPTT(), or vjp="multi-step" for the steps inside a window, where second derivatives are needed.',
    )
