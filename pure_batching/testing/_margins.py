"""The margin of a step: how close its numbers came to the other side of a comparison, such as a spike's threshold."""

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._learning.carry import Carry
from .._learning.learner import Learner
from .._program import Params
from .._reader.jaxprs import ClosedJaxpr, JaxprEqn, Literal, inner
from .._reader.lines import place
from .._reader.primitives import called
from .._tree import Tree
from ._case import Case
from ._law import LawViolation
from ._stepped import begun_anew, flags_of

_COMPARISONS = frozenset(["ge", "gt", "le", "lt", "sign"])

# A reordered sum moves a number by some units in the last place of the numbers it is a sum of.
ROUNDINGS = 256


class Comparison(NamedTuple):
    """A comparison `a >= b` that a step made.

    Attributes:
      margin: the smallest |a - b| of its entries, in units of rounding.
      eqn: where it was made.
    """

    margin: float
    eqn: JaxprEqn


class ClosestComparison(NamedTuple):
    """The closest comparison, and the step and the sample that made it."""

    comparison: Comparison
    step: int
    sample: int

    def __str__(self) -> str:
        line = place(self.comparison.eqn)
        return (
            f"at step {self.step} of sample {self.sample}, a comparison such as a spike's threshold was decided by "
            f"{self.comparison.margin:.1f} units of rounding{line and f' in {line}'}"
        )


def note_of(violation: LawViolation, case: Case) -> str | None:
    """Explain a violation that may stem from a comparison too close for the order of a sum to decide.

    The comparison is one of the sample that differs, or of any where the difference belongs to none, and comes no later
    than the difference. None where there is no such comparison, where two results must have the same bits, so that
    nothing may flip, and where samples reach each other, so that none can be followed alone.
    """
    difference = violation.difference
    if difference.kind == "nothing" or case.subject.axis_name is not None:
        return None
    last = case.data.steps - 1 if difference.first_step is None else difference.first_step
    samples = [difference.place["sample"]] if "sample" in difference.place else range(case.data.samples)
    moments = [moment for i in samples for moment in _moments(case, i, violation.flags) if moment.step <= last]
    closest = min(moments, key=lambda moment: moment.comparison.margin, default=None)
    if closest is None or closest.comparison.margin > ROUNDINGS:
        return None
    return f"{closest}: the order of a sum may flip it, which is no fault of a strategy"


def _moments(case: Case, sample: int, flags: Any) -> Iterator[ClosestComparison]:
    """Find the closest comparison of each step of a sample that counts and compares anything."""
    learner, carry = case.subject.learner, case.subject.learner.init(jax.random.fold_in(case.key, sample))
    for t, (counts, starts_anew) in enumerate(zip(*flags_of(flags, sample, case.data.steps), strict=True)):
        carry = begun_anew(case, sample, t, carry) if starts_anew else carry
        if counts:
            inputs = jax.tree.map(lambda x, t=t: x[t, sample], case.data.inputs)
            made = _comparisons(learner, case.params, carry, inputs)
            yield from (ClosestComparison(one, t, sample) for one in sorted(made, key=lambda one: one.margin)[:1])
            carry, _ = learner.step(case.params, carry, *inputs)


def smallest_margin(learner: Learner, params: Params, carry: Carry, inputs: tuple[Tree, ...]) -> float:
    """Find the smallest |a - b| of the comparisons `a >= b` of one step of one sample, in units of rounding.

    Those inside loops and branches of JAX (`scan`, `while_loop`, `cond`) are not looked at.

    A number below `ROUNDINGS` means that the order of a sum may decide the comparison: a spike that one strategy
    fires and another does not. Infinite where the step compares nothing.

    Args:
      learner: of one sample.
      params: trainable values by path.
      carry: before the step.
      inputs: of the step.
    """
    margins = (one.margin for one in _comparisons(learner, params, carry, inputs))
    return min(margins, default=float("inf"))


def _comparisons(learner: Learner, params: Params, carry: Carry, inputs: tuple[Tree, ...]) -> Iterator[Comparison]:
    """Find every comparison of floating-point numbers in one step of one sample."""
    closed = jax.make_jaxpr(learner.step)(params, carry, *inputs)
    yield from _walk(closed, jax.tree.leaves((params, carry, *inputs)))


def _walk(closed: ClosedJaxpr, arguments: Sequence[Any]) -> Generator[Comparison, None, list[Any]]:
    """Evaluate equation by equation, into calls too, and return the results; a loop or branch is one equation."""
    jaxpr, consts = inner(closed)
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    for eqn in jaxpr.eqns:
        given = [var.val if isinstance(var, Literal) else values[var] for var in eqn.invars]
        if eqn.primitive.name in _COMPARISONS:
            yield from (Comparison(margin, eqn) for margin in _margins(given))
        body = called(eqn)
        if body is None:
            results = eqn.primitive.bind(*given, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        else:
            results = yield from _walk(body, given)
        values.update(zip(eqn.outvars, results, strict=True))
    return [var.val if isinstance(var, Literal) else values[var] for var in jaxpr.outvars]


def _margins(operands: Any) -> Iterator[float]:
    one, other = (operands[0], operands[1] if len(operands) > 1 else jnp.zeros((), jnp.result_type(operands[0])))
    if not jnp.issubdtype(jnp.result_type(one), jnp.floating):
        return
    a, b = np.broadcast_arrays(np.asarray(one), np.asarray(other))
    unit = np.finfo(a.dtype).eps * np.maximum(np.maximum(np.abs(a), np.abs(b)), 1.0)
    if a.size:
        yield float((np.abs(a - b) / unit).min())
