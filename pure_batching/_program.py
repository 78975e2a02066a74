"""Program: one captured step as plain data and one pure function.

Shape legend, used in every module: `T` time, `B` samples, `ns` hidden states of a group, `varshape` the shape of one of
them, `...` either nothing or `B`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal as OneOf, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._tree import Tree

Params = dict[str, Tree]


class Perturbation(NamedTuple):
    """Zeros whose gradients a learning rule needs; they are added to variables of a step, mantissas only.

    Attributes:
      hidden: to each new hidden state, `[..., *shape]` by path.
      old: to the old hidden states that the output reads past all new ones, by path; what depends on a new hidden state
        does not see it. Empty where a rule leaves this out.
      products: to the products of weights that the output reads past all hidden states, by relation; likewise.
    """

    hidden: Mapping[str, Any]
    old: Mapping[str, Any]
    products: Mapping[str, Any]


class Signal(NamedTuple):
    """The derivatives of a step's loss that a learning rule multiplies with its traces.

    Attributes:
      new: `dloss/dh[t]` of each group, `[..., *varshape, ns]`.
      old: `dloss/dh[t-1]` at fixed `h[t]`, of the groups whose old states the output reads.
      products: `dloss/dy` at fixed `h[t]`, `[..., *y.shape]`, by relation, of the products that the output reads.
    """

    new: dict[str, jax.Array]
    old: dict[str, jax.Array]
    products: dict[str, jax.Array]


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
    """The derivatives of one step, mantissas only, in the dtype of traces.

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
      widths: how many states each path holds along its last axis; 0 stands for one state without an axis of its own.
      dtypes: of the states.
      varshape: the shape of one state of one sample.
      dtype: of the states side by side, and of their traces.
    """

    name: str
    paths: tuple[str, ...]
    widths: tuple[int, ...]
    dtypes: tuple[Any, ...]
    varshape: tuple[int, ...]
    dtype: Any

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
        columns = [x.astype(self.dtype) for x in columns]
        return columns[0] if len(columns) == 1 else jnp.concatenate(columns, -1)

    def part(self, joined: jax.Array) -> list[jax.Array]:
        """The inverse of `join`."""
        parts, start = [], 0
        for width, dtype in zip(self.widths, self.dtypes, strict=True):
            piece = joined[..., start : start + max(width, 1)].astype(dtype)
            parts.append(piece if width else piece[..., 0])
            start += max(width, 1)
        return parts


@dataclasses.dataclass(frozen=True, eq=False)
class Scattered:
    """An axis of `y` whose elements are sums over elements of a weight's array, each of which is in one sum.

    Attributes:
      axis: of the array.
      places: `[size of axis]`, for each index along it the index along the axis of `y`.
    """

    axis: int
    places: np.ndarray


# For each axis of `y`, the axis of a weight's array whose elements reach one index of it only: the same, or that of a
# table. None for an axis along which an element of the array spreads.
Axes = tuple[int | Scattered | None, ...]


class WeightLeaf(NamedTuple):
    """One array of a weight.

    Attributes:
      name: its name within the weight.
      spec: its shape, and the dtype of its trace.
      axes: for each axis of `y`, the axis of the array that it is aligned with.
      is_factor: whether `y` is `x @ array` plus terms that do not depend on the array.
    """

    name: str
    spec: jax.ShapeDtypeStruct
    axes: Axes
    is_factor: bool


class WeightInput(NamedTuple):
    """What enters a weight operation.

    Attributes:
      name: the first relation that reads it.
      spec: the shape and dtype of one sample's; its trace has the same.
    """

    name: str
    spec: jax.ShapeDtypeStruct


class Operation(NamedTuple):
    """The equations of one use of a weight, `(x, *arrays of w) -> y` of one sample, as data.

    Attributes:
      jaxpr: a closed jaxpr from `(x, *arrays of w, *arrays of held weights)`, without `x` for an element-wise weight,
        to `y`, in the dtype of traces.
      of_places: the same with convolutions as products, whose derivative at each place of `y` alone is a fast program.
      shape: of the hidden states that `y` reaches, to which `y` is broadcast.
      derivative: a closed jaxpr `(x, dy, *arrays of w) -> dw` of the user's own; None where the equations are
        differentiated.
    """

    jaxpr: Any
    of_places: Any
    shape: tuple[int, ...]
    derivative: Any


class Link(NamedTuple):
    """The way from a weight's output to one hidden group.

    Attributes:
      name: of its trace.
      group: the hidden states that it reaches.
      places: for each element of `y` the one element of the group's states that it reaches, by its index in the
        flattened states, `[*y.shape]`, where the elements of `y` are arranged in another way: the product of a cell is
        split into gates, say. An element that reaches none stands at any index, since its `dh/dy` is zero. None where
        `y` has the states' own shape.
    """

    name: str
    group: Group
    places: np.ndarray | None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(*y.shape, ns)`."""
        return self.group.shape if self.places is None else (*self.places.shape, self.group.num_states)

    def seen(self, array: jax.Array, tail: int = 1) -> jax.Array:
        """What each element of `y` sees of an array over hidden elements.

        Args:
          array: `[..., *varshape, *last]`.
          tail: how many axes are last.

        Returns:
          `[..., *y.shape, *last]`.
        """
        if self.places is None:
            return array
        last = array.shape[array.ndim - tail :]
        lead = array.shape[: array.ndim - tail - len(self.group.varshape)]
        found = array.reshape(*lead, -1, *last).take(self.places.reshape(-1), axis=len(lead), mode="clip")
        return found.reshape(*lead, *self.places.shape, *last)


@dataclasses.dataclass(frozen=True, eq=False)
class Relation:
    """One use of one weight whose output reaches hidden states: `x -> y = op(x, w) -> h`.

    Attributes:
      name: the weight's path, with the number of the use where there are several.
      weight: the weight's path.
      held: the paths of other weights that the operation reads; each has a relation of its own for this use.
      x: the input, None for element-wise weights.
      own: the specification of the operation's own result.
      y: the same, broadcast to the shape of the hidden states that it reaches.
      op: the equations from `x` and the weight to `y`.
      leaves: the arrays of the weight.
      gradient: `"full"`, `"approx"` or `"adaptive"`, what the module asks of a hybrid algorithm.
      links: the hidden groups that `y` reaches.
    """

    name: str
    weight: str
    held: tuple[str, ...]
    x: WeightInput | None
    own: jax.ShapeDtypeStruct
    y: jax.ShapeDtypeStruct
    op: Operation
    leaves: tuple[WeightLeaf, ...]
    gradient: str
    links: tuple[Link, ...]

    def whole(self, gradient: jax.Array) -> jax.Array:
        """The gradient of the operation's own result, as one of `y`, whose broadcast sums up to it."""
        rank = len(self.own.shape)
        lead, shape = gradient.shape[: gradient.ndim - rank], self.y.shape
        aligned = gradient.reshape(*lead, *(1 for _ in range(len(shape) - rank)), *self.own.shape)
        copies = math.prod(shape) // max(math.prod(self.own.shape), 1)
        whole = jnp.broadcast_to(aligned, (*lead, *shape)).astype(self.links[0].group.dtype)
        return whole / copies if copies > 1 else whole

    def spread(self, leaf: WeightLeaf) -> tuple[int, ...]:
        """The axes of `y` along which an element of a weight's array reaches more than one element."""
        sizes = zip(leaf.axes, self.y.shape, strict=True)
        return tuple(place for place, (axis, size) in enumerate(sizes) if axis is None and size != 1)


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
    """

    weight: str
    way: Way
    relation: str
    groups: tuple[str, ...]
    where: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """One step as a pure function, and what eligibility traces need to know of it.

    It holds no State, no module and no closure over either.

    Attributes:
      inputs, output: specifications of the step's arguments and result.
      params: specifications of the trainable values.
      states: specifications of the carried states.
      direct: the weights trained by the ordinary gradient of the step, because some use of them has no trace.
      groups, relations: what eligibility traces are made of.
      derivatives: specifications of the step's derivatives.
      uses: how each weight learns, in the order of paths and, for one weight, of the step's equations.
      past: what the output reads past all new hidden states: specifications of old states, by path, and of products,
        by relation.
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


def _joined(groups: Iterable[Group], states: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {group.name: group.join([states[path] for path in group.paths]) for group in groups}


def _array(tree: Tree) -> Any:
    (leaf,) = jax.tree.leaves(tree)
    return leaf
