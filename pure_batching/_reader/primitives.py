"""What this package knows about JAX's primitives, by their names in jax 0.9.2 to 0.12.

This is the only table of its kind: the reader, the audit of independence and the margins of comparisons read it.
"""

from collections.abc import Mapping

from .jaxprs import ClosedJaxpr, JaxprEqn, closed

# Element `i` of the result depends on element `i` of each operand alone. An operand has the shape of the result, or
# size one along an axis, or is a single number. No derivative is promised: `sign` and `random_gamma` stand here too.
ELEMENT_WISE = frozenset(
    [
        *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e"),
        *("bessel_i1e", "bitcast_convert_type", "cbrt", "ceil", "clamp", "clz", "complex", "conj"),
        *("convert_element_type", "copy", "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc"),
        *("exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "imag", "integer_pow"),
        *("is_finite", "layout_constraint", "le", "le_to", "lgamma", "log", "log1p", "log2", "logistic", "lt", "lt_to"),
        *("max", "min", "mul", "mulhi", "name", "ne", "neg", "nextafter", "not", "one_minus_square", "or", "polygamma"),
        *("polynomial", "population_count", "pow", "pvary", "random_clone", "random_fold_in", "random_gamma", "real"),
        *("reduce_precision", "regularized_incomplete_beta", "rem", "reshard", "round", "rsqrt", "select_n"),
        *("sharding_constraint", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh"),
        *("sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "threefry2x32", "xor", "zeta"),
        # brainunit's and braintools' own
        *("exprel", "heaviside_surrogate_gradient"),
    ]
)

# Result `k` is operand `k`.
POSITION_WISE = frozenset(["device_put", "optimization_barrier"])

# Elements move, and none changes. The slice says which operands hold them; the others say where, or how wide.
_MOVING: Mapping[str, slice] = {
    **dict.fromkeys(("broadcast_in_dim", "concatenate", "copy", "pad", "reshape", "rev"), slice(None)),
    **dict.fromkeys(("slice", "split", "squeeze", "stack", "tile", "transpose", "unstack"), slice(None)),
    **dict.fromkeys(POSITION_WISE, slice(None)),
    **dict.fromkeys(("dynamic_slice", "gather"), slice(1)),
    "dynamic_update_slice": slice(2),
    "scatter": slice(0, None, 2),
}
MOVING = frozenset(_MOVING)

# The elements of operand 0 stay in their places, and some are changed by other operands.
CHANGING = frozenset(["scatter-add", "scatter-max", "scatter-min", "scatter-mul", "scatter-sub"])

# A call holds one jaxpr, which takes the call's operands and gives the call's results.
CALLS = frozenset(
    [
        *("checkpoint", "closed_call", "composite", "core_call", "custom_jvp_call", "custom_vjp_call"),
        *("custom_vjp_call_jaxpr", "custom_vmap_call", "jit", "pjit", "remat", "remat2"),
    ]
)
_CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")

# A loop or branch holds jaxprs that run several times, or one of which runs.
LOOPS = frozenset(["cond", "scan", "while"])


def name_of(eqn: JaxprEqn) -> str:
    """The name of the jitted function that an equation calls; "" for an equation that calls none."""
    return str(eqn.params.get("name", "")) if eqn.primitive.name in ("jit", "pjit") else ""


def moved_operands(eqn: JaxprEqn) -> tuple[int, ...]:
    """The operands whose elements an equation moves and leaves as they are; none for any other equation."""
    return tuple(range(len(eqn.invars))[_MOVING.get(eqn.primitive.name, slice(0))])


def called(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr that a call runs; None for an equation that is no call."""
    if eqn.primitive.name not in CALLS:
        return None
    return closed(next(eqn.params[name] for name in _CALLED if name in eqn.params))
