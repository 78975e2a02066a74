"""Results that live as long as the object that they belong to."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def kept(function: F) -> F:
    """Keep each result of `function(owner, *args)` on the owner, so that it is computed once and freed with the owner.

    `functools.cache` would keep every owner, and all that it holds, for the life of the process.
    """
    name = f"kept results of {function.__qualname__}"

    @functools.wraps(function)
    def call(owner: Any, *args: Any) -> Any:
        results = vars(owner).setdefault(name, {})
        if args not in results:
            results[args] = function(owner, *args)
        return results[args]

    return call  # type: ignore[return-value]
