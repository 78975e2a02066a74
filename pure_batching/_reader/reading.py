"""A traced step as a Program: what was found in it, in an order that is the same in every process."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from .._precision import common_float, in_float
from .._program import Params, Perturbation, Program, Use, Way
from .._relation import Group, Link, Relation, WeightInput
from .._tree import named_leaves
from ..errors import CaptureError
from .bypass import Bypass, found_bypass
from .callbacks import ordered_callback, unmapped_callback
from .executing import executable
from .hidden import FoundGroup, flattened, found_groups
from .jacobians import Parts, specs_of
from .jaxprs import Var
from .lines import place
from .operations import leaves_of, operation_of
from .pieces import Piece, cut_piece, order_of, reachable, reads, spec_of_var
from .states import split_states, with_duties_of
from .step import FlatStep, TracedStep
from .sums import sum_of
from .uses import End, FoundRelation, FoundUse, found_uses


def read(traced: TracedStep, params: Params, single: Program | None = None) -> Program:
    """A traced step as a program.

    Args:
      traced: the step.
      params: the specifications of all trainable values, of which the step may read some only.
      single: the program of one sample where the step is that of a batch; its states keep their duties.

    Raises:
      CaptureError: one use of a weight reaches hidden states of different shapes.
    """
    step = flattened(traced)
    found = found_groups(step)
    uses = found_uses(step, found)
    order = order_of(step.closed.jaxpr)
    related = _related(uses, order)
    dtype = common_float(_dtypes(step, found, related))
    groups = {one.name: _group(one, dtype) for one in found}
    derivative_of = traced.marks.derivative if single is None else _not_differentiated
    direct = tuple(path for path in traced.of_kind("param") if _is_direct(path, uses))
    ends = _ends(step, related, direct) if single is None else {one.name: one.end for one in single.relations}
    relations = _relations(step, related, ends, groups, dtype, derivative_of)
    states = split_states(step) if single is None else with_duties_of(single.states, traced)
    past = found_bypass(step, _past_hidden(step, relations, related, direct))
    temporaries, parts = _parts(step, found, groups, related, relations, past, order)
    return Program(
        inputs=traced.inputs,
        output=traced.output,
        params=params,
        states=states,
        direct=direct,
        groups=tuple(groups.values()),
        relations=relations,
        derivatives=specs_of(parts),
        uses=tuple(_reported(params, uses, related, relations)),
        past=_past_specs(step, related, past),
        ordered=ordered_callback(step.closed.jaxpr),
        unmapped=unmapped_callback(step.closed.jaxpr),
        axis_name=traced.axis_name,
        execute=executable(step, params, states, temporaries, parts, None if past is None else past.bind(temporaries)),
    )


def _past_hidden(
    step: FlatStep, relations: Sequence[Relation], related: Sequence["_Related"], direct: Sequence[str]
) -> dict[str, Var]:
    """What may reach the output past the new hidden states.

    The gradient of the step has that of a weight's product already, if some other use of the weight has no trace.
    """
    old = {path: step.hidden(path)[0] for path in step.traced.of_kind("hidden")}
    pairs = zip(relations, related, strict=True)
    return old | {r.name: one.relation.y for r, one in pairs if r.weight not in direct and r.end == r.name}


def _past_specs(step: FlatStep, related: Sequence["_Related"], past: Bypass | None) -> Perturbation:
    names = () if past is None else past.names
    old = {path: spec_of_var(step.hidden(path)[0]) for path in step.traced.of_kind("hidden") if path in names}
    products = {one.name: spec_of_var(one.relation.y) for one in related if one.name in names}
    return Perturbation({}, old, products)


def _group(found: FoundGroup, dtype: Any) -> Group:
    dtypes = tuple(spec_of_var(var).dtype for var in found.after)
    return Group(found.name, found.paths, found.widths, dtypes, found.varshape, dtype)


def _dtypes(step: FlatStep, found: Sequence[FoundGroup], related: Sequence["_Related"]) -> list[Any]:
    """Of whatever a trace is made of: hidden states, and the inputs, arrays and results of weights' uses."""
    ends = [var for one in related for var in (one.relation.x, one.relation.y) if var is not None]
    arrays = [var for one in related for var in step.before[one.use.weight]]
    return [spec_of_var(var).dtype for var in (*(var for one in found for var in one.after), *ends, *arrays)]


class _Related(NamedTuple):
    """A use with a trace, and its name among all relations."""

    name: str
    use: FoundUse
    relation: FoundRelation


def _related(uses: Sequence[FoundUse], order: Mapping[Var, int]) -> list[_Related]:
    """The uses with a trace, in the order of the step's equations."""
    found = [(use, use.relation) for use in uses if use.relation is not None]
    found.sort(key=lambda pair: order[pair[1].y])
    names = use_names([use.weight for use, _ in found])
    return [_Related(name, use, relation) for name, (use, relation) in zip(names, found, strict=True)]


def use_names(weights: Sequence[str]) -> list[str]:
    """A weight used once gives its path as the name; used more often, the path and the number of the use."""
    total, seen, names = Counter(weights), Counter[str](), []
    for weight in weights:
        names.append(weight if total[weight] == 1 else f"{weight}#{seen[weight]}")
        seen[weight] += 1
    return names


def _not_differentiated(*_: Any) -> None:
    """The operations of a batched step only run; weights are differentiated by those of one sample."""


def _ends(step: FlatStep, related: Sequence[_Related], direct: Sequence[str]) -> dict[str, str]:
    """The first relation with the same result, but for added terms of weights, by the name of each relation.

    A weight in `direct` has its part of each result in the gradient of the step, so that the others cannot share one.
    """
    first: dict[tuple[Var, bool], str] = {}
    keys = {one.name: (sum_of(step, one.relation.y), one.use.weight in direct) for one in related}
    return {name: first.setdefault(key, name) for name, key in keys.items()}


def _relations(
    step: FlatStep,
    related: Sequence[_Related],
    ends: Mapping[str, str],
    groups: Mapping[str, Group],
    dtype: Any,
    derivative_of: Callable[..., Any],
) -> tuple[Relation, ...]:
    first_reader: dict[Var, str] = {}
    for one in related:
        if one.relation.x is not None:
            first_reader.setdefault(one.relation.x, one.name)
    return tuple(
        _relation(step, one, ends.get(one.name, one.name), groups, first_reader, dtype, derivative_of)
        for one in related
    )


def _relation(
    step: FlatStep,
    one: _Related,
    end: str,
    groups: Mapping[str, Group],
    first_reader: Mapping[Var, str],
    dtype: Any,
    derivative_of: Callable[..., Any],
) -> Relation:
    weight, (x, y, reached) = one.use.weight, one.relation
    arrays, marks = list(step.before[weight]), step.traced.marks
    is_arranged = any(found.places is not None for found in reached)
    shape = tuple(spec_of_var(y).shape) if is_arranged else _shape_of_states(one.name, reached)
    spec = jax.ShapeDtypeStruct(shape, spec_of_var(y).dtype)
    derivative = derivative_of(weight, None if x is None else spec_of_var(x), spec_of_var(y))
    held = _held(step, one.use)
    others = [var for path in held for var in step.before[path]]
    operation = operation_of(one.use.eqn, x, arrays, others, shape, derivative, dtype)
    names = [name.strip("[]'.") or "weight" for name, _ in named_leaves(step.traced.states[weight], "")]
    return Relation(
        name=one.name,
        end=end,
        weight=weight,
        held=held,
        x=None if x is None else WeightInput(first_reader[x], _trace_spec(x, dtype)),
        own=spec_of_var(y),
        y=spec,
        op=operation,
        leaves=leaves_of(operation, x, names, arrays, y, dtype),
        gradient=marks.gradient(weight),
        links=tuple(
            Link(f"{one.name} -> {it.group.name}", f"{end} -> {it.group.name}", groups[it.group.name], it.places)
            for it in reached
        ),
    )


def _held(step: FlatStep, use: FoundUse) -> tuple[str, ...]:
    """The paths of the other weights that a use reads."""
    others = (path for path in step.traced.of_kind("param") if path != use.weight)
    return tuple(path for path in others if reads(use.eqn, set(step.before[path])))


def _shape_of_states(name: str, reached: Sequence[End]) -> tuple[int, ...]:
    """The shape of the hidden states behind a use, to which its output is broadcast."""
    shapes = {end.group.varshape for end in reached}
    if len(shapes) > 1:
        raise CaptureError(
            name,
            got=f"hidden states of the shapes {sorted(shapes)} behind one use of the weight",
            expected="hidden states of one shape",
            repair="Use a weight for each of them.",
        )
    return shapes.pop()


def _trace_spec(x: Var, dtype: Any) -> jax.ShapeDtypeStruct:
    """The trace of an input, of bools and integers too."""
    spec = spec_of_var(x)
    return jax.ShapeDtypeStruct(spec.shape, in_float(spec.dtype, dtype))


def _is_direct(path: str, uses: Sequence[FoundUse]) -> bool:
    """A weight gets the gradient of the step unless each of its operations has a trace, as BrainScale decides it."""
    operations = [use for use in uses if use.weight == path and use.is_operation]
    return not operations or any(use.relation is None for use in operations)


def _parts(
    step: FlatStep,
    found: Sequence[FoundGroup],
    groups: Mapping[str, Group],
    related: Sequence[_Related],
    relations: Sequence[Relation],
    past: Bypass | None,
    order: Mapping[Var, int],
) -> tuple[list[Var], Parts]:
    """The variables that a step leaves besides its results, and the parts that are evaluated at their values."""
    after = {one.name: one.after for one in found}
    pairs = zip(related, relations, strict=True)
    links = [(link, one.relation.y) for one, r in pairs if r.end == r.name for link in r.links]
    to_hidden = [(link, _cut(step, [y], after[link.group.name], order)) for link, y in links]
    transitions = [(groups[one.name], _cut(step, one.before, one.after, order)) for one in found]
    within = [(groups[one.name], piece) for one in found if (piece := _within(step, one, order)) is not None]
    inputs = {r.x.name: (one.relation.x, r.x.spec) for one, r in zip(related, relations, strict=True) if r.x}
    pieces = [piece for part in (to_hidden, transitions, within) for _, piece in part]
    wanted = {var for piece in pieces for var in (*piece.free, *piece.cut)} | {x for x, _ in inputs.values() if x}
    wanted |= set(() if past is None else past.piece.free)
    temporaries = sorted(wanted, key=order.__getitem__)
    return temporaries, Parts(
        xs={name: (temporaries.index(x), spec) for name, (x, spec) in inputs.items() if x is not None},
        to_hidden=tuple((link, piece.bind(temporaries)) for link, piece in to_hidden),
        transitions=tuple((group, piece.bind(temporaries)) for group, piece in transitions),
        within=tuple((group, piece.bind(temporaries)) for group, piece in within),
    )


def _cut(step: FlatStep, sources: Sequence[Var], results: Sequence[Var], order: Mapping[Var, int]) -> Piece:
    """What a trace follows from some variables of a step to others."""
    return cut_piece(reachable(step.eqns, sources, step.is_blocked), sources, results, order)


def _within(step: FlatStep, group: FoundGroup, order: Mapping[Var, int]) -> Piece | None:
    """From the perturbations of a group to its new states; None where each reaches its own state only."""
    sources = [step.perturbations[path] for path in group.paths]
    piece = _cut(step, sources, group.after, order)
    return piece if len(piece.jaxpr.eqns) > len(group.paths) else None


def _reported(
    params: Params, uses: Sequence[FoundUse], related: Sequence[_Related], relations: Sequence[Relation]
) -> list[Use]:
    """How each weight learns, by path and in the order of the step's equations."""
    relation_of = {id(one.use): relation for one, relation in zip(related, relations, strict=True)}
    rows = []
    for path in params:
        own = [use for use in uses if use.weight == path]
        is_direct = _is_direct(path, uses)
        rows += [_row(use, relation_of.get(id(use)), is_direct=is_direct) for use in own]
        if not own:
            rows.append(Use(path, "none", "", (), "", "the step does not read it"))
    return rows


def _row(use: FoundUse, relation: Relation | None, *, is_direct: bool) -> Use:
    if relation is not None:
        groups = tuple(link.group.name for link in relation.links)
        return Use(use.weight, "trace", relation.name, groups, place(use.eqn), "", use.mixed)
    has_gradient = is_direct and use.has_gradient
    way: Way = "gradient of the step" if has_gradient else "none"
    return Use(use.weight, way, "", (), place(use.eqn), use.reason)
