"""What reaches a step's output past its new hidden states: products of weights, and old hidden states."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .flat import equations_of
from .jaxprs import ClosedJaxpr, JaxprEqn, Literal, Var, program
from .pieces import Arrays, Piece, Slice, cut_piece, order_of, reachable, tainted_by
from .step import FlatStep


class Bypass(NamedTuple):
    """A part of a step from perturbations of products and old states to the outputs, its new hidden states held fixed.

    Attributes:
      names: of the perturbed variables.
      outputs: positions among the step's results of those that are reached.
      piece: the part, a function of the perturbations alone.
    """

    names: tuple[str, ...]
    outputs: tuple[int, ...]
    piece: Piece

    def bind(self, temporaries: Sequence[Var]) -> "BoundBypass":
        """The part that reads its variables from `temporaries`."""
        position = {var: i for i, var in enumerate(temporaries)}
        free = tuple(position[var] for var in self.piece.free)
        return BoundBypass(self.names, self.outputs, Slice(ClosedJaxpr(self.piece.jaxpr, ()), free, ()))


class BoundBypass(NamedTuple):
    """The same as a function of a step's temporaries."""

    names: tuple[str, ...]
    outputs: tuple[int, ...]
    piece: Slice

    def attached(self, results: list[Any], perturbations: Arrays, temporaries: Arrays) -> list[Any]:
        """The results of a step, in whose derivative the perturbations (which are zero) take part."""

        @jax.custom_vjp
        def same(reached: Arrays, perturbations: Arrays, temporaries: Arrays) -> Arrays:
            del perturbations, temporaries
            return reached

        def forward(*given: Arrays) -> tuple[Arrays, Any]:
            return given[0], given[1:]

        def backward(kept: Any, cotangents: Arrays) -> tuple[Any, ...]:
            perturbations, temporaries = kept
            fun, _ = self.piece.at(temporaries)
            _, pullback = jax.vjp(fun, *perturbations)
            return cotangents, list(pullback(cotangents)), None

        same.defvjp(forward, backward)
        held = jax.lax.stop_gradient(list(temporaries))
        reached = same([results[i] for i in self.outputs], list(perturbations), held)
        after = dict(zip(self.outputs, reached, strict=True))
        return [after.get(i, result) for i, result in enumerate(results)]


def found_bypass(step: FlatStep, sources: Mapping[str, Var]) -> Bypass | None:
    """What leads from variables of a step to its outputs past every new hidden state; None where nothing does.

    Args:
      step: the step.
      sources: the variables, by name.
    """
    new = {step.hidden(path)[1] for path in step.traced.of_kind("hidden")}
    outputs = step.closed.jaxpr.outvars[: len(jax.tree.leaves(step.traced.output))]
    past = [eqn for eqn in step.closed.jaxpr.eqns if not new.intersection(eqn.outvars)]
    leading = {name: var for name, var in sources.items() if _reached(outputs, tainted_by(past, [var], _has_none))}
    if not leading:
        return None
    eqns, perturbed, perturbations = _perturbed(past, leading)
    changed = [perturbed.get(atom, atom) if isinstance(atom, Var) else atom for atom in outputs]
    reached = _reached(changed, tainted_by(eqns, perturbations, _has_none))
    jaxpr = step.closed.jaxpr
    inputs = [*jaxpr.invars, *perturbations]
    order = order_of(program(jaxpr.constvars, inputs, (), [*_defining(step, new), *eqns]))
    piece = cut_piece(reachable(eqns, perturbations, _has_none), perturbations, [changed[i] for i in reached], order)
    return Bypass(tuple(leading), tuple(reached), piece)


def _has_none(eqn: JaxprEqn) -> bool:
    """Whether an equation has no reverse derivative."""
    return eqn.primitive.name in ("stop_gradient", "while")


def _defining(step: FlatStep, new: set[Var]) -> list[JaxprEqn]:
    """The equations that make the new hidden states, which the part reads as they are."""
    return [eqn for eqn in step.closed.jaxpr.eqns if new.intersection(eqn.outvars)]


def _reached(outputs: Sequence[Any], tainted: set[Any]) -> list[int]:
    """The positions of the outputs with a derivative among some variables."""
    return [
        i
        for i, atom in enumerate(outputs)
        if not isinstance(atom, Literal) and atom in tainted and jnp.issubdtype(atom.aval.dtype, jnp.floating)
    ]


def _perturbed(
    eqns: Sequence[JaxprEqn], sources: Mapping[str, Var]
) -> tuple[list[JaxprEqn], dict[Var, Var], list[Var]]:
    """The equations with `v + perturbation` in place of each source `v`, the sums, and the perturbations."""
    perturbations = [Var(var.aval) for var in sources.values()]
    sums = {var: _sum(var, extra) for var, extra in zip(sources.values(), perturbations, strict=True)}
    renamed = {var: made.outvars[0] for var, made in sums.items()}
    made_here = {var for eqn in eqns for var in eqn.outvars}
    perturbed = [made for var, made in sums.items() if var not in made_here]
    for eqn in eqns:
        operands = [renamed.get(atom, atom) if isinstance(atom, Var) else atom for atom in eqn.invars]
        perturbed.append(eqn.replace(invars=operands))
        perturbed += [sums[var] for var in eqn.outvars if var in sums]
    return perturbed, renamed, perturbations


def _sum(one: Var, other: Var) -> JaxprEqn:
    (eqn,), _ = equations_of(jax.lax.add, one, other)
    return eqn
