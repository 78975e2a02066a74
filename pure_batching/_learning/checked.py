"""Checks of arguments that are remembered: a call like the one before costs microseconds."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from .compiled import kept

if TYPE_CHECKING:
    from .learner import Learner

Found = TypeVar("Found")


def checked(learner: "Learner", check: Callable[..., Found], *args: Any, **flags: Any) -> Found:
    """`check(learner, *args, **flags)`, under the settings of the capture.

    A check looks at structures, shapes and dtypes, never at numbers. Where it gave the arrays back as they were, in
    another structure, arguments like these get that structure at once. Whatever a check converts, or refuses, is not
    remembered.
    """
    numerics = learner.source.numerics.for_arguments()
    leaves, structure = jax.tree.flatten((args, flags))
    known: dict[Any, Any] = kept(learner, dict, checked, check)
    key = numerics, structure, tuple(map(_kind, leaves))
    found = _looked_up(known, key)
    if found is not None:
        made, places = found
        return jax.tree.unflatten(made, [leaves[place] for place in places])
    with numerics.in_force():
        result = check(learner, *args, **flags)
    _remember(known, key, leaves, result)
    return result


def _kind(leaf: Any) -> Any:
    """What a check sees of an array. What is no array is equal to itself alone."""
    if isinstance(leaf, (jax.Array, np.ndarray)):
        return isinstance(leaf, jax.Array), leaf.shape, leaf.dtype
    return object()


def _looked_up(known: dict[Any, Any], key: Any) -> Any:
    """None also for a structure that has no hash, which the check will refuse."""
    try:
        return known.get(key)
    except TypeError:
        return None


def _remember(known: dict[Any, Any], key: Any, leaves: list[Any], result: Any) -> None:
    results, made = jax.tree.flatten(result)
    place_of = {id(leaf): place for place, leaf in enumerate(leaves) if isinstance(leaf, (jax.Array, np.ndarray))}
    # An array that was given twice does not say which of its places a result is from.
    if len(place_of) == len(leaves) and all(id(leaf) in place_of for leaf in results):
        known[key] = made, [place_of[id(leaf)] for leaf in results]
