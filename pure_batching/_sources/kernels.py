"""Operations of brainevent that are compiled by a further package, which may be missing."""

import sys
from typing import Any

import jax

from .._reader.jaxprs import evaluate, inner
from .._reader.loops import holds
from .._reader.step import TracedStep
from ..errors import CaptureError


def check_kernels(step: TracedStep, name: str) -> None:
    """Raise CaptureError for an operation of brainevent that cannot be compiled here, as JAX does at the first step.

    Args:
      step: as it was traced.
      name: of what was captured.
    """
    equations, _ = inner(step.jaxpr)
    if not holds(equations, _names()):
        return
    try:
        jax.jit(lambda *values: evaluate(step.jaxpr, *values)).lower(*(var.aval for var in equations.invars))
    except Exception as reason:
        raise CaptureError(
            name,
            got=f"{type(reason).__name__}: {str(reason).splitlines()[0]}",
            expected="operations that can be compiled on this machine",
            repair="Install the package that the message names, or use a dense layer.",
        ) from reason


def _names() -> frozenset[str]:
    """The operations of brainevent, whose older versions do not list them."""
    listed: Any = getattr(sys.modules.get("brainevent"), "get_all_primitive_names", tuple)
    return frozenset(listed())
