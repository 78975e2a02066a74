"""Sequences: which leaves of the inputs and targets change from step to step, and whether they fit the learner."""

from collections.abc import Callable
from typing import Any

import brainunit as u
import equinox as eqx
import jax
import jax.numpy as jnp

from ._errors import ShapeError, StructureError
from ._learner import Learner
from ._native import unwrap_steps
from ._tree import Axes, Tree, conform, named_leaves


class Timed(eqx.Module):
    """A tree over time.

    Attributes:
      changing: the leaves with a time axis, `[T, ...]`, None in the other places.
      constant: the leaves that are the same at every step, None in the other places.
    """

    changing: Tree
    constant: Tree

    @property
    def length(self) -> int | None:
        """`T`, None where nothing changes."""
        leaves = jax.tree.leaves(self.changing)
        return leaves[0].shape[0] if leaves else None

    def window(self, start: jax.Array, length: int) -> Tree:
        """`length` steps of what changes."""
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), self.changing)

    def at(self, changing: Tree) -> Tree:
        """The whole tree at one step, from what changes at this step."""
        return eqx.combine(changing, self.constant)

    def spec(self, batch_axes: int) -> Tree:
        """The specification of one sample at one step."""

        def trim(count: int) -> Callable[[Any], jax.ShapeDtypeStruct]:
            return lambda x: jax.ShapeDtypeStruct(x.shape[count:], x.dtype)

        changing = jax.tree.map(trim(1 + batch_axes), self.changing)
        return eqx.combine(changing, jax.tree.map(trim(batch_axes), self.constant))


def check_sequence(learner: Learner, inputs: Tree, targets: Tree) -> tuple[Timed, Timed]:
    """Inputs and targets in the captured units and dtypes.

    Raises:
      ShapeError, BatchSizeError, DtypeError, UnitError, StructureError: what does not fit.
    """
    arguments, changing = unwrap_steps(_as_arguments(learner, inputs))
    wanted, wanted_changing = unwrap_steps(targets)
    time = _length(arguments, changing, "inputs") or _length(wanted, wanted_changing, "targets")
    if not time:
        raise ShapeError(
            "inputs",
            got="T = 0 steps" if time == 0 else "no leaf with a time axis",
            expected="leaves [T, ...] with T >= 1",
            repair="Pass at least one step; time is the first axis.",
        )
    axes = learner.axes(("T", time))
    arguments = conform(arguments, learner.program.inputs, "inputs", axes, _untimed(changing, "inputs"))
    wanted = _with_axes(wanted, "targets", axes, _untimed(wanted_changing, "targets"))
    return Timed(*eqx.partition(arguments, changing)), Timed(*eqx.partition(wanted, wanted_changing))


def _as_arguments(learner: Learner, inputs: Tree) -> tuple[Tree, ...]:
    """A module of one argument may get it bare."""
    expected = learner.program.inputs
    if (
        isinstance(inputs, tuple)
        and len(inputs) == len(expected)
        and not (len(expected) == 1 and isinstance(expected[0], tuple))
    ):
        return inputs
    if len(expected) == 1:
        return (inputs,)
    raise StructureError(
        "inputs",
        got=f"{len(inputs)} arguments" if isinstance(inputs, tuple) else type(inputs).__name__,
        expected=f"a tuple of {len(expected)} arguments",
        repair="Pass the arguments that capture() saw as examples, each with a time axis.",
    )


def _length(tree: Tree, changing: Tree, root: str) -> int | None:
    timed, _ = eqx.partition(tree, changing)
    for name, leaf in named_leaves(timed, root):
        if not jnp.shape(leaf):
            raise ShapeError(
                name, got="shape ()", expected="(T, ...)", repair="Give it a time axis, or wrap it in SingleStepData."
            )
        return jnp.shape(leaf)[0]
    return None


def _untimed(changing: Tree, root: str) -> frozenset[str]:
    return frozenset(name for name, changes in named_leaves(changing, root) if not u.get_mantissa(changes))


def _with_axes(tree: Tree, root: str, axes: Axes, untimed: frozenset[str]) -> Tree:
    """A tree of arrays whose leaves lead with the axes, whatever follows them."""
    tree = jax.tree.map(jnp.asarray, tree)

    def feature(leaf: jax.Array, *, timed: bool) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape[len(axes) - (not timed) :], leaf.dtype)

    timed = {name: name not in untimed for name, _ in named_leaves(tree, root)}
    flags = [timed[name] for name, leaf in named_leaves(tree, root) for _ in jax.tree.leaves(leaf)]
    specs = [feature(leaf, timed=flag) for leaf, flag in zip(jax.tree.leaves(tree), flags, strict=True)]
    return conform(tree, jax.tree.unflatten(jax.tree.structure(tree), specs), root, axes, untimed)
