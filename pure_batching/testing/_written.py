"""Values as Python expressions that give them back, number by number."""

import base64
import dataclasses
import enum
import functools
import inspect
import math
import pprint
import re
import sys
import types
from typing import Any

import brainunit as u
import jax
import numpy as np

from .._tree import is_key, is_quantity, mantissa, unit_of

# A larger array is no longer looked at, and stands there as bytes.
_READABLE = 256
_WIDTH = 110

_ATOMS = (type(None), bool, str, bytes, type(...))


class Expressions:
    """Values as expressions, with the modules that these need.

    Where no expression gives a value back, as for a lambda, it has a call of `fill_in` in its place.

    Attributes:
      modules: that the expressions so far name in full.
      gaps: what could not be written, as it is said in the calls of `fill_in`.
    """

    def __init__(self) -> None:
        self.modules: set[str] = set()
        self.gaps: list[str] = []

    def of(self, value: Any) -> str:
        """The expression of a value."""
        if type(value) in _ATOMS:
            return repr(value)
        for is_one, write in _WRITERS:
            if is_one(value):
                return write(self, value)
        name = _importable(value)
        return self.gap(value) if name is None else self.named(*name)

    def named(self, module: str, name: str) -> str:
        """What a module calls by a name."""
        self.modules.add(module)
        return f"{module}.{name}"

    def gap(self, value: Any) -> str:
        """A place for what cannot be written."""
        said = _described(value)
        self.gaps.append(said)
        return f"fill_in({said!r})"

    def listed(self, values: Any) -> str:
        """Some values, one after the other."""
        return ", ".join(map(self.of, values))

    def call(self, function: str, **arguments: Any) -> str:
        """A call whose arguments all have names."""
        return f"{function}({', '.join(f'{name}={self.of(value)}' for name, value in arguments.items())})"

    def array(self, value: Any) -> str:
        """An array of numpy or of JAX, or a number that is one."""
        array = np.asarray(value)
        self.modules.add("numpy")
        if array.dtype.kind in "biuf" and 0 < array.size <= _READABLE and np.isfinite(array).all():
            numbers = pprint.pformat(array.tolist(), width=_WIDTH, compact=True)
            text = f'numpy.array({numbers}, "{array.dtype}")'
        elif array.size:
            text = f'numpy.frombuffer({self._decoded(array)}, "{array.dtype}").reshape({array.shape})'
        else:
            text = f'numpy.zeros({array.shape}, "{array.dtype}")'
        return f"{self.named('jax.numpy', 'asarray')}({text})" if isinstance(value, jax.Array) else text

    def number(self, value: float) -> str:
        """A number of Python, or one of a class of its own, such as the constants of rules, as that of Python."""
        if isinstance(value, int):
            return repr(int(value))
        return repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'

    def key(self, value: jax.Array) -> str:
        """Random keys, one by its seed where it has one."""
        data, kind = np.asarray(jax.random.key_data(value)), str(jax.random.key_impl(value))
        seed = int(data.flat[-1])
        if np.array_equal(jax.random.key_data(jax.random.key(seed, impl=kind)), data):
            return f"{self.named('jax', 'random.key')}({seed}, impl={kind!r})"
        return f"{self.named('jax', 'random.wrap_key_data')}({self.array(data)}, impl={kind!r})"

    def quantity(self, value: Any) -> str:
        """An array with its unit."""
        unit = self.of(unit_of(value))
        return f"{self.named('brainunit', 'Quantity')}({self.of(mantissa(value))}, unit={unit})"

    def unit(self, value: Any) -> str:
        """A unit, by the names that brainunit has for its factors."""
        names = {str(one): name for name, one in vars(u).items() if isinstance(one, u.Unit)}
        factors = str(value).replace("^", "**")
        text = re.sub(r"[^\W\d]\w*", lambda factor: f"brainunit.{names.get(factor.group())}", factors)
        for candidate in (text, "brainunit.UNITLESS"):
            if _evaluated_unit(candidate) == value:
                self.modules.add("brainunit")
                return candidate
        return self.gap(value)

    def bound(self, value: types.MethodType) -> str:
        """A method of a value."""
        return f"{self.of(value.__self__)}.{value.__name__}"

    def partial(self, value: Any) -> str:
        """A function with some of its arguments."""
        given = [self.of(one) for one in (value.func, *value.args)]
        given += [f"{name}={self.of(one)}" for name, one in value.keywords.items()]
        return f"{self.named('functools', 'partial')}({', '.join(given)})"

    def mapping(self, value: dict) -> str:
        """A dictionary."""
        return f"{{{', '.join(f'{self.of(key)}: {self.of(one)}' for key, one in value.items())}}}"

    def sequence(self, value: Any) -> str:
        """A list or a tuple."""
        if type(value) is list:
            return f"[{self.listed(value)}]"
        return f"({self.listed(value)},)" if len(value) == 1 else f"({self.listed(value)})"

    def record(self, value: Any) -> str:
        """What is made of its fields: a named tuple, or a dataclass."""
        return self.call(self.of(type(value)), **_fields(value))

    def dtype(self, value: np.dtype) -> str:
        """A type of numbers."""
        return f'{self.named("jax.numpy", "dtype")}("{value}")'

    def _decoded(self, array: np.ndarray) -> str:
        lines = re.findall(f".{{1,{_WIDTH}}}", base64.b64encode(np.ascontiguousarray(array).tobytes()).decode())
        return f"{self.named('base64', 'b64decode')}({chr(10).join(map(repr, lines))})"


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.dtype != object


def _is_record(value: Any) -> bool:
    """Whether a value is that which its class makes of its fields, and the class has a name."""
    if isinstance(value, type) or _importable(type(value)) is None:
        return False
    if isinstance(value, tuple):
        return hasattr(value, "_fields")
    return dataclasses.is_dataclass(value) and _is_made_of_fields(value)


def _is_made_of_fields(value: Any) -> bool:
    takes = list(inspect.signature(type(value).__init__).parameters)[1:]
    return takes == [field.name for field in dataclasses.fields(value) if field.init]


def _fields(value: Any) -> dict[str, Any]:
    """The fields by name; a dataclass's without those that are as they are by default."""
    if isinstance(value, tuple):
        return value._asdict()  # type: ignore[attr-defined]
    fields = [field for field in dataclasses.fields(value) if field.init]
    return {one.name: own for one in fields if (own := getattr(value, one.name)) is not one.default}


# The first line whose question a value answers says how it is written.
_WRITERS: tuple[tuple[Any, Any], ...] = (
    (is_quantity, Expressions.quantity),
    (lambda value: isinstance(value, u.Unit), Expressions.unit),
    (lambda value: isinstance(value, jax.Array) and is_key(value.dtype), Expressions.key),
    (_is_array, Expressions.array),
    (lambda value: isinstance(value, (int, float)) and not isinstance(value, enum.Enum), Expressions.number),
    (lambda value: isinstance(value, np.dtype), Expressions.dtype),
    (lambda value: type(value) is dict, Expressions.mapping),
    (lambda value: type(value) in (list, tuple), Expressions.sequence),
    (lambda value: isinstance(value, functools.partial), Expressions.partial),
    (lambda value: isinstance(value, types.MethodType), Expressions.bound),
    (_is_record, Expressions.record),
)


def _importable(value: Any) -> tuple[str, str] | None:
    """The shortest module that a function or a class can be imported from, and its name there; None without one."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)) or module == "__main__":
        return None
    parts = module.split(".")
    candidates = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next(((one, name) for one in candidates if _looked_up(one, name) is value), None)


def _looked_up(module: str, name: str) -> Any:
    return functools.reduce(lambda found, part: getattr(found, part, None), name.split("."), sys.modules.get(module))


def _evaluated_unit(text: str) -> Any:
    try:
        return eval(text, {"__builtins__": {}, "brainunit": u})
    except (SyntaxError, TypeError, AttributeError):
        return None


def _described(value: Any) -> str:
    """What a value is, and where a function stands."""
    code = getattr(value, "__code__", None)
    if code is None:
        return f"{type(value).__qualname__} of {type(value).__module__}"
    return f"{value.__qualname__} of {value.__module__}, line {code.co_firstlineno}"
