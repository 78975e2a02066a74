"""Samples on several devices, whose arrays say so in their type.

Under automatic axes of a mesh, the default of `jax.sharding.Mesh`, XLA lays out whatever is computed. Under explicit
axes, the default of `jax.make_mesh`, each array's type names its layout, and a function would have to name that of
everything it makes. So it is run under automatic axes, and its results get the layout of the samples that it was given.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from .._strategies.base import SUMMED, SampleAxes, Strategy
from .._tree import Tree


def under_automatic_axes(function: Callable[..., Any], axes: SampleAxes, strategy: Strategy) -> Callable[..., Any]:
    """The same function, for arguments under explicit axes too, and inside `jax.set_mesh` of such a mesh."""

    def run(*args: Any) -> Any:
        mesh = _explicit_mesh(args) or _with_explicit_axes(jax.sharding.get_abstract_mesh())
        if mesh is None:
            return function(*args)
        names = strategy.axis or _names(args, axes.given)
        layouts = _map_axes(lambda axis: _layout(axis, names), axes.made)
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.sharding.auto_axes(function, out_sharding=layouts)(*args)

    return run


def on_own_mesh(strategy: Strategy) -> AbstractContextManager[Any]:
    """What a function runs in that has no argument with samples, which would name their places.

    Inside `jax.jit` it is the mesh of the strategy, if its axes are explicit: the type of a fresh carry then names the
    places that a step names too. Elsewhere a fresh carry lies there without a type that says so, since JAX takes
    derivatives of arrays with such types inside `jax.jit` alone.
    """
    mesh = None if strategy.own_mesh is None else _with_explicit_axes(strategy.own_mesh.abstract_mesh)
    is_inside_jit = isinstance(jnp.zeros(()), Tracer)
    if mesh is None or not is_inside_jit or not jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def _explicit_mesh(args: Tree) -> AbstractMesh | None:
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(args)]
    return next((mesh for mesh in meshes if _with_explicit_axes(mesh)), None)


def _with_explicit_axes(mesh: AbstractMesh) -> AbstractMesh | None:
    """The mesh, if the types of arrays name some of its axes."""
    return mesh if AxisType.Explicit in mesh.axis_types else None


def _names(args: Any, axes: Any) -> Any:
    """The axes of the mesh along which the samples lie; None where they lie on each device."""
    found: list[Any] = []

    def look(axis: int | None, part: Tree) -> None:
        if axis is not None:
            found.extend(name for leaf in jax.tree.leaves(part) for name in jax.typeof(leaf).sharding.spec[axis:][:1])

    for of_argument, argument in zip(axes, args, strict=True):
        if argument is not None:
            jax.tree.map(look, of_argument, argument, is_leaf=_is_none)
    return next((names for names in found if names is not None), None)


def _layout(axis: Any, names: Any) -> PartitionSpec:
    return PartitionSpec() if axis is None or axis == SUMMED else PartitionSpec(*(None for _ in range(axis)), names)


def _map_axes(fun: Callable[[Any], Any], axes: Any) -> Any:
    return jax.tree.map(fun, axes, is_leaf=_is_none)


def _is_none(node: Any) -> bool:
    return node is None
