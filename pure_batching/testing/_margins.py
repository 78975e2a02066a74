"""How close a step came to taking the other side of a comparison, such as a spike's threshold."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal

from .._execution import Carry
from .._learner import Learner
from .._program import Params
from .._tree import Tree

_COMPARISONS = frozenset(["ge", "gt", "le", "lt", "sign"])
_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")

# A reordered sum moves a number by some units in the last place of the numbers it is a sum of.
ROUNDINGS = 256


def smallest_margin(learner: Learner, params: Params, carry: Carry, inputs: tuple[Tree, ...]) -> float:
    """The smallest |a - b| of all comparisons `a >= b` of one step of one sample, in units of rounding.

    A number below `ROUNDINGS` means that the order of a sum may decide the comparison: a spike that one strategy
    fires and another does not. Infinite where the step compares nothing.

    Args:
      learner: of one sample.
      params: trainable values by path.
      carry: before the step.
      inputs: of the step.
    """
    closed = jax.make_jaxpr(learner.step)(params, carry, *inputs)
    leaves = jax.tree.leaves((params, carry, *inputs))
    return min(_evaluate(closed.jaxpr, closed.consts, leaves), default=float("inf"))


def _evaluate(jaxpr: Jaxpr, consts: Any, arguments: Any) -> Iterator[float]:
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    yield from _walk(jaxpr, values)


def _walk(jaxpr: Jaxpr, values: dict[Any, Any]) -> Iterator[float]:
    """Evaluate equation by equation, into calls too; loops and branches are one equation each."""
    for eqn in jaxpr.eqns:
        given = [var.val if isinstance(var, Literal) else values[var] for var in eqn.invars]
        if eqn.primitive.name in _COMPARISONS:
            yield from _margins(given)
        inner = _inner(eqn)
        if inner is None:
            results = eqn.primitive.bind(*given, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        else:
            names = [*inner.jaxpr.constvars, *inner.jaxpr.invars]
            below: dict[Any, Any] = dict(zip(names, [*inner.consts, *given], strict=True))
            yield from _walk(inner.jaxpr, below)
            results = [var.val if isinstance(var, Literal) else below[var] for var in inner.jaxpr.outvars]
        values.update(zip(eqn.outvars, results, strict=True))


def _inner(eqn: Any) -> Any:
    """The program of a call, None for what is no call."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    found = next((eqn.params[key] for key in _CALLS if key in eqn.params), None)
    return found if hasattr(found, "consts") else None


def _margins(operands: Any) -> Iterator[float]:
    one, other = (operands[0], operands[1] if len(operands) > 1 else jnp.zeros((), jnp.result_type(operands[0])))
    if not jnp.issubdtype(jnp.result_type(one), jnp.floating):
        return
    a, b = np.broadcast_arrays(np.asarray(one), np.asarray(other))
    unit = np.finfo(a.dtype).eps * np.maximum(np.maximum(np.abs(a), np.abs(b)), 1.0)
    if a.size:
        yield float((np.abs(a - b) / unit).min())
