"""The equations of a weight's use in the float type of traces.

A step may mix float types: bfloat16 weights and a float32 state, say. Its traces, and what is contracted from them,
have one type, of 32 bits at least, so that a long sum loses no digits and does not overflow.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .jaxprs import ClosedJaxpr, JaxprEqn, Literal, evaluate, inner, program
from .pieces import spec_of_var
from .primitives import ELEMENT_WISE, MOVING, called

# Operations that are the same in every float type, apart from a parameter that names the type.
_OF_EVERY_TYPE = ELEMENT_WISE - {"bitcast_convert_type"} | {
    *MOVING,
    *("conv_general_dilated", "cumsum", "dot_general", "reduce_max", "reduce_min", "reduce_sum", "scatter-add"),
}
_TYPE_PARAMETERS = ("new_dtype", "preferred_element_type")


def widened(jaxpr: ClosedJaxpr, dtype: Any) -> ClosedJaxpr:
    """The same function, whose real arguments and results, and the equations between them, are of one float type."""
    equations, _ = inner(jaxpr)
    inputs = [spec_of_var(var) for var in equations.invars]
    inside = [aval for eqn in equations.eqns for aval in (*map(_aval, eqn.invars), *map(_aval, eqn.outvars))]
    if all(_wide(spec.dtype, dtype) == spec.dtype for spec in (*inputs, *inside)):
        return jaxpr
    specs = [jax.ShapeDtypeStruct(spec.shape, _wide(spec.dtype, dtype)) for spec in inputs]
    made = jax.make_jaxpr(partial(_evaluated, jaxpr, dtype))(*specs)
    return ClosedJaxpr(*inner(made))


def _aval(atom: Any) -> Any:
    return atom.aval


def _wide(dtype: Any, wide: Any) -> Any:
    return wide if jnp.issubdtype(dtype, jnp.floating) else dtype


def _cast(array: Any, wide: Any) -> Any:
    dtype = jnp.result_type(array)
    return jax.lax.convert_element_type(array, wide) if _wide(dtype, wide) != dtype else array


def _evaluated(jaxpr: ClosedJaxpr, wide: Any, *args: jax.Array) -> list[Any]:
    equations, consts = inner(jaxpr)
    values: dict[Any, Any] = dict(zip(equations.invars, args, strict=True))
    values.update(zip(equations.constvars, (_cast(const, wide) for const in consts), strict=True))

    def read(atom: Any) -> Any:
        return _cast(atom.val, wide) if isinstance(atom, Literal) else values[atom]

    for eqn in equations.eqns:
        values.update(zip(eqn.outvars, _results(eqn, wide, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in equations.outvars]


def _results(eqn: JaxprEqn, wide: Any, given: list[Any]) -> list[Any]:
    body = called(eqn)
    if body is not None and not eqn.primitive.name.startswith("custom_"):
        return _evaluated(body, wide, *given)
    if eqn.primitive.name not in _OF_EVERY_TYPE:
        return [_cast(result, wide) for result in _in_own_types(eqn, given)]
    params = {name: _wide_parameter(name, value, wide) for name, value in eqn.params.items()}
    results = eqn.primitive.bind(*given, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def _in_own_types(eqn: JaxprEqn, given: list[Any]) -> list[Any]:
    operands = {atom: x for atom, x in zip(eqn.invars, given, strict=True) if not isinstance(atom, Literal)}
    own = [jax.lax.convert_element_type(x, spec_of_var(atom).dtype) for atom, x in operands.items()]
    return evaluate(ClosedJaxpr(program((), [*operands], eqn.outvars, [eqn]), ()), *own)


def _wide_parameter(name: str, value: Any, wide: Any) -> Any:
    return _wide(value, wide) if name in _TYPE_PARAMETERS and value is not None else value
