"""Whether the data of a sequence fits a learner."""

from typing import Any

import brainunit as u
import equinox as eqx
import jax
import jax.numpy as jnp

from ._errors import OptionError, ShapeError, StructureError, count
from ._execution import Carry
from ._learner import Learner
from ._native import unwrap_steps
from ._program import Params
from ._timed import Steps, Timed
from ._tree import Axes, Tree, conform, like, named_leaves

# Stands for targets that were not given, which a forgotten carry looks like.
ABSENT: Any = object()


def check_call(
    learner: Learner, params: Params, carry: Carry | None, inputs: Tree, targets: Tree, mask: Any, reset: Any
) -> tuple[Params, Carry | None, Steps]:
    """The arguments of a gradient in the captured units and dtypes; the errors of `check_steps`, and CarryError."""
    params = learner.check_params(params)
    steps = check_steps(learner, inputs, targets, mask, reset)
    return params, None if carry is None else learner.check_carry(carry), steps


def check_steps(learner: Learner, inputs: Tree, targets: Tree, mask: Any, reset: Any) -> Steps:
    """Inputs and targets in the captured units and dtypes, mask and reset as booleans.

    Raises:
      ShapeError, BatchSizeError, DtypeError, UnitError, StructureError: what does not fit.
      OptionError: a mask where samples reach each other.
    """
    if targets is ABSENT:
        raise StructureError(
            "targets",
            got="nothing",
            expected="what the loss gets, [T, ...]",
            repair="The second argument is the carry: pass None for a fresh start, then inputs and targets.",
        )
    arguments, changing = unwrap_steps(_as_arguments(learner, inputs))
    wanted, wanted_changing = unwrap_steps(targets)
    time = _length(arguments, changing, "inputs")
    time = _length(wanted, wanted_changing, "targets") if time is None else time
    if not time:
        raise ShapeError(
            "inputs",
            got="T = 0 steps" if time == 0 else "no leaf with a time axis",
            expected="leaves [T, ...] with T >= 1",
            repair="Pass at least one step; time is the first axis.",
        )
    _check_unmasked(learner, mask)
    axes = learner.axes(("T", time))
    arguments = conform(arguments, learner.program.inputs, "inputs", axes, _untimed(changing, "inputs"))
    wanted = _with_axes(wanted, "targets", axes, _untimed(wanted_changing, "targets"))
    return Steps(
        _timed(arguments, changing),
        _timed(wanted, wanted_changing),
        _flags(mask, "mask", axes),
        _flags(reset, "reset", axes),
    )


def _timed(tree: Tree, changing: Tree) -> Timed:
    """The leaves that change apart from the others; units may have been converted since `changing` was made."""
    return Timed(*eqx.partition(tree, like(tree, jax.tree.leaves(changing))))


def _check_unmasked(learner: Learner, mask: Any) -> None:
    if mask is not None and learner.program.axis is not None:
        raise OptionError(
            "mask",
            got=f"a module whose samples reach each other along the axis {learner.program.axis.name!r}",
            expected="independent samples",
            repair="The others would see a masked step; run samples of equal length.",
        )


def _flags(flags: Any, name: str, axes: Axes) -> jax.Array | None:
    return None if flags is None else conform(flags, jax.ShapeDtypeStruct((), jnp.bool_), name, axes)


def _as_arguments(learner: Learner, inputs: Tree) -> tuple[Tree, ...]:
    """A module of one argument may get it bare."""
    expected = learner.program.inputs
    are_arguments = isinstance(inputs, tuple) and not (len(expected) == 1 and isinstance(expected[0], tuple))
    if are_arguments and len(inputs) == len(expected):
        return inputs
    if len(expected) == 1 and not are_arguments:
        return (inputs,)
    raise StructureError(
        "inputs",
        got=count(len(inputs), "argument") if isinstance(inputs, tuple) else type(inputs).__name__,
        expected=f"a tuple of {count(len(expected), 'argument')}",
        repair="Pass the arguments that capture() saw as examples, each with a time axis.",
    )


def _length(tree: Tree, changing: Tree, root: str) -> int | None:
    """`T` of the first leaf that has a time axis; a quantity that is not timed is left without its array."""
    timed, _ = eqx.partition(tree, changing)
    arrays = [(name, array) for name, leaf in named_leaves(timed, root) for array in jax.tree.leaves(leaf)]
    if not arrays:
        return None
    name, array = arrays[0]
    if not jnp.shape(array):
        raise ShapeError(
            name, got="shape ()", expected="(T, ...)", repair="Give it a time axis, or wrap it in SingleStepData."
        )
    return jnp.shape(array)[0]


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
