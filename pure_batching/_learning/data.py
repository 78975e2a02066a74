"""The check of a sequence's data against a learner."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._conform import Axes, check_numbers, conform
from .._program import Params
from .._sources.step_data import unwrap_steps
from .._tree import Tree, is_quantity, like, mantissa, named_leaves, spec_of
from .._wording import count
from ..errors import OptionError, ShapeError, StructureError
from .carry import Carry
from .learner import Learner, check_key
from .steps import Steps, Timed

# The default of `targets`: a call that forgets the carry gives three arguments, and its error should say so.
ABSENT: Any = object()


def check_call(
    learner: Learner,
    params: Params,
    carry: Carry | None,
    inputs: Tree,
    targets: Tree,
    *,
    mask: Any,
    reset: Any,
    key: Any,
) -> tuple[Params, Carry | None, Steps, jax.Array | None]:
    """The arguments of a gradient in the captured units and dtypes.

    Raises:
      the errors of `check_steps`.
      CarryError: the carry belongs to another learner.
      OptionError: no key where a fresh start draws random numbers.
      DtypeError: a key that is no random key.
    """
    params = learner.check_params(params)
    steps = check_steps(learner, inputs, targets, mask, reset)
    start = None if carry is None else learner.check_carry(carry)
    return params, start, steps, _check_key(learner, start, steps, key)


def _check_key(learner: Learner, carry: Carry | None, steps: Steps, key: Any) -> jax.Array | None:
    """The random key of a fresh start; None only where nothing is drawn from it."""
    if key is not None:
        return check_key(key)
    begins = carry is None and (learner.program.states.keys or learner.source.draws_at_start)
    starts_anew = steps.reset is not None and learner.source.draws_at_start
    if not begins and not starts_anew:
        return None
    raise OptionError(
        "key",
        got=None,
        expected=f"a random key, since {learner.source.name} draws random numbers"
        + ("" if begins else " in its initial state, and a reset starts samples anew"),
        repair="Pass key=jax.random.key(seed), another one at each call: a fresh start with the same key draws the "
        "same numbers again.",
    )


def check_steps(learner: Learner, inputs: Tree, targets: Tree, mask: Any, reset: Any) -> Steps:
    """The data of a sequence: inputs and targets in the captured units and dtypes, mask and reset as booleans.

    Raises:
      ShapeError, BatchSizeError, DtypeError, UnitError, StructureError: an argument does not fit.
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
    check_numbers(wanted, "targets")
    untimed = _untimed(changing, "inputs") | _untimed(wanted_changing, "targets")
    spec = _features(wanted, "targets", len(learner.axes()), untimed)
    given = [*named_leaves(arguments, "inputs"), *named_leaves(wanted, "targets")]
    timed = {name: np.shape(mantissa(leaf)) for name, leaf in given if name not in untimed}
    time = _length(timed, [*named_leaves(learner.program.inputs, "inputs"), *named_leaves(spec, "targets")], learner)
    if not timed or time == 0:
        raise ShapeError(
            "inputs",
            got="T = 0 steps" if timed else "no leaf with a time axis",
            expected="leaves [T, ...] with T >= 1",
            repair="Pass at least one step; time is the first axis.",
        )
    _check_unmasked(learner, mask)
    axes = learner.axes(("T", time))
    arguments = _conformed(arguments, learner.program.inputs, "inputs", axes, untimed)
    wanted = _conformed(wanted, spec, "targets", axes, untimed)
    return Steps(
        _timed(arguments, changing),
        _timed(wanted, wanted_changing),
        _flags(mask, "mask", axes),
        _flags(reset, "reset", axes),
    )


def check_moment(learner: Learner, inputs: Tree, targets: Tree, number: int) -> tuple[tuple[Tree, ...], Tree]:
    """The data of one step of `N` samples, `[N, ...]`: inputs in the captured units and dtypes, and targets.

    Raises:
      ShapeError, BatchSizeError, DtypeError, UnitError, StructureError: an argument does not fit.
    """
    arguments = inputs if _are_arguments(learner, inputs) else (inputs,)
    axes = (("N", number),)
    checked = learner.check_inputs(arguments, axes)
    check_numbers(targets, "targets")
    return checked, conform(targets, _features(targets, "targets", 0, frozenset()), "targets", axes)


def _timed(tree: Tree, changing: Tree) -> Timed:
    """The leaves that change over time and the constant ones, in two trees.

    `like` gives `changing` the structure of `tree`, whose units may have been converted since.
    """
    is_changing = like(tree, jax.tree.leaves(changing))

    def part(*, wanted: bool) -> Tree:
        return jax.tree.map(lambda x, changes: x if changes == wanted else None, tree, is_changing)

    return Timed(part(wanted=True), part(wanted=False))


def _check_unmasked(learner: Learner, mask: Any) -> None:
    if mask is not None and learner.source.axis_name is not None:
        raise OptionError(
            "mask",
            got=f"a module whose samples reach each other along the axis {learner.source.axis_name!r}",
            expected="independent samples",
            repair="The others would see a masked step; run samples of equal length.",
        )


def _flags(flags: Any, name: str, axes: Axes) -> jax.Array | None:
    if flags is None:
        return None
    labels = ", ".join(label for label, _ in axes)
    repair = f"Give a flag to every step{' of every sample' if len(axes) > 1 else ''}, in one array [{labels}]."
    if not jax.tree_util.all_leaves([flags], is_leaf=is_quantity):
        raise StructureError(name, got=type(flags).__name__, expected=f"an array [{labels}] of bool", repair=repair)
    try:
        return conform(flags, jax.ShapeDtypeStruct((), jnp.bool_), name, axes)
    except ShapeError as error:
        if np.ndim(flags) == len(axes):
            raise
        raise type(error)(error.where, got=error.got, expected=error.expected, repair=repair) from error


def _as_arguments(learner: Learner, inputs: Tree) -> tuple[Tree, ...]:
    """The inputs as a tuple; a module of one argument may get it without one."""
    expected, are_arguments = learner.program.inputs, _are_arguments(learner, inputs)
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


def _are_arguments(learner: Learner, inputs: Tree) -> bool:
    """Whether the inputs are the arguments, and not the only argument."""
    expected = learner.program.inputs
    return isinstance(inputs, tuple) and not (len(expected) == 1 and isinstance(expected[0], tuple))


def _length(shapes: Mapping[str, tuple[int, ...]], specs: list[tuple[str, Any]], learner: Learner) -> int | None:
    """`T` of the first leaf whose other axes are right. None where no leaf is right: each of them is then an error."""
    own = tuple(size for _, size in learner.axes())
    pairs = [(shapes.get(name, ()), (*own, *mantissa(want).shape)) for name, want in specs]
    return next((shape[0] for shape, rest in pairs if shape and shape[1:] == rest), None)


def _untimed(changing: Tree, root: str) -> frozenset[str]:
    return frozenset(name for name, changes in named_leaves(changing, root) if not mantissa(changes))


def _features(tree: Tree, root: str, batch_axes: int, untimed: frozenset[str]) -> Tree:
    """The specification of each target without its leading axes; a nested list of numbers stands for one array."""

    def feature(path: tuple[Any, ...], leaf: Any) -> Tree:
        if _is_table(leaf):
            return jax.ShapeDtypeStruct((), float)
        lead = batch_axes + (root + jax.tree_util.keystr(path) not in untimed)
        return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape[lead:], spec.dtype), spec_of(leaf))

    return jax.tree_util.tree_map_with_path(feature, tree, is_leaf=lambda x: is_quantity(x) or _is_table(x))


def _is_table(node: Any) -> bool:
    leaves = jax.tree.leaves(node) if isinstance(node, list) else []
    return bool(leaves) and all(isinstance(leaf, (bool, int, float, complex, np.generic)) for leaf in leaves)


def _conformed(tree: Tree, spec: Tree, root: str, axes: Axes, untimed: frozenset[str]) -> Tree:
    """`conform`, with an error of its own for a leaf that is the same at every step and so has no time axis."""
    try:
        return conform(tree, spec, root, axes, untimed)
    except ShapeError as error:
        if error.where not in untimed:
            raise
        repair = "What is in brainscale.SingleStepData has no time axis: [B, ...], or [...] for one sample."
        raise type(error)(error.where, got=error.got, expected=error.expected, repair=repair) from error
