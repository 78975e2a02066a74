"""How BrainTrace marks the uses of its weights: by the class of the primitives that compute them.

A module that uses such a primitive has imported BrainTrace, so this file does not.
"""

import sys
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from .._reader.flat import equations_of, flat
from .._reader.jaxprs import ClosedJaxpr, JaxprEqn, Var, inner, program
from .._reader.loops import rewritten_inside, uses_inside
from .._reader.marking import ELEMENT_WISE_USE, MIXING, NAMES, with_marks
from .._reader.marks import Marks
from .._reader.pieces import reads, spec_of_var, tainted_by
from .._reader.primitives import name_of
from .._reader.step import TracedStep
from .._reader.written_out import call_of

# The primitives of `braintrace.embedding`, for several indices and for one.
_LOOKUPS = ("etp_emb", "etp_emb_v")


def with_braintrace(step: TracedStep) -> TracedStep:
    """A step in which BrainTrace's operations are marked calls of plain equations; the same step where it has none.

    As plain equations they are mapped and differentiated by JAX; BrainTrace's own batching rule warns that it loses
    the mark.

    Args:
      step: as it was traced, with the marks of BrainScale.
    """
    if not any(_holds_operation(eqn) for eqn in inner(step.jaxpr)[0].eqns):
        return step
    opened = flat(step.jaxpr, step.marks.is_use)
    equations, consts = inner(opened)
    before, after = step.variables(equations)
    hidden = {var for path in step.of_kind("hidden") for var in after[path] if isinstance(var, Var)}

    def marked_call(eqn: JaxprEqn) -> list[JaxprEqn]:
        if not _is_lookup(eqn):
            return _plain(eqn)
        reached = tainted_by(equations.eqns, eqn.outvars, lambda other: _is_mixing(step, other))
        return _as_product(eqn) if reached & hidden else _plain(eqn)

    eqns = [part for eqn in equations.eqns for part in marked_call(eqn)]
    plain = program(equations.constvars, equations.invars, equations.outvars, eqns, equations)
    weights = [var for path in step.of_kind("param") for var in before[path]]
    data = [var for var in equations.invars if var not in set(weights)]
    marked = with_marks(ClosedJaxpr(plain, consts), weights, data, _is_use)
    uses = [eqn for eqn in inner(marked)[0].eqns if _holds_use(eqn)]
    used = [path for path in step.of_kind("param") if any(reads(eqn, set(before[path])) for eqn in uses)]
    return step._replace(jaxpr=marked, marks=BrainTraceMarks(step.marks, used))


class BrainTraceMarks(Marks):
    """The marks of a module with operations of BrainTrace, which may have operations of BrainScale too.

    Args:
      others: the marks of BrainScale.
      weights: the paths of the weights that an operation of BrainTrace reads.
    """

    def __init__(self, others: Marks, weights: Collection[str]) -> None:
        self._others, self._weights = others, frozenset(weights)

    def is_shared(self, path: str) -> bool:
        """Yes for BrainTrace: an operation reads a matrix and a bias, say, which may be two weights."""
        return path in self._weights or self._others.is_shared(path)

    def is_use(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is an operation of either package."""
        return _is_use(eqn) or self._others.is_use(eqn)

    def is_followed(self, eqn: JaxprEqn) -> bool:
        """Whether an operation is element-wise."""
        return name_of(eqn) == ELEMENT_WISE_USE or self._others.is_followed(eqn)

    def is_additive(self, eqn: JaxprEqn) -> bool:
        """No."""
        return self._others.is_additive(eqn)

    def why_untraced(self, path: str) -> str:
        """That no operation reads the weight."""
        reason = "" if path in self._weights else self._others.why_untraced(path)
        return f"no operation of BrainTrace reads it; {reason}" if reason else ""

    def gradient(self, path: str) -> str:
        """The smaller trace; BrainTrace has no hybrid algorithm."""
        return "adaptive" if path in self._weights else self._others.gradient(path)

    def derivative(self, path: str, x: jax.ShapeDtypeStruct | None, y: jax.ShapeDtypeStruct) -> ClosedJaxpr | None:
        """None: the equations are differentiated."""
        return None if path in self._weights else self._others.derivative(path, x, y)


def _plain(eqn: JaxprEqn) -> list[JaxprEqn]:
    """An operation of BrainTrace as a marked call of its own equations; any other equation with such calls inside."""
    if _is_operation(eqn):
        operation: Any = eqn.primitive
        return [call_of(lambda *arrays: operation.impl(*arrays, **eqn.params), eqn, _name(eqn))]
    return [rewritten_inside(eqn, _plain) if _holds_operation(eqn) else eqn]


def _as_product(eqn: JaxprEqn) -> list[JaxprEqn]:
    """A lookup in a table as the product of a row of zeros and a one with the table, which a trace can follow.

    In full precision the product is the row itself, on every device.
    """
    index, table = eqn.invars
    rows = spec_of_var(table).shape[0]
    made, chosen = equations_of(lambda index: _one_hot(index, rows, spec_of_var(table).dtype), index)
    function = eqn.params["weight_fn"]

    def product(chosen: jax.Array, table: jax.Array) -> jax.Array:
        return jnp.matmul(chosen, table if function is None else function(table), precision=jax.lax.Precision.HIGHEST)

    return [*made, call_of(product, eqn.replace(invars=[chosen, table]), MIXING)]


def _one_hot(index: jax.Array, rows: int, dtype: Any) -> jax.Array:
    """`[*index.shape, rows]`; an index below 0 counts from the end, and one out of range is NaN, as in a lookup."""
    place = jnp.where(index < 0, index + rows, index)[..., None]
    chosen = (place == jnp.arange(rows)).astype(dtype)
    return jnp.where((place >= 0) & (place < rows), chosen, jnp.nan)


def _is_lookup(eqn: JaxprEqn) -> bool:
    """Whether an equation is `braintrace.embedding`, whose input is the number of a row."""
    return _is_operation(eqn) and eqn.primitive.name in _LOOKUPS


def _is_mixing(step: TracedStep, eqn: JaxprEqn) -> bool:
    """Whether a trace ends at an equation, an operation of either package."""
    is_theirs = step.marks.is_use(eqn) and not step.marks.is_followed(eqn)
    return is_theirs or (_is_operation(eqn) and _name(eqn) == MIXING)


def _name(eqn: JaxprEqn) -> str:
    """The mark of an operation.

    BrainTrace follows a hidden state through `element_wise` alone, which takes no input besides its weight. It keeps
    a list of such primitives, and one of which operands are weights, in a private module. Neither is needed: the
    number of operands tells the first, and what an operand is made of the second (`with_marks`).
    """
    return ELEMENT_WISE_USE if len(eqn.invars) == 1 else MIXING


def _is_use(eqn: JaxprEqn) -> bool:
    return name_of(eqn) in NAMES


def _holds_use(eqn: JaxprEqn) -> bool:
    return _is_use(eqn) or any(True for _ in uses_inside(eqn, _is_use))


def _is_operation(eqn: JaxprEqn) -> bool:
    braintrace: Any = sys.modules.get("braintrace")
    return braintrace is not None and isinstance(eqn.primitive, braintrace.ETPPrimitive)


def _holds_operation(eqn: JaxprEqn) -> bool:
    return _is_operation(eqn) or any(True for _ in uses_inside(eqn, _is_operation))
