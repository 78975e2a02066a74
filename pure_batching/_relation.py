"""Relation: one use of one weight as data, and the hidden groups that it reaches.

The shape legend is that of `_program.py`.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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
      df: of its `dh/dy`, which it shares with the links of relations that have the same `end`.
      group: the hidden states that it reaches.
      places: for each element of `y` the one element of the group's states that it reaches, by its index in the
        flattened states, `[*y.shape]`, where the elements of `y` are arranged in another way: the product of a cell is
        split into gates, say. An element that reaches none stands at any index, since its `dh/dy` is zero. None where
        `y` has the states' own shape.
    """

    name: str
    df: str
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
      end: the name of the first relation with the same result but for added terms of weights, such as a product and the
        bias that is added to it: what follows has the same derivatives by both.
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
    end: str
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
