"""What has no derivative: the traces are held constant, and so are gradients made of them, and a rule's numbers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from .._tree import Tree
from ..errors import AlgorithmError


def first_derivative(tree: Tree) -> Tree:
    """The same arrays, of a gradient; a derivative through them is an error, where JAX would give a wrong one.

    Raises:
      AlgorithmError: when JAX differentiates through them.
    """
    return _mapped(_gradient, tree)


def depending(trace: Tree, sources: Sequence[jax.Array]) -> Tree:
    """The same trace, of which JAX knows that it moves with the sources; its derivative by them is zero all the same.

    Traces are made of derivatives that are held constant, so that JAX would know of no dependence. XLA removes a choice
    that is always the same. JAX keeps it, where it leaves out custom derivatives (as it does in a scan).
    """
    number = sum(
        (jnp.real(array).reshape(-1)[:1].astype(jnp.float32).sum() for array in sources),
        start=jnp.zeros((), jnp.float32),
    )

    def chosen(leaf: jax.Array) -> jax.Array:
        return jnp.where(True, leaf, number.astype(leaf.dtype))  # noqa: FBT003

    moving, still = eqx.partition(trace, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(chosen, moving), still)


def constant_trace(trace: Tree) -> Tree:
    """The same trace, where a gradient reads it; a derivative through it is an error, where JAX would leave it out.

    Raises:
      AlgorithmError: when JAX differentiates through it.
    """
    return _mapped(_trace, trace)


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


_REPAIR = (
    'Use pb.BPTT() where second derivatives are needed. pb.RTRL() and vjp="multi-step" have them inside one window '
    "whose carry does not depend on what is differentiated: one that is fresh, or went through jax.lax.stop_gradient."
)
_gradient = _held(
    "the gradient",
    got="a derivative of a derivative by eligibility traces",
    expected="a first derivative: an online rule holds its traces constant, so that the second would be wrong",
    repair=_REPAIR,
)
_trace = _held(
    "the trace of the carry",
    got="a derivative of a gradient through the steps that made the trace",
    expected="a carry that is held constant: so is its trace, and the derivative would be wrong",
    repair=_REPAIR,
)
_numbers = _held(
    "algorithm",
    got="a derivative by a number of the rule, such as its decay",
    expected="one by params or inputs: a rule holds its traces constant, so that this one would be zero or wrong",
    repair="Compare several values by jax.vmap, or take differences between them.",
)
