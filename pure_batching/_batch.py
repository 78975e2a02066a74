"""Batch algebra: carries of samples put together, taken apart and put in another order.

What belongs to a sample leads with the batch axis; what `Carry.shared` holds is the same for all and stays whole.
All functions can be jitted where sizes are static. Indices and shared states are checked where their
values are known, so outside `jax.jit`.
"""

from collections.abc import Sequence
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._errors import BatchSizeError, OptionError, StructureError
from ._execution import Carry
from ._tree import Tree, named_leaves, spec_text

Indices = Any


def stack(carries: Sequence[Carry]) -> Carry:
    """Carries of one sample each -> the carry of a batch, `[B, ...]`; the inverse of `unstack`.

    Raises:
      StructureError: carries of different learners, or at different values of what samples share.
      BatchSizeError: a carry of a batch.
    """
    first = _check_together("stack", carries)
    if jnp.ndim(first.update_count):
        raise BatchSizeError(
            "carries[0]",
            got=f"the carry of {batch_size(first)} samples",
            expected="the carry of one sample",
            repair="Put batches together with pb.concat.",
        )
    return _each_leaf(lambda *leaves: jnp.stack(leaves), *carries)._replace(shared=first.shared)


def unstack(carry: Carry) -> list[Carry]:
    """The carry of a batch -> carries of one sample each."""
    return [_each_leaf(lambda leaf, i=i: leaf[i], carry) for i in range(batch_size(carry))]


def concat(carries: Sequence[Carry]) -> Carry:
    """Carries of batches -> the carry of all their samples, in their order; the inverse of `split`.

    Raises:
      StructureError: carries of different learners, or at different values of what samples share.
      BatchSizeError: carries of one sample.
    """
    first = _check_together("concat", carries)
    batch_size(first)
    return _each_leaf(lambda *leaves: jnp.concatenate(leaves), *carries)._replace(shared=first.shared)


def split(carry: Carry, sizes: Sequence[int]) -> list[Carry]:
    """The carry of a batch -> carries of its first `sizes[0]` samples, of the next `sizes[1]`, and so on.

    Raises:
      BatchSizeError: sizes that do not add up to the batch.
    """
    size = batch_size(carry)
    if np.ndim(sizes) != 1 or not np.issubdtype(np.asarray(sizes).dtype, np.integer):
        raise BatchSizeError(
            "sizes",
            got=repr(sizes),
            expected=f"a list of whole sizes that add up to {size}",
            repair="Name every sample once.",
        )
    if any(part < 1 for part in sizes) or sum(sizes) != size:
        raise BatchSizeError(
            "sizes", got=list(sizes), expected=f"sizes >= 1 that add up to {size}", repair="Name each sample once."
        )
    ends = np.cumsum(sizes)
    return [
        _each_leaf(lambda leaf, a=end - part, b=end: leaf[a:b], carry) for part, end in zip(sizes, ends, strict=True)
    ]


def gather(carry: Carry, indices: Indices) -> Carry:
    """The samples at `indices`, `[N]` integers in any order, repeated or left out.

    Raises:
      OptionError: an index that is no sample.
    """
    rows = _check_indices("gather", indices, batch_size(carry))
    return _each_leaf(lambda leaf: leaf[rows], carry)


def scatter(carry: Carry, indices: Indices, samples: Carry) -> Carry:
    """`carry` with the samples at `indices`, `[N]` and each once, replaced by those of `samples`.

    Raises:
      OptionError: an index that is no sample, or stands twice.
      BatchSizeError: another number of samples than indices.
      StructureError: carries of different learners, or at different values of what samples share.
    """
    _check_together("scatter", [carry, samples])
    rows = _check_indices("scatter", indices, batch_size(carry), once=True)
    if rows.shape[0] != batch_size(samples):
        raise BatchSizeError(
            "samples", got=f"{batch_size(samples)} samples", expected=rows.shape[0], repair="Give one for each index."
        )
    return _each_leaf(lambda leaf, new: leaf.at[rows].set(new), carry, samples)


def permute(carry: Carry, order: Indices) -> Carry:
    """The same samples in another order: sample `order[i]` becomes sample `i`.

    Raises:
      OptionError: an order that does not name every sample once.
    """
    size = batch_size(carry)
    rows = _check_indices("permute", order, size, once=True)
    if rows.shape[0] != size:
        raise OptionError("order", got=f"{rows.shape[0]} indices", expected=size, repair="Name every sample once.")
    return gather(carry, rows)


def batch_size(carry: Carry) -> int:
    """How many samples a carry holds.

    Raises:
      BatchSizeError: the carry is of one sample.
    """
    _check_is_carry("carry", carry)
    if jnp.ndim(carry.update_count) != 1:
        raise BatchSizeError(
            "carry",
            got="the carry of one sample",
            expected="the carry of a batch",
            repair="Put carries of single samples together with pb.stack.",
        )
    return carry.update_count.shape[0]


def _each_leaf(fun: Any, *carries: Carry) -> Carry:
    """A function of the leaves that belong to samples; what they share stays as it is in the first carry."""
    own = [carry._replace(shared={}) for carry in carries]
    return jax.tree.map(fun, *own)._replace(shared=carries[0].shared)


def _check_is_carry(name: str, carry: object) -> None:
    if not isinstance(carry, Carry):
        raise StructureError(
            name,
            got=type(carry).__name__,
            expected="a Carry",
            repair="Pass learner.init() or aux.carry.",
        )


def _check_together(name: str, carries: Sequence[Carry]) -> Carry:
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
    for i, carry in enumerate(carries):
        _check_is_carry(f"carries[{i}]", carry)
        _check_alike(f"carries[{i}]", carry, carries[0])
    return carries[0]


def _check_alike(name: str, carry: Carry, first: Carry) -> None:
    got, want = (dict(named_leaves(one, "")) for one in (carry, first))
    if list(got) != list(want):
        odd = sorted(set(got) ^ set(want))[0]
        raise StructureError(
            name + odd, got="a leaf of one carry only", expected="the same leaves", repair="Take one learner's carries."
        )
    _check_features(name, carry, first)
    shared = named_leaves(carry.shared, "shared")
    for (leaf, value), (_, other) in zip(shared, named_leaves(first.shared, "shared"), strict=True):
        if _differ(value, other):
            raise StructureError(
                f"{name}.{leaf}",
                got=value,
                expected=other,
                repair="Samples share this state; give each carry its own with pb.apart(carry) first.",
            )


def _check_features(name: str, carry: Carry, first: Carry) -> None:
    """The same features of a sample, and both of a batch or both of one sample."""
    lead = jnp.ndim(first.update_count)
    own = (named_leaves(one._replace(shared={}), "") for one in (carry, first))
    for (leaf, value), (_, other) in zip(*own, strict=True):
        got, want = jnp.shape(u.get_mantissa(value)), jnp.shape(u.get_mantissa(other))
        if len(got) != len(want) or got[lead:] != want[lead:]:
            raise StructureError(
                name + leaf, got=f"shape {got}", expected=f"shape {want}", repair="Take one learner's carries."
            )


def _differ(value: Tree, other: Tree) -> bool:
    pairs = list(zip(jax.tree.leaves(value), jax.tree.leaves(other), strict=True))
    known = not any(isinstance(leaf, Tracer) for pair in pairs for leaf in pair)
    return known and any(not np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)


def _check_indices(name: str, indices: Indices, size: int, *, once: bool = False) -> jax.Array:
    try:
        rows = jnp.asarray(indices)
    except (TypeError, ValueError, SyntaxError) as reason:  # numpy parses what looks like text
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
