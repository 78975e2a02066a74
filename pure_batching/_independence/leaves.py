"""A verdict for each leaf that the step of a batch computes."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax

from .._learning.learner import Learner
from .._program import Params, Perturbation, Program, States
from .._tree import Tree, with_lead
from .values import Along, Value
from .verdicts import Verdict, lost, verdicts

_DOUBLE = ("float64", "int64", "uint64", "complex128")


def leaf_verdicts(learner: Learner, step: Callable[..., Tree] | None = None, *own: Tree) -> dict[str, Verdict]:
    """Whether the samples are independent, for each leaf that a batched step computes, by name.

    Args:
      learner: of a batch of at least two samples.
      step: the function that is followed, by default the module's step, `learner.execute`.
      own: the specifications of the step's further arguments, `[B, ...]`.
    """
    with precision_of(learner.program):
        return _settled(learner, step or learner.execute, own)


def _settled(learner: Learner, step: Callable[..., Tree], own: tuple[Tree, ...]) -> dict[str, Verdict]:
    """The verdicts that hold at every step.

    A state that is kept once for the batch may have been reached by all samples in the step before. So the walk is
    repeated, each time with the verdicts of these states as their values, until none of them changes.
    """
    program, lead, once = learner.program, learner.lead, learner.strategy.kept_once(learner.source)
    states = with_lead(program.states, lead)._replace(shared=program.states.shared)
    perturbation = jax.eval_shape(learner.zero_perturbation)
    arguments = (program.params, states, with_lead(program.inputs, lead), perturbation)
    common: dict[str, Value] = dict.fromkeys(once)
    while True:
        places = [*_places(arguments, common), *(Along(0) for _ in jax.tree.leaves(own))]
        found = verdicts(step, (*arguments, *own), places)
        after = {path: common[path] or _once_after(path, found) for path in once}
        if after == common:
            return found
        common = after


def precision_of(program: Program) -> AbstractContextManager[Any]:
    """The context that traces a program in double precision if it was captured in double precision."""
    leaves = jax.tree.leaves((program.params, program.states, program.inputs))
    is_double = any(str(leaf.dtype) in _DOUBLE for leaf in leaves)
    return jax.enable_x64(new_val=True) if is_double else nullcontext()


def _places(arguments: tuple[Params, States, tuple[Tree, ...], Perturbation], once: Mapping[str, Value]) -> list[Value]:
    """Where the samples lie in each array of the arguments."""

    def each(tree: Tree, value: Value) -> list[Value]:
        return [value] * len(jax.tree.leaves(tree))

    params, states, inputs, perturbation = arguments
    other = [place for path in sorted(states.other) for place in each(states.other[path], once.get(path, Along(0)))]
    return [
        *each(params, None),
        *each(states.hidden, Along(0)),
        *other,
        *each(states.keys, Along(0)),
        *each(states.shared, None),
        *each((inputs, perturbation), Along(0)),
    ]


def _once_after(path: str, found: Mapping[str, Verdict]) -> Value:
    """The value of a state that is kept once after a step: the same for all samples, unless samples reached it."""
    own = [verdict for name, verdict in found.items() if name.startswith(f"other[{path!r}]")]
    return next((lost(verdict) for verdict in own if verdict.kind != "independent"), None)
