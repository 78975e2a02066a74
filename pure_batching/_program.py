"""Program: a captured single step with its state trees made explicit, its Jacobians and its learning signal.

Shape legend, used in every module: `T` time, `B` samples, `ns` hidden states of a group, `varshape` the shape of one of
them, `...` either nothing or `B`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._reader.pieces import Slice
from ._tree import Tree, strong

Params = dict[str, Tree]
Perturbation = dict[str, jax.Array]

# `(output, target) -> []`, of one sample at one step.
Loss = Callable[[Tree, Tree], jax.Array]


class States(NamedTuple):
    """What a module carries from one step to the next, by path.

    Everything but `shared` belongs to one sample. `shared` holds the states that no input, hidden state or random key
    can reach (a delay's write pointer, a step counter): they are the same for every sample of a batch, until a mask or
    a reset moves samples apart; from then on they are in `other`.
    """

    hidden: Mapping[str, Tree]
    other: Mapping[str, Tree]
    keys: Mapping[str, jax.Array]
    shared: Mapping[str, Tree]


class Jacobians(NamedTuple):
    """The derivatives of one step, mantissas only.

    Attributes:
      xs: what enters each weight operation, `[..., *x.shape]`, by the name of the first relation that reads it.
      dfs: `dh/dy` of each relation and group, `[..., *varshape, ns]`.
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


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Hidden states that depend on each other from one step to the next.

    Attributes:
      name: the paths, joined.
      paths: the hidden states, sorted.
      widths: how many states each path holds; 0 stands for one state without an axis of its own.
      varshape: the shape of one state of one sample.
      transition: old hidden states -> new hidden states.
      within: perturbations -> new hidden states, None where the states do not feed each other within a step.
    """

    name: str
    paths: tuple[str, ...]
    widths: tuple[int, ...]
    varshape: tuple[int, ...]
    dtype: Any
    transition: Slice
    within: Slice | None

    @property
    def num_states(self) -> int:
        """`ns`."""
        return sum(max(width, 1) for width in self.widths)

    @property
    def shape(self) -> tuple[int, ...]:
        """`(*varshape, ns)`."""
        return (*self.varshape, self.num_states)

    def join(self, states: Any) -> jax.Array:
        """States of the group side by side, `[..., *varshape, ns]`."""
        columns = [x if width else jnp.expand_dims(x, -1) for x, width in zip(states, self.widths, strict=True)]
        return columns[0] if len(columns) == 1 else jnp.concatenate(columns, -1)

    def part(self, joined: jax.Array) -> list[jax.Array]:
        """The inverse of `join`."""
        parts, start = [], 0
        for width in self.widths:
            piece = joined[..., start : start + max(width, 1)]
            parts.append(piece if width else piece[..., 0])
            start += max(width, 1)
        return parts


class WeightLeaf(NamedTuple):
    """One array of a weight.

    Attributes:
      name: its name within the weight.
      spec: its shape and dtype.
      axes: for each axis of `y`, the axis of the array that it is aligned with, or None if it is of size one; None
        where an element of the array reaches more than one element of `y`.
      is_factor: whether `y` is `x @ array` and what does not depend on the array.
    """

    name: str
    spec: jax.ShapeDtypeStruct
    axes: tuple[int | None, ...] | None
    is_factor: bool


class WeightInput(NamedTuple):
    """What enters a weight operation: the name of the first relation that reads it, its specification, its position."""

    name: str
    spec: jax.ShapeDtypeStruct
    temporary: int


@dataclasses.dataclass(frozen=True, eq=False)
class Relation:
    """One use of one weight whose output reaches hidden states: `x -> y = op(x, w) -> h`.

    Attributes:
      name: the weight's path, with the number of the use where there are several.
      weight: the weight's path.
      x: the input, None for element-wise weights.
      y: the specification of the output, which has the shape of the hidden states that it reaches.
      op: `(x, *mantissas of w) -> y` for one sample.
      leaves: the arrays of the weight.
      gradient: `"full"`, `"approx"` or `"adaptive"`, what the module asks of a hybrid algorithm.
      links: the hidden groups that `y` reaches.
    """

    name: str
    weight: str
    x: WeightInput | None
    y: jax.ShapeDtypeStruct
    op: Callable[..., jax.Array]
    leaves: tuple[WeightLeaf, ...]
    gradient: str
    links: tuple["Link", ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Link:
    """The way from a weight's output to one hidden group: the name of its trace, the group, and `y -> h`."""

    name: str
    group: Group
    to_hidden: Slice


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One step of a module as a pure function; it owns no State and no BrainScale object.

    Attributes:
      inputs, output: specifications of the step's arguments and result.
      params: specifications of the trainable values.
      states: specifications of the carried states.
      direct: the weights with an ordinary within-step gradient: those that reach no hidden state, or not only.
      groups, relations: what eligibility traces are made of.
      step: the step on flat lists of arrays.
      order: the paths of the values that `step` takes and returns, in its order.
      axis_name: the named axis along which the step reaches other samples; `execute` has to be mapped along it. None
        where there is no such axis.
    """

    inputs: tuple[Tree, ...]
    output: Tree
    params: Params
    states: States
    direct: tuple[str, ...]
    groups: tuple[Group, ...]
    relations: tuple[Relation, ...]
    step: Callable[..., list[jax.Array]]
    order: tuple[str, ...]
    axis_name: str | None = None

    def execute(self, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation) -> Step:
        """One step.

        Args:
          params: trainable values by path.
          states: what the last step handed on.
          inputs: the step's arguments.
          perturbation: what is added to each new hidden state, mantissas; its gradient is the learning signal.

        Returns:
          the output, the new states, and the Jacobians, through which no gradient flows.
        """
        values = {**params, **states.hidden, **states.other, **states.keys, **states.shared}
        outs = self.step(
            *jax.tree.leaves(inputs),
            *jax.tree.leaves([values[path] for path in self.order]),
            *(perturbation[path] for path in self.states.hidden),
        )
        output, outs = _take(self.output, outs)
        new = {}
        specs = {**self.params, **_merged(self.states)}
        for path in self.order:
            new[path], outs = _take(specs[path], outs)
        after = States(*({path: new[path] for path in field} for field in states))
        return Step(output, after, self._jacobians(jax.lax.stop_gradient(outs)))

    def zero_perturbation(self) -> Perturbation:
        """A perturbation that changes nothing."""
        return {path: jnp.zeros(_array(spec).shape, _array(spec).dtype) for path, spec in self.states.hidden.items()}

    def links(self) -> list[Link]:
        """The links of all relations."""
        return [link for relation in self.relations for link in relation.links]

    def weight_inputs(self) -> dict[str, WeightInput]:
        """What enters weight operations, each once, by name."""
        return {relation.x.name: relation.x for relation in self.relations if relation.x is not None}

    def signal(self, gradients: Perturbation) -> dict[str, jax.Array]:
        """The learning signal `dloss/dh` of each group, `[..., *varshape, ns]`, from the perturbation's gradient."""
        return {group.name: group.join([gradients[path] for path in group.paths]) for group in self.groups}

    def _jacobians(self, temporaries: list[jax.Array]) -> Jacobians:
        return Jacobians(
            xs={name: temporaries[x.temporary].astype(x.spec.dtype) for name, x in self.weight_inputs().items()},
            dfs={link.name: _df(link, temporaries) for link in self.links()},
            diagonals={group.name: _diagonal(group.transition, group, temporaries) for group in self.groups},
            within={g.name: _diagonal(g.within, g, temporaries) for g in self.groups if g.within is not None},
        )


def _df(link: Link, temporaries: list[jax.Array]) -> jax.Array:
    """`dh/dy` as a product with ones: exact where `y -> h` is element-wise."""
    fun, (y,) = link.to_hidden.at(temporaries)
    return jax.jvp(lambda value: link.group.join(fun(value)), (y,), (jnp.ones_like(y),))[1]


def _diagonal(piece: Slice, group: Group, temporaries: list[jax.Array]) -> jax.Array:
    """`dnew[i]/dold[j]`, `[..., *varshape, i, j]`: products with ones, exact where elements do not mix."""
    fun, old = piece.at(temporaries)
    new, pullback = jax.vjp(lambda joined: group.join(fun(*group.part(joined))), group.join(old))
    ns = group.num_states
    rows = jnp.broadcast_to(jnp.eye(ns, dtype=new.dtype), (*new.shape, ns))
    return jax.vmap(lambda row: pullback(row)[0], in_axes=-2, out_axes=-2)(rows)


def _take(spec: Tree, arrays: list[jax.Array]) -> tuple[Tree, list[jax.Array]]:
    leaves, treedef = jax.tree.flatten(spec)
    tree = jax.tree.unflatten(treedef, arrays[: len(leaves)])
    return strong(tree, spec), arrays[len(leaves) :]


def _merged(states: States) -> dict[str, Tree]:
    return {path: spec for field in states for path, spec in field.items()}


def _array(tree: Tree) -> Any:
    (leaf,) = jax.tree.leaves(tree)
    return leaf
