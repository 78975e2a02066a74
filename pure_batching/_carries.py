"""Batch algebra: join, split and reorder the samples of carries.

Every array of a carry starts with the batch axis, but those in `Carry.shared`, which all samples have in common.
Carries on different devices are put together on those of the first that was put on any.
All functions can be jitted where sizes are static. Indices and shared states are checked where their
values are known, so outside `jax.jit`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from ._learning.carry import Carry, check_whole
from ._tree import Tree, described, is_placed, named_leaves, spec_text
from ._wording import count, listed
from .errors import BatchSizeError, OptionError, StructureError

Indices = Any


def stack(carries: Sequence[Carry]) -> Carry:
    """Make the carry of a batch, `[B, ...]`, of carries of one sample each; the inverse of `unstack`.

    Raises:
      StructureError: no list of carries, carries of different learners, or at different values of what samples share.
      BatchSizeError: a carry of a batch.
      ShapeError: an array that does not lead with the samples.
    """
    first = _check_listed("stack", carries, is_batch=False)
    return _each_leaf(lambda *leaves: jnp.stack(leaves), *carries)._replace(shared=first.shared)


def unstack(carry: Carry) -> list[Carry]:
    """Take the carry of a batch apart into carries of one sample each, `[...]`.

    Raises:
      StructureError: no carry.
      BatchSizeError: the carry of one sample.
      ShapeError: an array that does not lead with the samples.
    """
    return [_each_leaf(lambda leaf, i=i: leaf[i], carry) for i in range(batch_size(carry))]


def concat(carries: Sequence[Carry]) -> Carry:
    """Join carries of batches into one of all their samples, in order; the inverse of `split`.

    Raises:
      StructureError: no list of carries, carries of different learners, or at different values of what samples share.
      BatchSizeError: carries of one sample.
      ShapeError: an array that does not lead with the samples.
    """
    first = _check_listed("concat", carries, is_batch=True)
    return _each_leaf(lambda *leaves: jnp.concatenate(leaves), *carries)._replace(shared=first.shared)


def split(carry: Carry, sizes: Sequence[int]) -> list[Carry]:
    """Split a carry into carries of its first `sizes[0]` samples, of the next `sizes[1]`, and so on.

    Raises:
      BatchSizeError: sizes that do not add up to the batch, or the carry of one sample.
      StructureError, ShapeError: no carry, or an array that does not lead with the samples.
    """
    parts = _check_sizes(sizes, batch_size(carry))
    ends = np.cumsum(parts)
    return [
        _each_leaf(lambda leaf, a=end - part, b=end: leaf[a:b], carry) for part, end in zip(parts, ends, strict=True)
    ]


def gather(carry: Carry, indices: Indices) -> Carry:
    """Take the samples at `indices`, `[N]` integers in any order, which may repeat or leave out samples.

    Raises:
      OptionError: an index that is no sample.
      BatchSizeError: the carry of one sample.
      StructureError, ShapeError: no carry, or an array that does not lead with the samples.
    """
    rows = _check_indices("gather", indices, batch_size(carry))
    return _each_leaf(lambda leaf: leaf[rows], carry)


def scatter(carry: Carry, indices: Indices, samples: Carry) -> Carry:
    """Replace the samples of `carry` at `indices`, `[N]` different integers, by those of `samples`.

    Raises:
      OptionError: an index that is no sample, or stands twice.
      BatchSizeError: another number of samples than indices, or the carry of one sample.
      StructureError: no carries, carries of different learners, or at different values of what samples share.
      ShapeError: an array that does not lead with the samples.
    """
    _check_together({"carry": carry, "samples": samples}, is_batch=True)
    rows = _check_indices("scatter", indices, batch_size(carry), once=True)
    if rows.shape[0] != batch_size(samples):
        raise BatchSizeError(
            "samples", got=f"{batch_size(samples)} samples", expected=rows.shape[0], repair="Give one for each index."
        )
    return _each_leaf(lambda leaf, new: leaf.at[rows].set(new), carry, samples)


def permute(carry: Carry, order: Indices) -> Carry:
    """Put the samples in another order: sample `order[i]` becomes sample `i`.

    Raises:
      OptionError: an order that does not name every sample once.
      BatchSizeError: the carry of one sample.
      StructureError, ShapeError: no carry, or an array that does not lead with the samples.
    """
    size = batch_size(carry)
    rows = _check_indices("permute", order, size, once=True)
    if rows.shape[0] != size:
        raise OptionError("order", got=f"{rows.shape[0]} indices", expected=size, repair="Name every sample once.")
    return gather(carry, rows)


def batch_size(carry: Carry) -> int:
    """Count the samples that a carry holds.

    Raises:
      StructureError: no carry.
      BatchSizeError: the carry is of one sample.
      ShapeError: an array that does not lead with the samples.
    """
    _check_carry("carry", carry, is_batch=True)
    return jnp.shape(carry.update_count)[0]


def _each_leaf(fun: Any, *carries: Carry) -> Carry:
    """Apply a function to the leaves that start with the batch axis; shared leaves are those of the first carry."""
    own = [jax.tree.map(_gathered, carry._replace(shared={})) for carry in carries]
    return jax.tree.map(lambda *leaves: fun(*_together(leaves)), *own)._replace(shared=carries[0].shared)


def _together(leaves: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Leaves on the devices of the first of them that was put on any; JAX takes none on others with it."""
    placed = [leaf.sharding for leaf in leaves if is_placed(leaf)]
    if all(layout.device_set == placed[0].device_set for layout in placed):
        return list(leaves)
    home = placed[0]
    whole = NamedSharding(home.mesh, PartitionSpec()) if isinstance(home, NamedSharding) else home
    return [leaf if leaf.sharding.device_set == home.device_set else jax.device_put(leaf, whole) for leaf in leaves]


def _gathered(leaf: Any) -> jax.Array:
    """A leaf whose samples any device may take: under explicit axes JAX regroups none that lie on several."""
    array = jnp.asarray(leaf)
    layout = jax.typeof(array).sharding
    is_placed = any(name is not None for name in layout.spec)
    return jax.sharding.reshard(array, NamedSharding(layout.mesh, PartitionSpec())) if is_placed else array


def _check_listed(name: str, carries: Sequence[Carry], *, is_batch: bool) -> Carry:
    if isinstance(carries, Carry):
        raise StructureError(
            f"pb.{name}", got="one carry", expected="a list of carries", repair="Put it into a list, with others."
        )
    if not isinstance(carries, Sequence):
        raise StructureError(
            f"pb.{name}", got=type(carries).__name__, expected="a list of carries", repair="Pass a list of carries."
        )
    if not carries:
        raise StructureError(f"pb.{name}", got="no carries", expected="one or more", repair="Pass a list of carries.")
    return _check_together({f"carries[{i}]": carry for i, carry in enumerate(carries)}, is_batch=is_batch)


def _check_together(carries: Mapping[str, Carry], *, is_batch: bool) -> Carry:
    """Return the first of several named carries, if they can be combined; raise an error otherwise."""
    for name, carry in carries.items():
        _check_carry(name, carry, is_batch=is_batch)
    first, *rest = carries
    for name in rest:
        _check_alike(name, carries[name], first, carries[first])
    return carries[first]


def _check_carry(name: str, carry: object, *, is_batch: bool) -> None:
    """Raise an error unless the value is a carry of a batch (`is_batch`) or of one sample."""
    lead = check_whole(name, carry)
    if is_batch != bool(lead):
        raise BatchSizeError(
            name,
            got=f"the carry of {count(lead[0], 'sample')} in a batch" if lead else "the carry of one sample",
            expected="the carry of a batch" if is_batch else "the carry of one sample",
            repair=_TO_A_BATCH if is_batch else _OF_BATCHES,
        )


_TO_A_BATCH = "Put carries of single samples together with pb.stack."
_OF_BATCHES = "Put batches together with pb.concat, or take them apart with pb.unstack."
_OF_ONE_LEARNER = "Take one learner's carries."
_APART = "Apply pb.apart to each of them first."


def _check_alike(name: str, carry: Carry, first_name: str, first: Carry) -> None:
    _check_alike_shared(name, carry, first_name, first)
    got, want = (dict(named_leaves(one, "")) for one in (carry, first))
    if list(got) != list(want):
        odd = sorted(set(got) ^ set(want))[0]
        raise StructureError(
            name + odd,
            got=f"a leaf of {name if odd in got else first_name} alone",
            expected="the same leaves in every carry",
            repair=_OF_ONE_LEARNER,
        )
    for leaf in got:
        texts = [_of_a_sample(leaf, one[leaf], jnp.ndim(first.update_count)) for one in (got, want)]
        if texts[0] != texts[1]:
            raise StructureError(
                name + leaf, got=texts[0], expected=f"{texts[1]}, as in {first_name}", repair=_OF_ONE_LEARNER
            )
    shared = named_leaves(carry.shared, "shared")
    for (leaf, value), (_, other) in zip(shared, named_leaves(first.shared, "shared"), strict=True):
        if _differ(value, other):
            raise StructureError(
                f"{name}.{leaf}",
                got=value,
                expected=other,
                repair="Samples share this state; give each carry its own with pb.apart(carry) first.",
            )


def _check_alike_shared(name: str, carry: Carry, first_name: str, first: Carry) -> None:
    """Raise StructureError where the samples of one carry share a state that those of another have each."""
    moved = sorted(set(carry.shared) & set(first.other)) + sorted(set(carry.other) & set(first.shared))
    if moved:
        kinds = [f"samples that share their {listed(moved)}", f"samples that have a {listed(moved)} each"]
        got, want = kinds if moved[0] in carry.shared else kinds[::-1]
        raise StructureError(name, got=got, expected=f"{want}, as in {first_name}", repair=_APART)


def _of_a_sample(name: str, leaf: Any, lead: int) -> str:
    """Describe a leaf without the batch axis, which a shared leaf does not have."""
    cut = 0 if name.startswith(".shared") else lead
    return described(jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[cut:], jnp.result_type(x)), leaf))


def _check_sizes(sizes: Any, total: int) -> list[int]:
    try:
        parts = np.asarray(sizes)
    except (TypeError, ValueError, OverflowError):  # a ragged list, or what is known under jax.jit only
        parts = np.empty(0)
    is_listed = parts.ndim == 1 and np.issubdtype(parts.dtype, np.integer)
    if not is_listed or (parts < 1).any() or parts.sum() != total:
        raise BatchSizeError(
            "sizes", got=repr(sizes), expected=f"sizes >= 1 that add up to {total}", repair="Name each sample once."
        )
    return [int(part) for part in parts]


def _differ(value: Tree, other: Tree) -> bool:
    pairs = list(zip(jax.tree.leaves(value), jax.tree.leaves(other), strict=True))
    known = not any(isinstance(leaf, Tracer) for pair in pairs for leaf in pair)
    return known and any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _check_indices(name: str, indices: Indices, size: int, *, once: bool = False) -> jax.Array:
    try:
        rows = jnp.asarray(indices)
    except (TypeError, ValueError, SyntaxError, OverflowError) as reason:  # numpy parses what looks like text
        raise OptionError(
            f"pb.{name}", got=repr(indices), expected="integers [N]", repair="Pass a list of samples."
        ) from reason
    if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise OptionError(
            f"pb.{name}",
            got=f"indices {spec_text(rows)}" if rows.ndim else f"one index {indices}",
            expected="integers [N]",
            repair="Pass a list of samples.",
        )
    if isinstance(rows, Tracer):
        return rows
    values = np.asarray(rows)
    if values.size and (values.min() < 0 or values.max() >= size):
        raise OptionError(
            f"pb.{name}",
            got=values.tolist(),
            expected=f"indices from 0 to {size - 1}",
            repair="Name samples of the batch.",
        )
    if once and len(np.unique(values)) != len(values):
        raise OptionError(
            f"pb.{name}", got=values.tolist(), expected="each sample once", repair="Leave out repetitions."
        )
    return rows
