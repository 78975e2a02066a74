"""A private copy of a module, so that nothing that happens to the caller's module reaches a learner, nor the reverse.

BrainState finds the modules and states of a module in attributes and in every pytree that JAX knows. The copy goes at
least as far: into every container and every object that holds a module or a state, wherever it is. One object that is
reached by two ways stays one. Arrays, operators and other objects without modules are shared with the caller.
"""

import collections
import copy
import functools
import gc
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import brainstate
import numpy as np

from ..errors import CaptureError

_REPAIR = (
    "Hold modules and states in attributes, lists, tuples, dictionaries, dataclasses or partial functions; "
    "what wraps a module, such as jax.jit, belongs inside update()."
)

# Objects that hold no module, or none that a step can reach through them. A class or a Python module is not copied.
_WITHOUT_MODULES = (type, types.ModuleType, types.CodeType, types.BuiltinFunctionType, str, bytes, int, float, complex)
_ARRAY_LIBRARIES = ("jax", "jaxlib", "numpy")

_MODULES = (brainstate.graph.Node, brainstate.State)


def copy_module(module: brainstate.nn.Module) -> brainstate.nn.Module:
    """Copy a module with its modules, states, containers and functions.

    Raises:
      CaptureError: an object that cannot be copied holds a module or a state; the text names the attribute.
    """
    return _Copier()(module, type(module).__name__)


class _Copier:
    """One copy: what was copied so far, and what is known to hold no module."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {id(brainstate.random.DEFAULT): brainstate.random.DEFAULT}
        self.free: set[int] = set()

    def __call__(self, value: Any, place: str) -> Any:
        """Copy a value; `place` is how it is reached, such as `Net.layers[0].linear`."""
        if id(value) in self.made:
            return self.made[id(value)]
        for kinds, make in _MAKERS.items():
            if _is_one_of(value, kinds):
                return make(self, value, place)
        return self._other(value, place) if self.holds_module(value) else value

    def holds_module(self, value: Any) -> bool:
        """Whether a module or a state can be reached from a value."""
        pending, seen = [value], set[int]()
        while pending:
            one = pending.pop()
            if _is_module(one):
                return True
            if id(one) not in seen and id(one) not in self.free:
                seen.add(id(one))
                pending.extend(_inside(one))
        self.free |= seen
        return False

    def keep(self, value: Any, new: Any) -> Any:
        """Remember the copy of a value before its parts are copied, which may lead back to it."""
        self.made[id(value)] = new
        return new

    def _other(self, value: Any, place: str) -> Any:
        """Copy an object of any other type by its attributes."""
        try:
            new = object.__new__(type(value))
        except TypeError as error:
            raise CaptureError(
                place,
                got=f"a {type(value).__name__} that holds a module or a state",
                expected="an object that can be copied, since the module of the caller is left as it was",
                repair=_REPAIR,
            ) from error
        return self.attributes(value, self.keep(value, new), place)

    def attributes(self, value: Any, new: Any, place: str) -> Any:
        """Copy every attribute of an object to another."""
        for name, attribute in _attributes(value):
            object.__setattr__(new, name, self(attribute, f"{place}.{name}"))
        return new

    def items(self, values: Iterable[Any], place: str) -> list[Any]:
        """Copy what a sequence holds."""
        return [self(item, f"{place}[{i}]") for i, item in enumerate(values)]


def _object(copier: _Copier, value: Any, place: str) -> Any:
    return copier.attributes(value, copier.keep(value, object.__new__(type(value))), place)


def _namespace(copier: _Copier, value: Any, place: str) -> Any:
    return copier.attributes(value, copier.keep(value, type(value)()), place)


def _tuple(copier: _Copier, value: tuple[Any, ...], place: str) -> Any:
    new = tuple.__new__(type(value), copier.items(value, place))
    return copier.keep(value, copier.attributes(value, new, place))


def _list(copier: _Copier, value: Any, place: str) -> Any:
    new = copier.keep(value, copy.copy(value))
    items = copier.items(value, place)
    new.clear()
    new.extend(items)
    return new


def _set(copier: _Copier, value: Any, place: str) -> Any:
    return copier.keep(value, type(value)(copier.items(value, place)))


def _dict(copier: _Copier, value: dict[Any, Any], place: str) -> Any:
    new = copier.keep(value, copy.copy(value))
    items = [(copier(key, f"{place} (a key)"), copier(item, f"{place}[{key!r}]")) for key, item in value.items()]
    if any(key is not old for (key, _), old in zip(items, value, strict=True)):
        new.clear()
    for key, item in items:
        new[key] = item
    return new


def _partial(copier: _Copier, value: Any, place: str) -> Any:
    """Copy a `functools.partial` or a `jax.tree_util.Partial`."""
    function, given = copier(value.func, f"{place}.func"), copier(value.keywords, place)
    return copier.keep(value, type(value)(function, *copier.items(value.args, place), **given))


def _method(copier: _Copier, value: Any, place: str) -> Any:
    return types.MethodType(copier(value.__func__, place), copier(value.__self__, f"{place}.__self__"))


def _function(copier: _Copier, value: Any, place: str) -> Any:
    """Copy a function, so that it closes over the copies."""
    if not value.__closure__ and not copier.holds_module(value):
        return value
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    new = types.FunctionType(value.__code__, value.__globals__, value.__name__, None, cells)
    copier.keep(value, new)
    new.__defaults__ = copier(value.__defaults__, place)
    new.__kwdefaults__ = copier(value.__kwdefaults__, place)
    new.__dict__.update(copier(value.__dict__, place))
    for name, cell, old in zip(value.__code__.co_freevars, cells, value.__closure__ or (), strict=True):
        if _is_full(old):
            cell.cell_contents = copier(old.cell_contents, f"{place}, which closes over {name}")
    return new


def _weak(copier: _Copier, value: Any, place: str) -> Any:
    """Point a weak reference to the copy."""
    return value if value() is None else copier.keep(value, weakref.ref(copier(value(), place)))


# The first kind that fits makes the copy.
_MAKERS: dict[tuple[type, ...], Callable[[_Copier, Any, str], Any]] = {
    _MODULES: _object,
    (types.SimpleNamespace,): _namespace,
    (tuple,): _tuple,
    (list, collections.deque): _list,
    (set, frozenset): _set,
    (dict,): _dict,
    (functools.partial,): _partial,
    (types.MethodType,): _method,
    (types.FunctionType,): _function,
    (weakref.ref,): _weak,
}


def _is_one_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """`isinstance`, but BrainState's modules are an abstract base class, which would ask all of its subclasses."""
    return any(kind in kinds for kind in type(value).__mro__)


def _is_module(value: Any) -> bool:
    return _is_one_of(value, _MODULES) and value is not brainstate.random.DEFAULT


def _is_full(cell: types.CellType) -> bool:
    """Whether a cell has a value; one that a function has yet to assign has none."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of one object, slots among them."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _inside(value: Any) -> list[Any]:
    """The objects that an object holds; nothing of classes, of Python's modules and of the globals of a function."""
    if isinstance(value, _WITHOUT_MODULES):
        return []
    if isinstance(value, types.FunctionType):
        full = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
        return [*full, value.__defaults__, value.__kwdefaults__, value.__dict__]
    if isinstance(value, weakref.ref):
        return [value()]
    if isinstance(value, np.ndarray):
        return list(value.flat) if value.dtype == object else []
    library = type(value).__module__.split(".", maxsplit=1)[0]
    if library in _ARRAY_LIBRARIES and not isinstance(value, functools.partial):
        return [getattr(value, "__wrapped__", None)]
    return gc.get_referents(value)
