"""What BrainScale's compiler found, in plain data, and the Program that is built from it."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxpr_as_fun

from .._program import Group, Link, Relation, States, WeightInput, WeightLeaf
from .._tree import Tree
from ..errors import CaptureError
from .alignment import aligned_axes, is_product
from .pieces import Piece, cut_piece, order_of, reachable, spec_of_var, tainted_by


class FoundGroup(NamedTuple):
    """A hidden group: states, and the equations from the old ones to the new ones."""

    paths: tuple[str, ...]
    widths: tuple[int, ...]
    invars: tuple[Var, ...]
    outvars: tuple[Var, ...]
    eqns: tuple[JaxprEqn, ...]

    @property
    def name(self) -> str:
        return ", ".join(self.paths)


class FoundRelation(NamedTuple):
    """One use of a weight: the equation that uses it, and the equations from its result to each hidden group.

    `derivative` is the operation's own `(x, dy, *mantissas of w) -> dw`, None where that of the equation serves.
    """

    weight: str
    weight_vars: tuple[Var, ...]
    leaf_names: tuple[str, ...]
    gradient: str
    x: Var | None
    y: Var
    operation: JaxprEqn
    links: tuple[tuple[str, tuple[JaxprEqn, ...]], ...]
    derivative: ClosedJaxpr | None = None


class Compiled(NamedTuple):
    """A compiled step.

    Attributes:
      closed: inputs, states and perturbations -> outputs, states, and what follows.
      output: the specification of the step's result.
      order: the states in the jaxpr's order.
      specs: the specification of each state.
      kinds: "param", "hidden", "key" or "other" for each state.
      perturbations: the variable that is added to each hidden state.
      direct: the weights with an ordinary within-step gradient.
      is_blocked: the equations that no eligibility trace follows.
    """

    closed: ClosedJaxpr
    num_inputs: int
    output: Tree
    order: tuple[str, ...]
    specs: dict[str, Tree]
    kinds: dict[str, str]
    perturbations: dict[str, Var]
    groups: tuple[FoundGroup, ...]
    relations: tuple[FoundRelation, ...]
    direct: tuple[str, ...]
    is_blocked: Callable[[JaxprEqn], bool]

    @property
    def num_outputs(self) -> int:
        """How many arrays the step's result holds."""
        return len(jax.tree.leaves(self.output))

    def state_vars(self) -> tuple[dict[str, list[Var]], dict[str, list[Var]]]:
        """The variables of each state before and after the step."""
        before, after = self.closed.jaxpr.invars[self.num_inputs :], self.closed.jaxpr.outvars[self.num_outputs :]
        ins, outs, start = {}, {}, 0
        for path in self.order:
            stop = start + len(jax.tree.leaves(self.specs[path]))
            ins[path], outs[path] = list(before[start:stop]), list(after[start:stop])
            start = stop
        return ins, outs


def split_states(compiled: Compiled) -> States:
    """The carried states by duty; `shared` are those that nothing of a sample can reach."""
    ins, outs = compiled.state_vars()
    by_kind = {
        kind: sorted(p for p in compiled.order if compiled.kinds[p] == kind) for kind in ("hidden", "key", "other")
    }
    sources = [*compiled.closed.jaxpr.invars[: compiled.num_inputs]]
    sources += [var for kind in ("hidden", "key") for path in by_kind[kind] for var in ins[path]]
    own: set[str] = set()
    while True:
        tainted = tainted_by(compiled.closed.jaxpr, sources + [var for path in own for var in ins[path]])
        reached = {path for path in by_kind["other"] if any(var in tainted for var in outs[path])} | own
        if reached == own:
            break
        own = reached

    def pick(paths: Sequence[str]) -> dict[str, Tree]:
        return {path: compiled.specs[path] for path in paths}

    shared = [path for path in by_kind["other"] if path not in own]
    return States(pick(by_kind["hidden"]), pick(sorted(own)), pick(by_kind["key"]), pick(shared))


class Assembly:
    """Puts what was found into an order that is the same in every process, and cuts it out of the step."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.order = order_of(compiled.closed.jaxpr)
        self.groups = sorted(compiled.groups, key=lambda group: group.name)
        self.found = sorted(compiled.relations, key=lambda relation: self.order[relation.y])
        self.names = use_names([relation.weight for relation in self.found])
        self.transitions = [self._transition(group) for group in self.groups]
        self.withins = [self._within(group) for group in self.groups]
        self.links = [[(self._position(name), self._link(r, name, eqns)) for name, eqns in r.links] for r in self.found]
        self.temporaries = self._temporaries()

    def program_groups(self) -> tuple[Group, ...]:
        return tuple(
            Group(
                name=found.name,
                paths=found.paths,
                widths=found.widths,
                varshape=_varshape(found),
                dtype=spec_of_var(found.outvars[0]).dtype,
                transition=transition.bind(self.temporaries),
                within=None if within is None else within.bind(self.temporaries),
            )
            for found, transition, within in zip(self.groups, self.transitions, self.withins, strict=True)
        )

    def program_relations(self, groups: tuple[Group, ...]) -> tuple[Relation, ...]:
        return tuple(self._relation(i, groups) for i in range(len(self.found)))

    def step(self) -> Callable[..., list[jax.Array]]:
        """Inputs, states, perturbations by sorted path -> outputs, states, temporaries."""
        jaxpr = self.compiled.closed.jaxpr
        kept = len(jaxpr.invars) - len(self.compiled.perturbations)
        perturbations = [self.compiled.perturbations[path] for path in sorted(self.compiled.perturbations)]
        results = jaxpr.outvars[: self.compiled.num_outputs + self._num_state_leaves()]
        whole = Jaxpr(
            jaxpr.constvars,
            [*jaxpr.invars[:kept], *perturbations],
            [*results, *self.temporaries],
            jaxpr.eqns,
            jaxpr.effects,
        )
        return jaxpr_as_fun(ClosedJaxpr(whole, self.compiled.closed.consts))

    def _num_state_leaves(self) -> int:
        return sum(len(jax.tree.leaves(self.compiled.specs[path])) for path in self.compiled.order)

    def _transition(self, group: FoundGroup) -> Piece:
        return cut_piece(group.eqns, group.invars, group.outvars, self.order)

    def _link(self, relation: FoundRelation, name: str, eqns: tuple[JaxprEqn, ...]) -> Piece:
        return cut_piece(eqns, [relation.y], self.groups[self._position(name)].outvars, self.order)

    def _within(self, group: FoundGroup) -> Piece | None:
        """From the perturbations of a group to its new states; None where each reaches its own state only."""
        cut = [self.compiled.perturbations[path] for path in group.paths]
        eqns = reachable(self.compiled.closed.jaxpr.eqns, cut, self.compiled.is_blocked)
        piece = cut_piece(eqns, cut, group.outvars, self.order)
        return piece if len(piece.jaxpr.eqns) > len(group.paths) else None

    def _position(self, name: str) -> int:
        return [group.name for group in self.groups].index(name)

    def _temporaries(self) -> list[Var]:
        pieces = [*self.transitions, *(piece for links in self.links for _, piece in links)]
        pieces += [within for within in self.withins if within is not None]
        wanted = {var for piece in pieces for var in (*piece.free, *piece.cut)}
        wanted |= {relation.x for relation in self.found if relation.x is not None}
        return sorted(wanted, key=self.order.__getitem__)

    def _relation(self, i: int, groups: tuple[Group, ...]) -> Relation:
        found, links = self.found[i], sorted(self.links[i], key=lambda link: link[0])
        reached = [groups[position] for position, _ in links]
        y = _hidden_spec(found, self.names[i], reached)
        return Relation(
            name=self.names[i],
            weight=found.weight,
            x=self._weight_input(found),
            y=y,
            op=_operation(found, y),
            leaves=_leaves(found, y),
            gradient=found.gradient,
            links=tuple(
                Link(f"{self.names[i]} -> {group.name}", group, piece.bind(self.temporaries))
                for group, (_, piece) in zip(reached, links, strict=True)
            ),
        )

    def _weight_input(self, found: FoundRelation) -> WeightInput | None:
        if found.x is None:
            return None
        first = next(i for i, other in enumerate(self.found) if other.x is found.x)
        return WeightInput(self.names[first], _trace_spec(found.x, found.y), self.temporaries.index(found.x))


def _hidden_spec(found: FoundRelation, name: str, reached: list[Group]) -> jax.ShapeDtypeStruct:
    """The output as it meets the hidden states: a smaller one is broadcast to their shape."""
    shapes = {group.varshape for group in reached}
    if len(shapes) > 1:
        raise CaptureError(
            name,
            got=f"hidden states of the shapes {sorted(shapes)} behind one use of the weight",
            expected="hidden states of one shape",
            repair="Use a weight for each of them.",
        )
    return jax.ShapeDtypeStruct(shapes.pop(), spec_of_var(found.y).dtype)


def _operation(found: FoundRelation, y: jax.ShapeDtypeStruct) -> Callable[..., jax.Array]:
    """`(x, *mantissas of w) -> y`, from the equation that used the weight."""
    evaluate = jaxpr_as_fun(found.operation.params["jaxpr"])
    places = {id(var): i + 1 for i, var in enumerate(found.weight_vars)}
    arguments = [places.get(id(var), 0) for var in found.operation.invars]

    def operation(*values: Any) -> jax.Array:
        return evaluate(*(values[i] for i in arguments))[0]

    derived = operation if found.derivative is None else _with_derivative(operation, found.derivative)
    return lambda *values: jnp.broadcast_to(derived(*values), y.shape)


def _with_derivative(operation: Callable[..., jax.Array], derivative: ClosedJaxpr) -> Callable[..., jax.Array]:
    """The operation, differentiated with respect to its weight by a function of the user's own."""
    own = jax.custom_vjp(operation)

    def forward(*values: Any) -> tuple[jax.Array, Any]:
        return operation(*values), values

    def backward(values: Any, dy: jax.Array) -> tuple[Any, ...]:
        x, *leaves = values
        return None, *jaxpr_as_fun(derivative)(*(() if x is None else (x,)), dy, *leaves)

    own.defvjp(forward, backward)
    return own


def _leaves(found: FoundRelation, y: jax.ShapeDtypeStruct) -> tuple[WeightLeaf, ...]:
    inner = found.operation.params["jaxpr"].jaxpr
    inside = {id(given): var for given, var in zip(found.operation.invars, inner.invars, strict=True)}
    x = None if found.x is None else inside[id(found.x)]
    is_broadcast = spec_of_var(found.y).shape != y.shape
    leaves = []
    for name, given in zip(found.leaf_names, found.weight_vars, strict=True):
        var = None if is_broadcast else inside.get(id(given))
        axes = None if var is None else aligned_axes(inner, var)
        is_derived = found.derivative is None
        is_factor = is_derived and var is not None and x is not None and is_product(inner, x, var)
        leaves.append(WeightLeaf(name, spec_of_var(given), axes, is_factor))
    return tuple(leaves)


def _trace_spec(x: Var, y: Var) -> jax.ShapeDtypeStruct:
    """The trace of a bool or integer input is kept in the dtype of the weight's output."""
    spec = spec_of_var(x)
    dtype = spec.dtype if jnp.issubdtype(spec.dtype, jnp.inexact) else spec_of_var(y).dtype
    return jax.ShapeDtypeStruct(spec.shape, dtype)


def _varshape(group: FoundGroup) -> tuple[int, ...]:
    shape = tuple(spec_of_var(group.outvars[0]).shape)
    return shape[:-1] if group.widths[0] else shape


def use_names(weights: list[str]) -> list[str]:
    """A weight used once gives its path as the name; used more often, the path and the number of the use."""
    total, seen, names = Counter(weights), Counter[str](), []
    for weight in weights:
        names.append(weight if total[weight] == 1 else f"{weight}#{seen[weight]}")
        seen[weight] += 1
    return names
