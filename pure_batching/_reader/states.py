"""The states of a step by duty."""

from collections.abc import Iterable
from typing import Any

import jax

from .._program import States
from .._tree import Tree
from .jaxprs import Literal
from .pieces import tainted_by
from .step import FlatStep, Kind, TracedStep


def split_states(step: FlatStep) -> States:
    """The carried states by duty; `shared` are those that neither a weight nor anything of a sample can reach."""
    traced = step.traced
    sources = [*step.closed.jaxpr.invars[: len(jax.tree.leaves(traced.inputs))]]
    kinds: tuple[Kind, ...] = ("hidden", "key", "param")
    sources += [var for kind in kinds for path in traced.of_kind(kind) for var in step.before[path]]
    others, own = traced.of_kind("other"), set[str]()
    while True:
        tainted = tainted_by(step.eqns, sources + [var for path in own for var in step.before[path]])
        reached = {path for path in others if _is_reached(step.after[path], tainted)} | own
        if reached == own:
            break
        own = reached

    def pick(paths: Iterable[str]) -> dict[str, Tree]:
        return {path: traced.states[path] for path in paths}

    shared = [path for path in others if path not in own]
    return States(pick(traced.of_kind("hidden")), pick(sorted(own)), pick(traced.of_kind("key")), pick(shared))


def with_duties_of(single: States, traced: TracedStep) -> States:
    """The states of a batched step, each with the duty that it has for one sample."""
    return States(*({path: traced.states[path] for path in field} for field in single))


def _is_reached(results: Iterable[Any], tainted: set[Any]) -> bool:
    return any(not isinstance(var, Literal) and var in tainted for var in results)
