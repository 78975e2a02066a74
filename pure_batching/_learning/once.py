"""What has no derivative: the traces are held constant, and so are gradients made of them, and a rule's numbers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from .._tree import Tree
from ..errors import AlgorithmError


def first_derivative(tree: Tree) -> Tree:
    """The same arrays, of a gradient; a derivative through them is an error, where JAX would give a wrong one.

    Raises:
      AlgorithmError: when JAX differentiates through them.
    """
    return _mapped(_gradient, tree)


def without_derivative(numbers: Tree) -> Tree:
    """The same arrays, of a rule; a derivative by them is an error, where JAX would give zeros or a part of it.

    Raises:
      AlgorithmError: when JAX differentiates by them.
    """
    return _mapped(_numbers, numbers)


def _mapped(held: Callable[..., Sequence[jax.Array]], tree: Tree) -> Tree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, held(*leaves)) if leaves else tree


def _held(where: str, **refusal: str) -> Callable[..., Sequence[jax.Array]]:
    """A function that gives its arguments back, and has no derivative."""

    @jax.custom_jvp
    def held(*arrays: jax.Array) -> Sequence[jax.Array]:
        return arrays

    @partial(held.defjvp, symbolic_zeros=True)
    def refuse(primals: Sequence[jax.Array], tangents: Sequence[Any]) -> Any:
        if all(isinstance(tangent, SymbolicZero) for tangent in tangents):
            return primals, tangents
        raise AlgorithmError(where, **refusal)

    del refuse
    return held


_gradient = _held(
    "the gradient",
    got="a derivative of a derivative by eligibility traces",
    expected="a first derivative: an online rule holds its traces constant, so that the second would be wrong",
    repair='Use pb.BPTT(), or vjp="multi-step" for the steps inside a window, where second derivatives are needed.',
)
_numbers = _held(
    "algorithm",
    got="a derivative by a number of the rule, such as its decay",
    expected="one by params or inputs: a rule holds its traces constant, so that this one would be zero or wrong",
    repair="Compare several values by jax.vmap, or take differences between them.",
)
