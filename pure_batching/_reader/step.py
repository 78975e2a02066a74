"""A step as a source traced it, and the flat step that is made of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal as OneOf, NamedTuple

import jax

from .._tree import Tree
from .jaxprs import ClosedJaxpr, JaxprEqn, Var
from .loops import OWN_DERIVATIVE, uses_inside
from .marks import Marks

Kind = OneOf["param", "hidden", "key", "other"]


class TracedStep(NamedTuple):
    """A step as a source traced it.

    Attributes:
      jaxpr: inputs, states -> outputs, states; closed.
      inputs: the specifications of the arguments.
      output: the specification of the result.
      states: the specification of each state by path, in the jaxpr's order.
      kinds: the duty of each state.
      widths: for each hidden state, how many states it holds along its last axis; 0 for one without an axis of its own.
      marks: how uses of weights are recognised.
      is_strict: whether a use has a trace only if each hidden element that it reaches is made of one of its own.
        Otherwise it has one wherever its result fits the hidden states, as in BrainScale, whose trace takes what is
        mixed on the way as if it were not.
      axis_name: the named axis along which the step reaches other samples, None where there is none.
      lead: how many axes of samples are in front of every array that belongs to a sample.
    """

    jaxpr: Any
    inputs: tuple[Tree, ...]
    output: Tree
    states: Mapping[str, Tree]
    kinds: Mapping[str, Kind]
    widths: Mapping[str, int]
    marks: Marks
    is_strict: bool
    axis_name: str | None
    lead: int = 0

    def variables(self, jaxpr: Any) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """The variables of each state's arrays before and after the step.

        Args:
          jaxpr: the step, open, with the inputs and outputs of its `jaxpr`.
        """
        ins = iter(jaxpr.invars[len(jax.tree.leaves(self.inputs)) :])
        outs = iter(jaxpr.outvars[len(jax.tree.leaves(self.output)) :])
        sizes = {path: len(jax.tree.leaves(spec)) for path, spec in self.states.items()}
        before = {path: [next(ins) for _ in range(size)] for path, size in sizes.items()}
        return before, {path: [next(outs) for _ in range(size)] for path, size in sizes.items()}

    def of_kind(self, kind: Kind) -> list[str]:
        """The paths of the states of a kind, sorted."""
        return sorted(path for path in self.states if self.kinds[path] == kind)


class FlatStep(NamedTuple):
    """A step whose calls are open and whose hidden states have an equation and a perturbation each.

    Attributes:
      traced: where it comes from.
      closed: inputs, states, perturbations -> outputs, states.
      eqns: the equations as a trace follows them, from which parts are cut out; their variables are those of `closed`.
      before, after: the variables of each state's arrays before and after the step.
      perturbations: by sorted path, the variable that is added to each new hidden state.
    """

    traced: TracedStep
    closed: ClosedJaxpr
    eqns: Sequence[JaxprEqn]
    before: Mapping[str, Sequence[Any]]
    after: Mapping[str, Sequence[Any]]
    perturbations: Mapping[str, Var]

    def hidden(self, path: str) -> tuple[Var, Var]:
        """The variable of a hidden state before and after the step."""
        (before,), (after,) = self.before[path], self.after[path]
        return before, after

    def is_use(self, eqn: JaxprEqn) -> bool:
        """Whether an equation uses a weight: by a mark, or by one inside a function with a derivative of its own."""
        has_own_derivative = eqn.primitive.name in OWN_DERIVATIVE
        return self.traced.marks.is_use(eqn) or (has_own_derivative and self._mixes_inside(eqn))

    def is_blocked(self, eqn: JaxprEqn) -> bool:
        """Whether no trace follows an equation: it uses a weight, or its derivative is zero by request."""
        is_mixing = self.is_use(eqn) and not self.traced.marks.is_followed(eqn)
        return is_mixing or eqn.primitive.name == "stop_gradient"

    def _mixes_inside(self, eqn: JaxprEqn) -> bool:
        return any(True for _ in uses_inside(eqn, self.traced.marks.is_use))
