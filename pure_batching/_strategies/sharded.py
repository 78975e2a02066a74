"""`Sharded`: the samples on several devices, each of which runs its own."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .._program import Program
from .._sources.base import Source
from .._tree import Tree, is_placed
from ..errors import PickleError, StrategyError
from .base import SUMMED, RunOf, SampleAxes, Strategy
from .shares import Sharing, axes_of_arguments, axes_of_leaves, with_sums


@dataclasses.dataclass(frozen=True)
class Sharded(Sharing):
    """Equal shares of a batch on the devices along an axis of a mesh, each by another strategy.

    Attributes:
      size: `B`.
      inner: the strategy of the samples of one device.
      mesh: the devices.
      names: of the axes of the mesh along which the samples lie.
    """

    mesh: Mesh
    names: tuple[str, ...]

    name = "pb.sharded"

    def __reduce__(self) -> tuple[Any, ...]:
        """Refused: the devices of a mesh are those of this process.

        Raises:
          PickleError: always.
        """
        raise PickleError(
            self.name,
            got="a strategy with the devices of this process",
            expected="what another process can make sense of",
            repair="Send the learner of one sample, and call pb.sharded there with a mesh of that process's devices.",
        )

    @property
    def axis(self) -> tuple[str, ...]:
        """The names of the axes of the mesh along which the samples lie."""
        return self.names

    @property
    def own_mesh(self) -> Mesh:
        """The devices."""
        return self.mesh

    @property
    def on_one_device(self) -> Strategy:
        """The strategy of the samples of one device."""
        return self.inner

    def placed(self, args: tuple[Tree, ...], axes: Any) -> tuple[Tree, ...]:
        """See `Strategy.placed`. An array that was put elsewhere is copied to the devices of its samples."""
        leaves, structure = jax.tree.flatten(args)
        if not any(map(self._lies_elsewhere, leaves)):
            return args
        along = axes_of_arguments(axes, args)
        return jax.tree.unflatten(structure, [self._put(leaf, axis) for leaf, axis in zip(leaves, along, strict=True)])

    def _put(self, leaf: Any, axis: Any) -> Any:
        layout = NamedSharding(self.mesh, self._layout(axis))
        return jax.device_put(leaf, layout) if self._lies_elsewhere(leaf) else leaf

    def at_home(self, args: tuple[Tree, ...], axes: Any) -> tuple[Tree, ...]:
        """See `Strategy.at_home`. No type of an array names its place then, as in a fresh carry."""
        mesh = self._under_automatic_axes()
        leaves, structure = jax.tree.flatten(args)
        layouts = [NamedSharding(mesh, self._layout(axis)) for axis in axes_of_arguments(axes, args)]
        put = [
            leaf if is_placed(leaf) and leaf.sharding == layout else jax.device_put(leaf, layout)
            for leaf, layout in zip(leaves, layouts, strict=True)
        ]
        return jax.tree.unflatten(structure, put)

    def _lies_elsewhere(self, leaf: Any) -> bool:
        """Whether an array was put on other devices than those of the mesh, or on these by a mesh with other axes."""
        if not is_placed(leaf):
            return False
        if isinstance(leaf.sharding, NamedSharding):
            return not _are_alike(leaf.sharding.mesh, self.mesh)
        return leaf.sharding.device_set != {*self.mesh.devices.flat}

    def program(self, source: Source) -> Program:
        """The step of one sample of a device.

        Raises:
          StrategyError: the step has an effect that keeps its order, which JAX runs on one device alone.
        """
        program = super().program(source)
        if program.ordered:
            raise StrategyError(
                self.name,
                got=f"a step with a callback that keeps its order, {program.ordered}",
                expected="a step that JAX runs on several devices",
                repair="Take the callback out, or leave out ordered=True. On one device, pb.chunked runs it.",
            )
        return program

    def in_shares(self, run: RunOf, axes: SampleAxes) -> Callable[..., Any]:
        """See `Strategy.in_shares`. What is summed is reduced across devices, all leaves at once."""

        def whole(*args: Any) -> Any:
            leaves, structure = jax.tree.flatten(args)
            given = [self._layout(axis) for axis in axes_of_arguments(axes.given, args)]

            def of_device(*own: jax.Array) -> Any:
                found = self.inner.in_shares(run, axes)(*jax.tree.unflatten(structure, own))
                return with_sums(found, axes_of_leaves(axes.made, found), lambda sums: jax.lax.psum(sums, self.names))

            made = jax.tree.map(self._layout, axes.made, is_leaf=lambda axis: axis is None)
            layouts: dict[str, Any] = {"in_specs": tuple(given), "out_specs": made, "axis_names": {*self.names}}
            return jax.shard_map(of_device, mesh=self._mesh(), **layouts, check_vma=False)(*leaves)

        return whole

    def _mesh(self) -> Mesh:
        """The mesh under automatic axes.

        Raises:
          StrategyError: the caller's mesh is another one, on which the shares would have another size.
        """
        context = jax.sharding.get_abstract_mesh()
        if not context.empty:
            self._check_same(dict(context.shape))
        return self._under_automatic_axes()

    def _under_automatic_axes(self) -> Mesh:
        types = (AxisType.Auto,) * len(self.mesh.axis_names)
        return Mesh(self.mesh.devices, self.mesh.axis_names, axis_types=types)

    def _check_same(self, sizes: dict[str, int]) -> None:
        if sizes != dict(self.mesh.shape):
            raise StrategyError(
                self.name,
                got=f"a mesh of {sizes}, which the arguments name or jax.set_mesh has set",
                expected=f"the mesh of the strategy, {dict(self.mesh.shape)}",
                repair="Put the arguments on the mesh that pb.sharded was given.",
            )

    def _layout(self, axis: Any) -> PartitionSpec:
        if axis is None or axis == SUMMED:
            return PartitionSpec()
        return PartitionSpec(*(None for _ in range(axis)), self.names)


def _are_alike(one: Any, other: Mesh) -> bool:
    """Whether two meshes have the same devices and the same names and sizes of axes, whatever the types of these."""
    return one is other or (
        isinstance(one, Mesh) and one.shape == other.shape and [*one.devices.flat] == [*other.devices.flat]
    )


def devices_along(mesh: Mesh, axis: tuple[str, ...]) -> int:
    """How many devices share the samples."""
    return math.prod(mesh.shape[name] for name in axis)
