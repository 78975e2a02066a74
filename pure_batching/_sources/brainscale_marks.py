"""How BrainScale marks the uses of its weights: by the name of the jitted function that computes them."""

import sys
from collections.abc import Mapping
from typing import Any

import brainstate
import jax

from .._reader.jaxprs import ClosedJaxpr, JaxprEqn
from .._reader.marks import Marks
from .._reader.primitives import name_of
from .blueprint import states_of
from .loaded import is_of_brainscale
from .own_derivative import own_derivative

# The name of a weight operation in a jaxpr, and of one whose output BrainScale follows through further operations.
_OPERATION = "_etrace_operator_call"
_FOLLOWED = "_etrace_operator_call_enable_grad"


class BrainScaleMarks(Marks):
    """The weights of a module and its layers of `brainscale.nn`.

    Only an `ETraceParam` is marked. This reads names and attributes that brainscale 0.1.0 gives its public classes.
    """

    def __init__(self, states: Mapping[str, brainstate.State]) -> None:
        self._weights = {path: state for path, state in states.items() if isinstance(state, brainstate.ParamState)}

    def is_shared(self, path: str) -> bool:
        """No: an `ETraceOp` has one `ETraceParam`."""
        del path
        return False

    def is_additive(self, eqn: JaxprEqn) -> bool:
        """No."""
        del eqn
        return False

    def is_use(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is the jitted call of an `ETraceOp`."""
        return name_of(eqn).startswith(_OPERATION)

    def is_followed(self, eqn: JaxprEqn) -> bool:
        """Whether the operation is element-wise in its input (`is_diagonal`)."""
        return name_of(eqn).startswith(_FOLLOWED)

    def why_untraced(self, path: str) -> str:
        """Which kind of weight has no marks."""
        weight = self._weights[path]
        if is_of_brainscale(weight, "ETraceParam"):
            return ""
        if is_of_brainscale(weight, "NonTempParam"):
            return "a NonTempParam asks for the gradient of the step"
        return f"a {type(weight).__name__} is no ETraceParam; the layers of brainscale.nn have those"

    def gradient(self, path: str) -> str:
        """The `grad=` of an `ETraceParam`."""
        weight: Any = self._weights[path]
        return str(weight.gradient.value)

    def derivative(self, path: str, x: jax.ShapeDtypeStruct | None, y: jax.ShapeDtypeStruct) -> ClosedJaxpr | None:
        """The `xy_to_dw` of an operation whose class overrides it."""
        weight: Any = self._weights[path]
        return own_derivative(weight, path, x, y)


def apply_weight_functions_once(module: brainstate.nn.Module) -> None:
    """`MatMulOp` computes `x @ f(f(w * m))` where its documentation says `x @ f(w * m)`; here it computes that."""
    for state in states_of(module).values():
        weight: Any = state
        if is_of_brainscale(weight, "ETraceParam") and type(weight.op) is sys.modules["brainscale"].MatMulOp:
            weight.op = _once(weight.op)


def _once(op: Any) -> Any:
    if op.apply_weight_fn_before_mask:
        return op
    function, mask = op.weight_fn, op.weight_mask
    whole = function if mask is None else lambda w: function(w * mask)
    return type(op)(weight_fn=whole, apply_weight_fn_before_mask=True)
