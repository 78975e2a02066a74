"""Where each element of a weight's product arrives among the hidden states.

The product of a cell is split into gates, reshaped or transposed before it meets the states. As long as each of its
elements reaches one hidden element at most, its trace follows that element.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from .constants import Numbers, numbers_inside
from .jaxprs import ClosedJaxpr, JaxprEqn, Literal, Var, inner
from .pieces import reads, spec_of_var
from .primitives import CHANGING, ELEMENT_WISE, called, moved_operands

# Of an element that arrives nowhere, and of one that comes from nowhere.
NOWHERE = -1


def places_of(
    eqns: Iterable[JaxprEqn], y: Var, state: Var, is_blocked: Callable[[JaxprEqn], bool], numbers: Numbers
) -> np.ndarray | None:
    """For each element of `y` the index of the element of a flattened state that it reaches, -1 where it reaches none.

    Args:
      eqns: of the step.
      y: the product.
      state: a new hidden state.
      is_blocked: which equations are not followed.
      numbers: what is known of the step's variables before it runs.

    Returns:
      `[*y.shape]`, or None where an element reaches several, or by a way that is not followed.
    """
    size = math.prod(spec_of_var(y).shape)
    known = followed_through((eqn for eqn in eqns if not is_blocked(eqn)), {y: np.arange(size)}, numbers)
    found = known.get(state)
    return None if found is None else found.reshape(spec_of_var(y).shape)


def followed_through(
    eqns: Iterable[JaxprEqn], start: dict[Any, np.ndarray | None], numbers: Numbers
) -> dict[Any, np.ndarray | None]:
    """The places in every variable that depends on those of `start`; None where one is not known."""
    known, size = dict(start), len(next(one for one in start.values() if one is not None))
    for eqn in eqns:
        if reads(eqn, set(known)):
            given = [None if isinstance(atom, Literal) else known.get(atom, _absent(size)) for atom in eqn.invars]
            results = [None] * len(eqn.outvars) if _are_unknown(eqn, given) else _through(eqn, given, numbers)
            known.update(zip(eqn.outvars, results, strict=True))
    return known


def united(places: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Numbers of the same elements by several ways; None where one is not known, or two differ."""
    if not places or any(one is None for one in places):
        return None
    whole = np.max(np.stack([one for one in places if one is not None]), 0)
    agrees = all(((one == whole) | (one == NOWHERE)).all() for one in places if one is not None)
    return whole if agrees else None


def is_element_wise(eqn: JaxprEqn) -> bool:
    """Whether an equation, or each of those in a call, works element by element."""
    body = called(eqn)
    if body is not None:
        return all(is_element_wise(inside) for inside in body.jaxpr.eqns)
    return eqn.primitive.name in ELEMENT_WISE


def stays_in_place(eqn: JaxprEqn, are_reached: Sequence[bool]) -> bool:
    """Whether what arrives at some of an equation's operands is in the same places of its results."""
    return is_element_wise(eqn) or (eqn.primitive.name in CHANGING and not any(are_reached[1:]))


def _absent(size: int) -> np.ndarray:
    return np.full(size, NOWHERE)


def _are_unknown(eqn: JaxprEqn, given: Sequence[np.ndarray | None]) -> bool:
    atoms = zip(eqn.invars, given, strict=True)
    return any(places is None for atom, places in atoms if not isinstance(atom, Literal))


def _through(eqn: JaxprEqn, given: Sequence[np.ndarray | None], numbers: Numbers) -> list[np.ndarray | None]:
    operands = [(atom, places) for atom, places in zip(eqn.invars, given, strict=True) if places is not None]
    reaching = [(atom, places) for atom, places in operands if (places >= 0).any()]
    if not reaching:
        return [_absent(len(operands[0][1]))] * len(eqn.outvars)
    if moved_operands(eqn):
        return _moved(eqn, given, numbers)
    if eqn.primitive.name == "reduce_sum":
        return [_summed(eqn, places) for places in given]
    body = called(eqn)
    if body is not None:
        return _inside(body, given, numbers_inside(body, eqn.invars, numbers))
    shapes = {tuple(spec_of_var(atom).shape) for atom, _ in reaching}
    is_whole = stays_in_place(eqn, [places is not None and bool((places >= 0).any()) for places in given])
    if not is_whole or any(tuple(spec_of_var(var).shape) not in shapes for var in eqn.outvars):
        return [None] * len(eqn.outvars)
    whole = united([places for _, places in reaching]) if len(shapes) == 1 else None
    return [whole] * len(eqn.outvars)


def _summed(eqn: JaxprEqn, places: np.ndarray | None) -> np.ndarray | None:
    """The places after a sum over some axes: elements that are added up arrive at one."""
    shape, axes = spec_of_var(eqn.invars[0]).shape, eqn.params["axes"]
    totals = np.arange(math.prod(spec_of_var(eqn.outvars[0]).shape)).reshape(spec_of_var(eqn.outvars[0]).shape)
    arrival = np.broadcast_to(np.expand_dims(totals, axes), shape).reshape(-1)
    if places is None:
        return None
    return np.where(places >= 0, arrival.take(places, mode="clip") if arrival.size else NOWHERE, NOWHERE)


def _inside(body: ClosedJaxpr, given: Sequence[np.ndarray | None], numbers: Numbers) -> list[np.ndarray | None]:
    jaxpr, _ = inner(body)
    pairs = zip(jaxpr.invars, given, strict=True)
    start = {var: places for var, places in pairs if places is not None and (places >= 0).any()}
    known = followed_through(jaxpr.eqns, dict(start), numbers)
    size = len(next(iter(start.values())))
    return [_absent(size) if isinstance(atom, Literal) else known.get(atom, _absent(size)) for atom in jaxpr.outvars]


def _moved(eqn: JaxprEqn, given: Sequence[np.ndarray | None], numbers: Numbers) -> list[np.ndarray | None]:
    """The places after elements were moved, found by moving their numbers."""
    ways: list[list[np.ndarray | None]] = []
    for k, places in enumerate(given):
        if places is not None and (places >= 0).any():
            arrived = moved_numbers(eqn, k, np.arange(math.prod(spec_of_var(eqn.invars[k]).shape)), numbers)
            if arrived is None:
                return [None] * len(eqn.outvars)
            ways.append([_followed(places, one.reshape(-1)) for one in arrived])
    return [united(column) for column in zip(*ways, strict=True)]


def moved_numbers(eqn: JaxprEqn, k: int, elements: np.ndarray, numbers: Numbers) -> list[np.ndarray] | None:
    """What the results of a moving equation hold.

    Args:
      eqn: the equation.
      k: one of its operands.
      elements: the numbers of that operand's elements; -1 for one that does not count.
      numbers: what is known of the step's variables before it runs.

    Returns:
      For each result the numbers of its elements, -1 for one of another operand and for what fills a gap; None where
      it is not known at capture what goes where.
    """
    specs, moved = [spec_of_var(atom) for atom in eqn.invars], moved_operands(eqn)
    operands: list[Any] = [np.full(spec.shape, NOWHERE, np.int32) for spec in specs]
    operands[k] = elements.astype(np.int32).reshape(specs[k].shape)
    for i in set(range(len(operands))) - set(moved):
        operands[i] = numbers(eqn.invars[i])
    if k not in moved or any(one is None for one in operands) or _writes_twice(eqn, operands):
        return None
    return _results(eqn, operands)


def _results(eqn: JaxprEqn, operands: Sequence[Any]) -> list[np.ndarray]:
    params = {name: NOWHERE if name == "fill_value" else value for name, value in eqn.params.items()}
    with jax.ensure_compile_time_eval():
        results = eqn.primitive.bind(*operands, **params)
    return [np.asarray(one) for one in (results if eqn.primitive.multiple_results else [results])]


def _writes_twice(eqn: JaxprEqn, operands: Sequence[Any]) -> bool:
    """Whether a scatter may write twice to one place: JAX does not say which element stays there."""
    if eqn.primitive.name != "scatter" or eqn.params["unique_indices"]:
        return False
    operand, indices, updates = operands
    each = np.arange(updates.size, dtype=np.int32).reshape(updates.shape)
    (written,) = _results(eqn, [np.full_like(operand, NOWHERE), indices, each])
    return int((written >= 0).sum()) < updates.size


def _followed(places: np.ndarray, numbers: np.ndarray) -> np.ndarray | None:
    """Where elements at `places` arrive when element `numbers[i]` becomes element `i`; None if one is copied."""
    kept = numbers >= 0
    arriving, times = np.unique(numbers[kept], return_counts=True)
    if np.isin(arriving[times > 1], places).any():
        return None
    after = np.full(max(int(places.max(initial=0)), int(numbers.max(initial=0))) + 1, NOWHERE)
    after[numbers[kept]] = np.flatnonzero(kept)
    return np.where(places >= 0, after[np.maximum(places, 0)], NOWHERE)
