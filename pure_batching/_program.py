"""Program: one captured step as plain data and one pure function.

Shape legend, used in every module: `T` time, `B` samples, `ns` hidden states of a group, `varshape` the shape of one of
them, `...` either nothing or `B`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal as OneOf, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from ._relation import Group, Link, Relation, WeightInput
from ._tree import Tree

Params = dict[str, Tree]


class Perturbation(NamedTuple):
    """Zeros whose gradients a learning rule needs; they are added to variables of a step, mantissas only.

    Attributes:
      hidden: to each new hidden state, `[..., *shape]` by path.
      old: to the old hidden states that the output reads past all new ones, by path; what depends on a new hidden state
        does not see it. Empty where a rule leaves this out.
      products: to the products of weights that the output reads past all hidden states, by the end of relations;
        likewise.
    """

    hidden: Mapping[str, Any]
    old: Mapping[str, Any]
    products: Mapping[str, Any]


class Signal(NamedTuple):
    """The derivatives of a step's loss that a learning rule multiplies with its traces.

    Attributes:
      new: `dloss/dh[t]` of each group, `[..., *varshape, ns]`.
      old: `dloss/dh[t-1]` at fixed `h[t]`, of the groups whose old states the output reads.
      products: `dloss/dy` at fixed `h[t]`, `[..., *y.shape]`, of the products that the output reads, by the end of
        relations.
      other: the loss's derivative by the states that are not hidden, by path, None for integers; of the states before a
        window, for a rule with credit "window"; None otherwise.
    """

    new: dict[str, jax.Array]
    old: dict[str, jax.Array]
    products: dict[str, jax.Array]
    other: Mapping[str, Any] | None = None


# `(output, target) -> []`, of one sample at one step.
Loss = Callable[[Tree, Tree], jax.Array]


class States(NamedTuple):
    """What a module carries from one step to the next, by path.

    Everything but `shared` belongs to one sample. `shared` holds the states that no input, weight, hidden state or
    random key can reach (a delay's write pointer, a step counter): they are the same for every sample of a batch, until
    a mask or a reset moves samples apart; from then on they are in `other`.
    """

    hidden: Mapping[str, Tree]
    other: Mapping[str, Tree]
    keys: Mapping[str, jax.Array]
    shared: Mapping[str, Tree]


class Jacobians(NamedTuple):
    """The derivatives of one step, mantissas only, in the dtype of traces.

    Attributes:
      xs: what enters each weight operation, `[..., *x.shape]`, by the name of the first relation that reads it.
      dfs: `dh/dy` by the `df` of a link, `[..., *varshape, ns]`, or `[..., *y.shape, ns]` where a link has places.
      diagonals: `dh[t]/dh[t-1]` of each group, element by element, `[..., *varshape, ns, ns]`.
      within: `dh/dperturbation` of each group whose states feed each other within a step, shaped as `diagonals`.
    """

    xs: dict[str, jax.Array]
    dfs: dict[str, jax.Array]
    diagonals: dict[str, jax.Array]
    within: dict[str, jax.Array]


class Step(NamedTuple):
    """One executed step."""

    output: Tree
    states: States
    jacobians: Jacobians


Way = OneOf["trace", "gradient of the step", "none"]


class Use(NamedTuple):
    """How a weight learns where the step reads it.

    Attributes:
      weight: the weight's path.
      way: `"trace"`; `"gradient of the step"`, which sees what the weight does within one step; or `"none"`.
      relation: the name of the relation that has the trace, "" where there is none.
      groups: the hidden groups that the trace is of, by name.
      where: the source line of the use, "" where it is not known.
      reason: why there is no trace, "" where there is one.
      mixed: what lies between the weight's output and the hidden states that its trace takes no account of; "" where
        there is no such thing, as in the program of a complete rule.
    """

    weight: str
    way: Way
    relation: str
    groups: tuple[str, ...]
    where: str
    reason: str
    mixed: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One step as a pure function, and what eligibility traces need to know of it.

    It holds no State, no module and no closure over either.

    Attributes:
      inputs: specifications of the step's arguments.
      output: that of its result.
      params: specifications of the trainable values.
      states: specifications of the carried states.
      direct: the weights trained by the ordinary gradient of the step, because some use of them has no trace.
      groups: the hidden groups, by which eligibility traces are made.
      relations: the uses of weights that have a trace.
      derivatives: specifications of the step's derivatives.
      uses: how each weight learns, in the order of paths and, for one weight, of the step's equations.
      past: what the output reads past all new hidden states: specifications of old states, by path, and of products,
        by relation.
      ordered: the first callback of the step that keeps its order, as an error calls it; "" where there is none.
      unmapped: the first of them that cannot be called for several samples at once; "" likewise.
      axis_name: the named axis along which the step reaches other samples, along which `execute` has to be mapped;
        None where there is no such axis.
      execute: `(params, states, inputs, perturbation) -> Step`. The gradient of the perturbation is the learning
        signal. No gradient flows through the Jacobians.
    """

    inputs: tuple[Tree, ...]
    output: Tree
    params: Params
    states: States
    direct: tuple[str, ...]
    groups: tuple[Group, ...]
    relations: tuple[Relation, ...]
    derivatives: Jacobians
    uses: tuple[Use, ...]
    past: Perturbation
    ordered: str
    unmapped: str
    axis_name: str | None
    execute: Callable[[Params, States, tuple[Tree, ...], Perturbation], Step]

    def zero_perturbation(self, *, is_complete: bool = False) -> Perturbation:
        """A perturbation that changes nothing.

        Args:
          is_complete: whether it has what the output reads past the new hidden states.
        """
        hidden = {path: _array(spec) for path, spec in self.states.hidden.items()}
        specs = self.past._replace(hidden=hidden) if is_complete else Perturbation(hidden, {}, {})
        return jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs)

    def links(self) -> list[Link]:
        """The links of all relations."""
        return [link for relation in self.relations for link in relation.links]

    def weight_inputs(self) -> dict[str, WeightInput]:
        """What enters weight operations, each once, by name."""
        return {relation.x.name: relation.x for relation in self.relations if relation.x is not None}

    def signal(self, gradients: Perturbation) -> Signal:
        """The learning signal of each group from the gradient of a perturbation."""
        products = {r.name: r.whole(gradients.products[r.name]) for r in self.relations if r.name in gradients.products}
        zeros = jax.tree.map(jnp.zeros_like, gradients.hidden)
        read = [group for group in self.groups if any(path in gradients.old for path in group.paths)]
        old = _joined(read, {**zeros, **gradients.old})
        return Signal(_joined(self.groups, gradients.hidden), old, products)


class HasProgram(Protocol):
    """What has the program of one sample, such as a learner."""

    @property
    def program(self) -> Program:
        """The program."""
        ...


def _joined(groups: Iterable[Group], states: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {group.name: group.join([states[path] for path in group.paths]) for group in groups}


def _array(tree: Tree) -> Any:
    (leaf,) = jax.tree.leaves(tree)
    return leaf
