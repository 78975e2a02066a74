"""The equations of one use of a weight, as a function of its input and its arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._precision import in_float
from .._relation import Operation, WeightLeaf
from .alignment import aligned_axes, is_product, stretched
from .flat import flat
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Var, evaluate, inner, program
from .pieces import spec_of_var
from .widened import widened
from .written_out import by_patches, written_out


def operation_of(
    eqn: JaxprEqn,
    x: Var | None,
    arrays: Sequence[Var],
    held: Sequence[Var],
    shape: tuple[int, ...],
    derivative: Any,
    dtype: Any,
) -> Operation:
    """The operation of an equation that uses a weight.

    Args:
      eqn: the equation.
      x: the variable of its input, None for an element-wise weight, and where the derivative does not depend on it.
      arrays: the variables of the weight's arrays.
      held: the variables of other weights' arrays.
      shape: of the hidden states that the result reaches.
      derivative: see `Operation`.
      dtype: of traces.
    """
    given = [*([] if x is None else [x]), *arrays, *held]
    opened = flat(_at_zero(eqn, given))
    equations, of_places = (
        widened(flat(ClosedJaxpr(form(opened.jaxpr), opened.consts)), dtype) for form in (written_out, by_patches)
    )
    return Operation(equations, of_places, shape, None if derivative is None else widened(derivative, dtype))


def _at_zero(eqn: JaxprEqn, given: Sequence[Var]) -> ClosedJaxpr:
    """An equation as a function of some of its variables, where the others are zero."""
    others = list(dict.fromkeys(var for var in eqn.invars if isinstance(var, Var) and var not in set(given)))
    whole = ClosedJaxpr(program((), [*others, *given], eqn.outvars, [eqn]), ())
    if not others:
        return whole
    zeros = [np.zeros(spec_of_var(var).shape, spec_of_var(var).dtype) for var in others]
    made = jax.make_jaxpr(lambda *values: evaluate(whole, *zeros, *values))(*map(spec_of_var, given))
    return ClosedJaxpr(*inner(made))


def leaves_of(
    operation: Operation,
    x: Var | None,
    names: Sequence[str],
    arrays: Sequence[Var],
    y: Var,
    dtype: Any,
) -> tuple[WeightLeaf, ...]:
    """The arrays of a weight, and which elements of the output each of their elements reaches."""
    jaxpr: Jaxpr = operation.jaxpr.jaxpr
    first = 0 if x is None else 1
    inputs, inside = jaxpr.invars[:first], jaxpr.invars[first : first + len(arrays)]
    own = tuple(spec_of_var(y).shape)
    is_whole = own == operation.shape
    leaves = []
    for name, given, var in zip(names, arrays, inside, strict=True):
        axes = stretched(aligned_axes(operation.jaxpr, var), own, operation.shape)
        is_plain = operation.derivative is None and is_whole and bool(inputs)
        native = spec_of_var(given)
        spec = jax.ShapeDtypeStruct(native.shape, in_float(native.dtype, dtype))
        leaves.append(WeightLeaf(name, spec, axes, is_plain and is_product(jaxpr, inputs[0], var)))
    return tuple(leaves)


def call(operation: Operation, x: jax.Array | None, *arrays: jax.Array) -> jax.Array:
    """`y` of one sample, `[*shape]`, differentiable with respect to the weight's arrays, in the dtype of traces."""
    run = _equations if operation.derivative is None else _with_own_derivative
    return jnp.broadcast_to(run(operation, x, *arrays), operation.shape)


def call_of_places(operation: Operation, x: jax.Array | None, *arrays: jax.Array) -> jax.Array:
    """The same, for derivatives of each place of `y` alone."""
    return call(operation._replace(jaxpr=operation.of_places), x, *arrays)


def _equations(operation: Operation, x: jax.Array | None, *arrays: jax.Array) -> jax.Array:
    return evaluate(operation.jaxpr, *(() if x is None else (x,)), *arrays)[0]


def _with_own_derivative(operation: Operation, x: jax.Array | None, *arrays: jax.Array) -> jax.Array:
    """The result, whose derivative with respect to the weight is a function of the user's own."""

    @jax.custom_vjp
    def run(x: jax.Array | None, *arrays: jax.Array) -> jax.Array:
        return _equations(operation, x, *arrays)

    def forward(*values: Any) -> tuple[jax.Array, Any]:
        return run(*values), values

    def backward(values: Any, dy: jax.Array) -> tuple[Any, ...]:
        x, *arrays = values
        return None, *evaluate(operation.derivative, *(() if x is None else (x,)), dy, *arrays)

    run.defvjp(forward, backward)
    return run(x, *arrays)
