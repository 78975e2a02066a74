"""What an option may be."""

import numbers
from typing import TypeGuard

import numpy as np

from .errors import OptionError, PureBatchingError


def check_choice(
    name: str, value: object, choices: tuple[object, ...], error: type[PureBatchingError] = OptionError
) -> None:
    """Raise an error for a value that is none of the choices, or equals one of another type."""
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        expected = " or ".join(map(repr, choices))
        raise error(name, got=repr(value), expected=expected, repair="Choose one of them.")


def check_flag(name: str, value: object) -> None:
    """Raise OptionError for what is neither True nor False."""
    if not isinstance(value, np.bool_):
        check_choice(name, value, (False, True))


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value is an integer of one or more."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
