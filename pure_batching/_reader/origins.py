"""From which element of a weight's product each element of a hidden state is made, and where that is lost.

`places` follows each element of a product to the one hidden element that it reaches. An element that is copied reaches
several, as one number does that a whole layer reads: then each hidden element is followed back to the one element that
it is made of.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .constants import Numbers, numbers_inside
from .jaxprs import ClosedJaxpr, JaxprEqn, Literal, Var, inner, scan_parts
from .pieces import reads, spec_of_var, tainted_by
from .places import NOWHERE, followed_through, moved_numbers, stays_in_place, united
from .primitives import called, moved_operands

# For each element of a variable the index of the product's element that it is made of, -1 for none; None for a variable
# with an element that is made of several, or in a way that is not followed.
Origins = np.ndarray | None


def is_stretched(
    eqns: Iterable[JaxprEqn],
    y: Var,
    state: Var,
    varshape: tuple[int, ...],
    lead: int,
    is_blocked: Callable[[JaxprEqn], bool],
    numbers: Numbers,
) -> bool:
    """Whether each element of a state is made of that element of `y` which broadcasting puts there, or of none.

    Args:
      eqns: of the step.
      y: the product.
      state: a new hidden state, `[*varshape]`, or several along a last axis.
      varshape: the shape that `y` is broadcast to.
      lead: how many axes in front are of samples; `y` may have them or not.
      is_blocked: which equations are not followed.
      numbers: what is known of the step's variables before it runs.
    """
    found = _origins((eqn for eqn in eqns if not is_blocked(eqn)), {y: _counted(y)}, numbers).get(state)
    if found is None:
        return False
    columns = found.reshape(*varshape, -1)
    return any(
        bool(((columns == wanted[..., None]) | (columns == NOWHERE)).all())
        for wanted in (_broadcast(_counted(y), varshape, own) for own in {0, lead})
        if wanted is not None
    )


def arrives_once(eqn: JaxprEqn, var: Var, numbers: Numbers) -> bool:
    """Whether each element of an operand reaches one element of each result at most, which is made of no other.

    Args:
      eqn: an equation, which may be a call, a loop or a branch.
      var: the operand.
      numbers: what is known of the step's variables before it runs.
    """
    found = _origins([eqn], {var: _counted(var)}, numbers)
    return all(_is_of_different(found[result]) for result in eqn.outvars)


def _is_of_different(origins: Origins) -> bool:
    if origins is None:
        return False
    met = origins[origins >= 0]
    return len(np.unique(met)) == len(met)


def lost_at(
    eqns: Sequence[JaxprEqn],
    y: Var,
    states: Iterable[Var],
    is_blocked: Callable[[JaxprEqn], bool],
    numbers: Numbers,
) -> JaxprEqn | None:
    """The first equation on the way to a state behind which `y` cannot be followed; None if there is none."""
    open_eqns = [eqn for eqn in eqns if not is_blocked(eqn)]
    forward = followed_through(open_eqns, {y: np.arange(math.prod(spec_of_var(y).shape))}, numbers)
    back = _origins(open_eqns, {y: _counted(y)}, numbers)
    wanted = set(states)
    for eqn in open_eqns:
        lost = [var for var in eqn.outvars if var in back and back[var] is None and forward[var] is None]
        if lost and tainted_by(open_eqns, lost) & wanted:
            return eqn
    return None


def _broadcast(numbers: np.ndarray, shape: tuple[int, ...], lead: int) -> np.ndarray | None:
    """An array whose first `lead` axes stay, broadcast to a shape behind them; None where that cannot be."""
    missing = len(shape) - numbers.ndim
    try:
        return np.broadcast_to(np.expand_dims(numbers, tuple(range(lead, lead + missing))), shape)
    except ValueError:
        return None


def _counted(var: Var) -> np.ndarray:
    shape = spec_of_var(var).shape
    return np.arange(math.prod(shape)).reshape(shape)


def _origins(eqns: Iterable[JaxprEqn], start: dict[Any, Origins], numbers: Numbers) -> dict[Any, Origins]:
    """The origins of every variable that depends on those of `start`."""
    known = dict(start)
    for eqn in eqns:
        if reads(eqn, known):
            given = [
                _absent(atom) if isinstance(atom, Literal) else known.get(atom, _absent(atom)) for atom in eqn.invars
            ]
            results = [None] * len(eqn.outvars) if any(one is None for one in given) else _through(eqn, given, numbers)
            known.update(zip(eqn.outvars, results, strict=True))
    return known


def _absent(atom: Any) -> np.ndarray:
    return np.full(spec_of_var(atom).shape, NOWHERE)


def _through(eqn: JaxprEqn, given: Sequence[Any], numbers: Numbers) -> Sequence[Origins]:
    body = called(eqn)
    if moved_operands(eqn):
        return _moved(eqn, given, numbers)
    if body is not None:
        return _inside(body, given, numbers_inside(body, eqn.invars, numbers))
    if eqn.primitive.name == "scan":
        return _rounds(eqn, given, numbers)
    if eqn.primitive.name == "cond":
        operands = eqn.invars[1:]
        branches = [
            _inside(branch, given[1:], numbers_inside(branch, operands, numbers)) for branch in eqn.params["branches"]
        ]
        return [united(column) for column in zip(*branches, strict=True)]
    are_reached = [bool((one >= 0).any()) for one in given]
    if not stays_in_place(eqn, are_reached):
        return [None] * len(eqn.outvars)
    met = [one for one, is_reached in zip(given, are_reached, strict=True) if is_reached] or [given[0]]
    return [united([np.broadcast_to(one, spec_of_var(var).shape) for one in met]) for var in eqn.outvars]


def _moved(eqn: JaxprEqn, given: Sequence[Any], numbers: Numbers) -> Sequence[Origins]:
    ways = [moved_numbers(eqn, k, one, numbers) for k, one in enumerate(given) if (one >= 0).any()]
    known = [way for way in ways if way is not None]
    if len(known) < len(ways):
        return [None] * len(eqn.outvars)
    return [united(column) for column in zip(*known, strict=True)] or [_absent(var) for var in eqn.outvars]


def _inside(body: ClosedJaxpr, given: Sequence[Any], numbers: Numbers) -> list[Origins]:
    jaxpr, _ = inner(body)
    start = {var: one for var, one in zip(jaxpr.invars, given, strict=True) if (one >= 0).any()}
    known = _origins(jaxpr.eqns, start, numbers)
    return [_absent(atom) if isinstance(atom, Literal) else known.get(atom, _absent(atom)) for atom in jaxpr.outvars]


def _rounds(eqn: JaxprEqn, given: Sequence[Any], numbers: Numbers) -> list[Origins]:
    """The origins behind a loop: those of its carry are made until another round adds none."""
    consts, count = scan_parts(eqn)
    first, carry, rows = given[:consts], list(given[consts : consts + count]), given[consts + count :]
    if any((one >= 0).any() for one in rows):  # each round reads another row
        return [None] * len(eqn.outvars)
    body, one_row = eqn.params["jaxpr"], [one[0] if len(one) else one.reshape(one.shape[1:]) for one in rows]
    same = numbers_inside(body, eqn.invars[:consts], numbers)
    while True:
        made = _inside(body, [*first, *carry, *one_row], same)
        new = [one for pair in zip(carry, made[:count], strict=True) if (one := united(pair)) is not None]
        if len(new) < count:
            return [None] * len(eqn.outvars)
        if all(np.array_equal(*pair) for pair in zip(new, carry, strict=True)):
            break
        carry = new
    stacked = zip(made[count:], eqn.outvars[count:], strict=True)
    return [*new, *(None if one is None else np.broadcast_to(one, spec_of_var(var).shape) for one, var in stacked)]
