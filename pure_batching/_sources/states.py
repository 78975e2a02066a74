"""The states of a module as a tree, and back."""

from collections.abc import Mapping

import brainstate

from .._conform import conform
from .._tree import Tree, spec_of
from .._wording import listed
from ..errors import PureBatchingError, StructureError
from .blueprint import check_module, states_of


def read_states(net: brainstate.nn.Module) -> dict[str, Tree]:
    """The values of all states of a module by path, sorted: trainable, hidden and other ones, units included.

    Raises:
      StructureError: no module.
    """
    return {path: state.value for path, state in _checked_states(net).items()}


def _checked_states(net: brainstate.nn.Module) -> dict[str, brainstate.State]:
    check_module(net, StructureError, "Pass the module whose states are meant.")
    return states_of(net)


def write_states(net: brainstate.nn.Module, tree: Mapping[str, Tree]) -> None:
    """Write values into the states of a module; the inverse of `read_states`.

    Args:
      net: the module.
      tree: `{path: value}` of all states or some of them, each with the shape, dtype and unit that the state has.

    Raises:
      StructureError: no module, no mapping, or a path that the module does not have.
      ShapeError, DtypeError, UnitError: a value that does not fit; nothing is written then.
    """
    states = _checked_states(net)
    if not isinstance(tree, Mapping):
        repair = "Pass what read_states gave, or a part of it."
        raise StructureError("tree", got=type(tree).__name__, expected="{path: value}", repair=repair)
    unknown = sorted(set(tree) - set(states), key=str)
    if unknown:
        raise StructureError(
            "tree",
            got=f"the path {unknown[0]!r}",
            expected=f"one of {listed(list(states))}" if states else "nothing: the module has no state",
            repair="Use the paths that read_states gives.",
        )
    values = {path: _fitting(value, states[path].value, path) for path, value in tree.items()}
    for path, value in values.items():
        states[path].value = value


def _fitting(value: Tree, now: Tree, path: str) -> Tree:
    """A value in the structure, units and dtypes that a state has now; an error speaks of that state."""
    try:
        return conform(value, spec_of(now), path)
    except PureBatchingError as error:
        repair = f"Give the state {path!r} a value like the one that read_states gives of it."
        raise type(error)(error.where, got=error.got, expected=error.expected, repair=repair) from error
