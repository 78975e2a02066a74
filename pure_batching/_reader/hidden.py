"""Hidden states: each gets an equation and a perturbation of its own, and those that lead to each other are a group."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .assertions import without_passed_assertions
from .flat import equations_of, flat
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, program
from .loops import differentiable, without_weights
from .marks import Marks
from .pieces import spec_of_var, tainted_by
from .step import FlatStep, TracedStep
from .written_out import written_out


class FoundGroup(NamedTuple):
    """Hidden states that depend on each other from one step to the next, sorted by path."""

    paths: tuple[str, ...]
    widths: tuple[int, ...]
    before: tuple[Var, ...]
    after: tuple[Var, ...]

    @property
    def name(self) -> str:
        """The paths, joined."""
        return ", ".join(self.paths)

    @property
    def varshape(self) -> tuple[int, ...]:
        """The shape of one state; several in one array lie along its last axis."""
        return _varshape(self.after[0], self.widths[0])


def _varshape(var: Var, width: int) -> tuple[int, ...]:
    shape = tuple(spec_of_var(var).shape)
    return shape[:-1] if width else shape


def flattened(traced: TracedStep) -> FlatStep:
    """A traced step with its calls opened, and a perturbation for each hidden state."""
    opened = without_passed_assertions(flat(traced.jaxpr, traced.marks.is_use))
    before, after = traced.variables(opened.jaxpr)
    eqns = [part for eqn in opened.jaxpr.eqns for part in _plain(eqn, traced.marks)]
    after = _with_own_results(traced, opened.jaxpr, after, eqns)
    perturbations = {path: Var(after[path][0].aval) for path in traced.of_kind("hidden")}
    eqns = _perturbed(eqns, {after[path][0]: var for path, var in perturbations.items()})
    results = opened.jaxpr.outvars[: len(jax.tree.leaves(traced.output))]
    outputs = [*results, *(var for path in traced.states for var in after[path])]
    inputs = [*opened.jaxpr.invars, *perturbations.values()]
    plain = program(opened.jaxpr.constvars, inputs, outputs, eqns, opened.jaxpr)
    whole = written_out(plain)
    followed = tuple(_as_followed(*pair, traced.marks) for pair in zip(plain.eqns, whole.eqns, strict=True))
    return FlatStep(traced, ClosedJaxpr(whole, opened.consts), followed, before, after, perturbations)


def _as_followed(plain: JaxprEqn, written: JaxprEqn, marks: Marks) -> JaxprEqn:
    """An equation as traces follow it; a use where one begins stays, as `operation_of` writes it out in two forms."""
    return plain if marks.is_use(plain) and not marks.is_followed(plain) else without_weights(written, marks)


def _plain(eqn: JaxprEqn, marks: Marks) -> list[JaxprEqn]:
    """A use of a weight with a variable for each operand; any other equation, differentiable."""
    if not marks.is_use(eqn):
        return differentiable(eqn, marks)
    before, operands = [], []
    for atom in eqn.invars:
        made, operand = equations_of(jnp.copy, atom) if isinstance(atom, Literal) else ([], atom)
        before += made
        operands.append(operand)
    return [*before, eqn.replace(invars=operands)]


def _with_own_results(
    traced: TracedStep, jaxpr: Jaxpr, after: Mapping[str, list[Any]], eqns: list[JaxprEqn]
) -> dict[str, list[Any]]:
    """The variables after the step, copied for a hidden state whose result is an input, a number or another state's."""
    taken: set[Any] = {*jaxpr.invars, *jaxpr.constvars}
    new = dict(after)
    for path in traced.of_kind("hidden"):
        (result,) = after[path]
        if isinstance(result, Literal) or result in taken:
            copies, result = equations_of(jnp.copy, result)
            eqns += copies
        taken.add(result)
        new[path] = [result]
    return new


def _perturbed(eqns: list[JaxprEqn], perturbation_of: Mapping[Var, Var]) -> list[JaxprEqn]:
    """The equations with `h + perturbation` in place of each new hidden state `h`."""
    perturbed: list[JaxprEqn] = []
    for eqn in eqns:
        raw = {var: Var(var.aval) for var in eqn.outvars if var in perturbation_of}
        perturbed.append(eqn.replace(outvars=[raw.get(var, var) for var in eqn.outvars]) if raw else eqn)
        perturbed += [_sum(raw[var], perturbation_of[var], var) for var in raw]
    return perturbed


def _sum(one: Var, other: Var, result: Var) -> JaxprEqn:
    (eqn,), _ = equations_of(jax.lax.add, one, other)
    return eqn.replace(outvars=[result])


def found_groups(step: FlatStep) -> tuple[FoundGroup, ...]:
    """The hidden groups, sorted by name.

    Two states are of one group where one of them leads to the other from one step to the next, by equations that a
    trace follows, and both have one shape. A state that none leads to is alone. Where traces are strict, two states are
    of one group too where the new value of one leads to that of the other, so that this way counts once.
    """
    is_strict = step.traced.is_strict
    paths = step.traced.of_kind("hidden")
    shape = {path: _varshape(step.hidden(path)[1], step.traced.widths[path]) for path in paths}
    members = {path: {path} for path in paths}
    for path in paths:
        before, after = step.hidden(path)
        reached = tainted_by(step.eqns, [before, after] if is_strict else [before], step.is_blocked)
        for other in paths:
            if step.hidden(other)[1] in reached and shape[other] == shape[path]:
                _unite(members, path, other)
    groups = {id(group): sorted(group) for group in members.values()}
    return tuple(sorted((_group(step, group) for group in groups.values()), key=lambda group: group.name))


def _unite(members: dict[str, set[str]], one: str, other: str) -> None:
    united = members[one] | members[other]
    members.update(dict.fromkeys(united, united))


def _group(step: FlatStep, paths: list[str]) -> FoundGroup:
    before, after = zip(*(step.hidden(path) for path in paths), strict=True)
    return FoundGroup(tuple(paths), tuple(step.traced.widths[path] for path in paths), before, after)
