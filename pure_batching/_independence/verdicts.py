"""The verdict on each leaf that a batched step computes."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal as OneOf

import jax

from .._reader.jaxprs import JaxprEqn, Literal
from .._reader.lines import place
from .._tree import Tree, named_leaves
from .values import Along, Lost, Value
from .walk import follow

Kind = OneOf["independent", "coupled", "undecided"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the samples of one leaf `[B, ...]` are independent, and why.

    Attributes:
      kind: whether its row of a sample depends on that sample alone.
      how: "proved" by the equations, "probed" by numbers, or "" while it is undecided.
      primitive: the operation that mixed the samples, or that cannot be followed; "" where there is none.
      where: the source line of that operation, such as `net.py:33 (Net.update)`; "" where it is not known.
    """

    kind: Kind
    how: OneOf["proved", "probed", ""]
    primitive: str = ""
    where: str = ""

    @property
    def cause(self) -> str:
        """The name of the operation and its source line."""
        return f"{self.primitive} at {self.where or 'an unknown line'}"


def verdicts(function: Callable[..., Tree], arguments: Sequence[Tree], values: Sequence[Value]) -> dict[str, Verdict]:
    """Judge each leaf that a function of batched arrays returns, by name.

    Args:
      function: a pure function.
      arguments: the specifications of its arguments.
      values: where the samples lie in each array of the arguments.
    """
    closed, output = jax.make_jaxpr(function, return_shape=True)(*arguments)
    makers = {var: eqn for eqn in closed.jaxpr.eqns for var in eqn.outvars}
    last = [None if isinstance(var, Literal) else makers.get(var) for var in closed.jaxpr.outvars]
    names = [name for name, _ in leaves_of(output)]
    found = zip(names, follow(closed, values), last, strict=True)
    return {name: _verdict(value, eqn, None if is_shared(name) else Along(0)) for name, value, eqn in found}


def leaves_of(step: Tree) -> list[tuple[str, Tree]]:
    """List the leaves of a step under the names of verdicts: `output`, `hidden['neu.V']`."""
    return [(name.removeprefix(".").removeprefix("states."), leaf) for name, leaf in named_leaves(step, "")]


def is_shared(name: str) -> bool:
    """Whether a leaf is the same for all samples."""
    return name.startswith("shared[")


def lost(verdict: Verdict) -> Value:
    """Turn a verdict on a leaf back into facts about its value, for a walk that goes on from there."""
    if verdict.kind == "independent":
        return Along(0)
    return Lost(verdict.kind == "coupled", verdict.primitive, verdict.where)


def _verdict(value: Value, eqn: JaxprEqn | None, allowed: Value) -> Verdict:
    """Judge a leaf: it may hold the samples along its first axis (`allowed`), and a shared one nowhere."""
    if value is None or value == allowed:
        return Verdict("independent", "proved")
    if isinstance(value, Lost):
        kind, how = ("coupled", "proved") if value.is_coupled else ("undecided", "")
        return Verdict(kind, how, value.primitive, value.where)
    name, line = ("the step's arguments", "") if eqn is None else (eqn.primitive.name, place(eqn))
    return Verdict("coupled", "proved", name, line)
