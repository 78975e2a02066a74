"""The pure function of a program: a flat step between trees, and its derivatives."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from .._program import Params, Perturbation, States, Step
from .._tree import Tree, strong
from .bypass import BoundBypass
from .jacobians import Parts, jacobians
from .jaxprs import ClosedJaxpr, Var, evaluate, program
from .step import FlatStep


def executable(
    step: FlatStep,
    params: Params,
    states: States,
    temporaries: Sequence[Var],
    parts: Parts,
    past: BoundBypass | None,
) -> Callable[[Params, States, tuple[Tree, ...], Perturbation], Step]:
    """`(params, states, inputs, perturbation) -> Step`, which keeps the equations and specifications alone."""
    whole = _with_temporaries(step.closed, temporaries)
    output, order, perturbed = step.traced.output, tuple(step.traced.states), tuple(step.perturbations)
    specs = {**params, **{path: spec for field in states for path, spec in field.items()}}
    # Several transformations of a step trace it again; its derivatives are traced once for all of them.
    derivatives = jax.jit(partial(jacobians, parts), inline=True)

    def execute(params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation) -> Step:
        values = {**params, **states.hidden, **states.other, **states.keys, **states.shared}
        added = [perturbation.hidden[path] for path in perturbed]
        results = evaluate(whole, *jax.tree.leaves((inputs, [values[path] for path in order], added)))
        if past is not None and (perturbation.old or perturbation.products):
            extra = {**perturbation.old, **perturbation.products}
            results = past.attached(
                results, [extra[name] for name in past.names], results[len(results) - len(temporaries) :]
            )
        result, left = _take(output, results)
        new = {}
        for path in order:
            new[path], left = _take(specs[path], left)
        after = States(*({path: new[path] for path in field} for field in states))
        return Step(result, after, derivatives(jax.lax.stop_gradient(left)))

    return execute


def _with_temporaries(step: ClosedJaxpr, temporaries: Sequence[Var]) -> ClosedJaxpr:
    jaxpr = step.jaxpr
    results = [*jaxpr.outvars, *temporaries]
    return ClosedJaxpr(program(jaxpr.constvars, jaxpr.invars, results, jaxpr.eqns, jaxpr), step.consts)


def _take(spec: Tree, arrays: list[Any]) -> tuple[Tree, list[Any]]:
    """A tree of the first arrays, and the other arrays."""
    leaves, treedef = jax.tree.flatten(spec)
    return strong(jax.tree.unflatten(treedef, arrays[: len(leaves)]), spec), arrays[len(leaves) :]
