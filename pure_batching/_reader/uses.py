"""The uses of weights in a flat step: which of them a trace can follow to hidden states, and why not the others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..errors import CaptureError
from .constants import numbers_of
from .hidden import FoundGroup
from .jaxprs import JaxprEqn, Var
from .lines import place
from .loops import bodies, uses_inside
from .origins import is_stretched, lost_at
from .pieces import reads, spec_of_var, tainted_by
from .places import places_of, united
from .primitives import LOOPS
from .step import FlatStep


class End(NamedTuple):
    """A hidden group that a use reaches, and the arrangement of its elements; see `Link.places`."""

    group: FoundGroup
    places: np.ndarray | None


class FoundRelation(NamedTuple):
    """A use of a weight that has a trace, `x -> y = eqn(x, w) -> ends`; `x` is None for an element-wise weight."""

    x: Var | None
    y: Var
    ends: tuple[End, ...]


class FoundUse(NamedTuple):
    """An equation that reads a weight.

    Attributes:
      weight: the weight's path.
      eqn: the equation.
      relation: what has the trace; None where there is none.
      reason: why there is none.
      is_operation: whether this is a use of the weight by its own operation, which BrainScale counts when it decides
        whether a weight has a trace; it leaves out what reads the value in another way.
      has_gradient: whether the step has a derivative there.
      mixed: where traces are not strict, what its trace takes no account of; "" for a trace that is right.
    """

    weight: str
    eqn: JaxprEqn
    relation: FoundRelation | None
    reason: str
    is_operation: bool
    has_gradient: bool = True
    mixed: str = ""


def found_uses(step: FlatStep, groups: Sequence[FoundGroup]) -> tuple[FoundUse, ...]:
    """Every use of every weight, by path and then in the order of the equations."""
    return tuple(use for path in step.traced.of_kind("param") for use in _uses_of(step, groups, path))


def _uses_of(step: FlatStep, groups: Sequence[FoundGroup], path: str) -> list[FoundUse]:
    own = _names_of(step, path)
    reading = [eqn for eqn in step.eqns if reads(eqn, own) and eqn.primitive.name != "stop_gradient"]
    reason = step.traced.marks.why_untraced(path)
    if reason:  # one line stands for all: none of them could have a trace
        return [FoundUse(path, eqn, None, reason, is_operation=True) for eqn in reading[:1]]
    return [_use(step, groups, path, eqn) for eqn in reading]


def _names_of(step: FlatStep, path: str) -> set[Var]:
    """The variables of a weight's arrays, and of the same arrays without a gradient."""
    names = set(step.before[path])
    for eqn in step.eqns:
        if eqn.primitive.name == "stop_gradient" and reads(eqn, names):
            names.update(eqn.outvars)
    return names


def _use(step: FlatStep, groups: Sequence[FoundGroup], path: str, eqn: JaxprEqn) -> FoundUse:
    inside = next(uses_inside(eqn, step.traced.marks.is_use), None)
    if inside is not None and eqn.primitive.name in LOOPS:
        name = eqn.primitive.name
        if name == "while":
            _check_unreached(step, groups, path, eqn, inside)
        return FoundUse(path, inside, None, _IN_A_LOOP[name], is_operation=True, has_gradient=name != "while")
    if not step.is_use(eqn):
        is_operation = step.traced.marks.is_shared(path)
        return FoundUse(path, eqn, None, "the step reads it outside its operation", is_operation=is_operation)
    if _loop_inside(eqn) == "while":
        raise _not_differentiable(path, eqn, "")
    reason = _unsuitable(step, path, eqn)
    if reason:
        return FoundUse(path, eqn, None, reason, is_operation=True)
    return _related(step, groups, path, eqn)


def _check_unreached(step: FlatStep, groups: Sequence[FoundGroup], path: str, loop: JaxprEqn, inside: JaxprEqn) -> None:
    """Raise CaptureError for a weight that moves hidden states, and would learn nothing."""
    reached = tainted_by(step.eqns, loop.outvars)
    hidden = [group.paths[0] for group in groups if reached.intersection(group.after)]
    if hidden:
        raise _not_differentiable(path, inside, f", which reaches {hidden[0]}")


def _not_differentiable(path: str, inside: JaxprEqn, reached: str) -> CaptureError:
    line = place(inside)
    return CaptureError(
        path,
        got="a use inside a while loop" + (f" at {line}" if line else "") + reached,
        expected="one that a gradient can reach, since JAX has no reverse derivative of a while loop",
        repair="Use jax.lax.scan, or jax.lax.fori_loop with fixed bounds; keep what is not to learn in a "
        "brainstate.ShortTermState.",
    )


def _loop_inside(eqn: JaxprEqn) -> str:
    """The loop or branch that a marked use is; "" for any other."""
    names = (inside.primitive.name for body in bodies(eqn) for inside in body.eqns)
    return next((name for name in names if name in LOOPS), "")


_IN_A_LOOP = {
    "scan": "its use is inside a scan or a loop",
    "cond": "its use is inside a cond or a switch",
    "while": "its use is inside a while loop, of which JAX has no reverse derivative",
}


def _inputs_of(step: FlatStep, path: str, eqn: JaxprEqn) -> list[Any]:
    """The variables that a use reads besides the weight; a number is part of its operation."""
    params = {var for p in step.traced.of_kind("param") for var in step.before[p]}
    own = params if step.traced.marks.is_shared(path) else set(step.before[path])
    return list(dict.fromkeys(atom for atom in eqn.invars if isinstance(atom, Var) and atom not in own))


def _unsuitable(step: FlatStep, path: str, eqn: JaxprEqn) -> str:
    """Why an operation is none of the form `y = op(x, w)`; "" where it is."""
    if _loop_inside(eqn):
        return _IN_A_LOOP[_loop_inside(eqn)]
    others = [p for p in step.traced.of_kind("param") if p != path and not step.traced.marks.why_untraced(p)]
    shared = [p for p in others if reads(eqn, set(step.before[p]))]
    if shared and not step.traced.marks.is_shared(path):
        return f"its operation also uses {shared[0]}"
    if len(eqn.outvars) != 1:
        return f"its operation has {len(eqn.outvars)} results"
    inputs = _inputs_of(step, path, eqn)
    return f"its operation has {len(inputs)} inputs besides the weight" if len(inputs) > 1 else ""


def _is_float(var: Var) -> bool:
    return bool(jnp.issubdtype(spec_of_var(var).dtype, jnp.floating))


def _related(step: FlatStep, groups: Sequence[FoundGroup], path: str, eqn: JaxprEqn) -> FoundUse:
    """A use of the form `y = op(x, w)`, with its trace where `y` reaches a hidden state that it fits."""
    x, (y,) = next(iter(_inputs_of(step, path, eqn)), None), eqn.outvars
    if not jnp.issubdtype(spec_of_var(y).dtype, jnp.inexact):
        return FoundUse(path, eqn, None, f"its output is {spec_of_var(y).dtype}, no float", is_operation=True)
    reached = tainted_by(step.eqns, [y], step.is_blocked)
    near = [group for group in groups if reached.intersection(group.after)]
    if step.traced.is_strict:
        ends, reason = _followed(step, y, near, reached)
    else:
        ends, reason = step.traced.marks.is_shared(path) and _arranged(step, y, near, reached), ""
        ends = ends or [End(g, None) for g in near if any(_fits(y, var, g) for var in reached.intersection(g.after))]
    if ends and step.traced.marks.is_shared(path) and x is not None and not _is_float(x):
        return FoundUse(path, eqn, None, f"its input is {spec_of_var(x).dtype}, no float", is_operation=True)
    if ends:
        needed = None if step.traced.marks.is_additive(eqn) else x
        mixed = "" if step.traced.is_strict else _mixed(step, y, ends, reached)
        return FoundUse(path, eqn, FoundRelation(needed, y, tuple(ends)), "", is_operation=True, mixed=mixed)
    reason = reason or (_misfit(y, near[0]) if near else _unreached(step, groups, y))
    return FoundUse(path, eqn, None, reason, is_operation=True)


def _followed(step: FlatStep, y: Var, near: Sequence[FoundGroup], reached: set[Any]) -> tuple[list[End], str]:
    """The groups whose elements are each made of one element of `y`, or why there is none.

    What is reached through a new state of such a group alone is left to that state's learning signal: a trace of it
    would count the way twice.
    """
    found = {group.name: _end(step, y, group, reached) for group in near}
    followed = [group for group in near if found[group.name] is not None]
    ends = []
    for group in near:
        others = [other for other in followed if other is not group]
        if not _reaches(step, [y], group, others):
            continue
        end = found[group.name]
        if end is None:
            return [], _lost(step, y, group)
        twice = next((one for one in others if _reaches(step, one.after, group, ())), None)
        if twice is not None:
            return [], f"its output reaches {group.paths[0]} by itself and through {twice.paths[0]}"
        ends.append(end)
    return ([], _two_ways(ends)) if _is_mixed(y, ends) else (ends, "")


def _reaches(step: FlatStep, sources: Sequence[Var], group: FoundGroup, others: Sequence[FoundGroup]) -> bool:
    """Whether variables reach a group within the step, by a way that passes no new state of others."""
    passed = {var for other in others for var in other.after}

    def is_blocked(eqn: JaxprEqn) -> bool:
        return step.is_blocked(eqn) or not passed.isdisjoint(eqn.outvars)

    return not tainted_by(step.eqns, sources, is_blocked).isdisjoint(group.after)


def _end(step: FlatStep, y: Var, group: FoundGroup, reached: set[Any]) -> End | None:
    """A group with the place of each element of `y`, without it if `y` is broadcast to its states; None for others."""
    states = reached.intersection(group.after)
    numbers = numbers_of(step.closed)
    whole = united([places_of(step.eqns, y, var, step.is_blocked, numbers) for var in states])
    if whole is not None and not any(group.widths):
        return End(group, _unless_same(whole, group, step.traced.lead))
    return End(group, None) if _is_in_place(step, y, group, reached) else None


def _is_in_place(step: FlatStep, y: Var, group: FoundGroup, reached: set[Any]) -> bool:
    """Whether each element of a group is made of that element of `y` which broadcasting puts there, or of none."""
    states, numbers = reached.intersection(group.after), numbers_of(step.closed)
    lead = step.traced.lead
    return all(is_stretched(step.eqns, y, var, group.varshape, lead, step.is_blocked, numbers) for var in states)


def _mixed(step: FlatStep, y: Var, ends: Sequence[End], reached: set[Any]) -> str:
    """Why a trace that has `y` broadcast to some groups is not right; "" where it is."""
    stretched = (end.group for end in ends if end.places is None)
    group = next((one for one in stretched if not _is_in_place(step, y, one, reached)), None)
    if group is None:
        return ""
    is_mixed = _end(step, y, group, reached) is None
    return _lost(step, y, group) if is_mixed else f"its output reaches {group.paths[0]} in another order"


def _unless_same(places: np.ndarray, group: FoundGroup, lead: int) -> np.ndarray | None:
    """The places, or None where each element stays in its place; what is the same for a batch of one lacks its axes."""
    shapes = (group.varshape, group.varshape[lead:])
    is_same = places.shape in shapes and np.array_equal(places.reshape(-1), np.arange(places.size))
    return None if is_same else np.maximum(places, 0)


def _is_mixed(y: Var, ends: Sequence[End]) -> bool:
    """Whether some ends are arranged in another way, and `y` is broadcast to others."""
    is_arranged = any(end.places is not None for end in ends)
    return is_arranged and any(end.places is None and end.group.varshape != spec_of_var(y).shape for end in ends)


def _two_ways(ends: Sequence[End]) -> str:
    """The reason of ends that `_is_mixed` finds."""
    arranged, broadcast = (
        next(end.group.paths[0] for end in ends if (end.places is None) == is_broadcast)
        for is_broadcast in (False, True)
    )
    return f"its output reaches {arranged} in another order, and is broadcast to {broadcast}"


def _lost(step: FlatStep, y: Var, group: FoundGroup) -> str:
    """Why the elements of a use are not followed to a group."""
    mixing = lost_at(step.eqns, y, group.after, step.is_blocked, numbers_of(step.closed))
    line = "" if mixing is None else place(mixing)
    way = f"is mixed or copied at {line} before it reaches" if line else "does not reach"
    return f"its output {way} {group.paths[0]}" + ("" if line else " element by element")


def _arranged(step: FlatStep, y: Var, near: Sequence[FoundGroup], reached: set[Any]) -> list[End]:
    """The groups with the place of each element of `y` among their states; none unless all places are known."""
    ends, numbers = [], numbers_of(step.closed)
    for group in near:
        states = reached.intersection(group.after)
        whole = united([places_of(step.eqns, y, var, step.is_blocked, numbers) for var in states])
        if whole is None or any(group.widths):
            return []
        ends.append(End(group, _unless_same(whole, group, step.traced.lead)))
    return [] if _is_mixed(y, ends) else ends


def _fits(y: Var, state: Var, group: FoundGroup) -> bool:
    """Whether an output is broadcast to a hidden state, by BrainScale's rule and element by element."""
    shape = spec_of_var(y).shape
    return _is_broadcast(shape, spec_of_var(state).shape) and _is_broadcast(shape, group.varshape, to_second=True)


def _is_broadcast(shape: tuple[int, ...], other: tuple[int, ...], *, to_second: bool = False) -> bool:
    try:
        whole = jnp.broadcast_shapes(shape, other)
    except ValueError:
        return False
    return whole == tuple(other) or not to_second


def _misfit(y: Var, group: FoundGroup) -> str:
    shape, state = (tuple(spec_of_var(var).shape) for var in (y, group.after[0]))
    return f"its output of shape {shape} does not fit {group.paths[0]} of shape {state}"


def _unreached(step: FlatStep, groups: Sequence[FoundGroup], y: Var) -> str:
    anyhow = tainted_by(step.eqns, [y])
    if not any(anyhow.intersection(group.after) for group in groups):
        return "its output reaches no hidden state"
    way = tainted_by(step.eqns, [y], step.is_blocked)
    wall = next(eqn for eqn in step.eqns if step.is_blocked(eqn) and reads(eqn, way))
    kind = "another weight's use" if step.is_use(wall) else "a stop_gradient"
    line = place(wall)
    return f"its output reaches hidden states only through {kind}" + (f" at {line}" if line else "")
