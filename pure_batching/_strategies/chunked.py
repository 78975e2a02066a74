"""`Chunked`: a few samples at a time, so that only these few hold what a gradient needs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from .._program import Program
from .._sources.base import Source
from .._tree import Tree
from .base import SUMMED, RunOf, SampleAxes, Strategy
from .shares import Sharing, axes_of_arguments, axes_of_leaves


@dataclasses.dataclass(frozen=True)
class Chunked(Sharing):
    """Chunks of samples one after the other, each by another strategy; the last may have fewer samples.

    Attributes:
      size: `B`.
      inner: the strategy of a chunk.
    """

    name = "pb.chunked"

    @property
    def chunk(self) -> int:
        """The number of samples in a chunk."""
        return self.inner.batch_size or 1

    def program(self, source: Source) -> Program:
        """The step of one sample of a chunk; the strategy of the last chunk has to run it too."""
        if left := self.size % self.chunk:
            self.inner.resized(left).program(source)
        return self.inner.program(source)

    def resized(self, size: int) -> "Chunked":
        """See `Strategy.resized`: a chunk has at most as many samples as the batch."""
        return Chunked(size, self.inner.resized(min(size, self.chunk)))

    def in_shares(self, run: RunOf, axes: SampleAxes) -> Callable[..., Any]:
        """See `Strategy.in_shares`."""

        def whole(*args: Any) -> Any:
            given, structure = jax.tree.flatten(args)
            along = axes_of_arguments(axes.given, args)
            mesh = _mesh_of(given)
            leaves = _everywhere(mesh, given, along)

            def of_chunk(start: Any, strategy: Strategy) -> Any:
                count = strategy.batch_size or 1
                own = [_cut(leaf, axis, start, count) for leaf, axis in zip(leaves, along, strict=True)]
                return strategy.in_shares(run, axes)(*jax.tree.unflatten(structure, own))

            found = self._of_all(of_chunk, axes.made)
            made = _everywhere(mesh, jax.tree.leaves(found), axes_of_leaves(axes.made, found))
            return jax.tree.unflatten(jax.tree.structure(found), made)

        return whole

    def _of_all(self, of_chunk: Callable[[Any, Strategy], Tree], made: Any) -> Tree:
        """The results of all chunks put together."""
        count, left = divmod(self.size, self.chunk)
        if count == 1:
            found = of_chunk(0, self.inner)
        else:
            found = _one_after_the_other(lambda k: of_chunk(k * self.chunk, self.inner), count, made)
        if not left:
            return found
        last = of_chunk(count * self.chunk, self.inner.resized(left))
        return _put_together([found, last], made)


def _mesh_of(leaves: list[Any]) -> AbstractMesh | None:
    """The mesh of the devices on which arrays lie; None on one device, or on that of one share."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in leaves]
    mesh = next((mesh for mesh in meshes if not mesh.empty), jax.sharding.get_abstract_mesh())
    return None if mesh.empty or AxisType.Manual in mesh.axis_types else mesh


def _everywhere(mesh: AbstractMesh | None, leaves: list[Any], axes: list[Any]) -> list[Any]:
    """The leaves with all samples on every device: some cuts of samples on several devices make XLA end the process."""
    if mesh is None:
        return leaves
    layout = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any, axis: Any) -> Any:
        has_samples = isinstance(leaf, Tracer) and axis is not None and axis != SUMMED
        return jax.lax.with_sharding_constraint(leaf, layout) if has_samples else leaf

    return list(map(put, leaves, axes))


def _cut(leaf: jax.Array, axis: int | None, start: Any, count: int) -> jax.Array:
    """The part of a leaf that belongs to some samples."""
    if axis is None:
        return leaf
    if isinstance(start, int):
        return jax.lax.slice_in_dim(leaf, start, start + count, axis=axis)
    return jax.lax.dynamic_slice_in_dim(leaf, start, count, axis)


def _one_after_the_other(run: Callable[[jax.Array], Tree], count: int, axes: Any) -> Tree:
    """The results of `run(k)` for each chunk put together, of which sums grow in place."""
    spec = jax.eval_shape(run, 0)
    structure, along = jax.tree.structure(spec), axes_of_leaves(axes, spec)
    sums = [jnp.zeros(leaf.shape, leaf.dtype) for leaf in _of(jax.tree.leaves(spec), along, sums=True)]

    def one(sums: list[jax.Array], k: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        found = jax.tree.leaves(run(k))
        more = zip(sums, _of(found, along, sums=True), strict=True)
        return [total + part for total, part in more], _of(found, along, sums=False)

    sums, stacked = jax.lax.scan(one, sums, jnp.arange(count, dtype=jnp.int32))
    parts, totals = iter(stacked), iter(sums)
    merged = [next(totals) if axis == SUMMED else _merged(next(parts), axis) for axis in along]
    return jax.tree.unflatten(structure, merged)


def _of(leaves: list[Any], axes: list[Any], *, sums: bool) -> list[Any]:
    return [leaf for leaf, axis in zip(leaves, axes, strict=True) if (axis == SUMMED) == sums]


def _merged(stacked: jax.Array, axis: int | None) -> jax.Array:
    """The leaf of all samples from the leaves of the chunks, which are stacked in front."""
    if axis is None:
        return stacked[0]  # every chunk computes the same
    return jax.lax.collapse(jnp.moveaxis(stacked, 0, axis), axis, axis + 2)


def _put_together(parts: list[Tree], axes: Any) -> Tree:
    """The result of all samples from those of two shares of them."""
    along, structure = axes_of_leaves(axes, parts[0]), jax.tree.structure(parts[0])
    columns = zip(*map(jax.tree.leaves, parts), strict=True)
    return jax.tree.unflatten(structure, [_joined(column, axis) for column, axis in zip(columns, along, strict=True)])


def _joined(parts: tuple[jax.Array, ...], axis: Any) -> jax.Array:
    if axis == SUMMED:
        return sum(parts[1:], start=parts[0])
    return parts[0] if axis is None else jnp.concatenate(parts, axis)
