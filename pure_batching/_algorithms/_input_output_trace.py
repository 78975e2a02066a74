"""Traces of a weight's input and of its output, and their outer products."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._program import Jacobians, Program, Signal
from .._relation import Relation
from ._hyperparameters import Number, beside
from ._signals import own_signals, past_hidden
from .base import Factors


class InputOutputTrace(NamedTuple):
    """The trace of ES_D_RTRL and OTTT.

    Attributes:
      xs: a decaying sum of each weight's input, `[..., *x.shape]`, by the relation that reads it first.
      dfs: `dh/dy`, smoothed with ES_D_RTRL, as in `Jacobians`.
    """

    xs: dict[str, jax.Array]
    dfs: dict[str, jax.Array]


def zeros(program: Program) -> InputOutputTrace:
    """The trace before the first step."""
    return InputOutputTrace(
        {name: jnp.zeros(x.spec.shape, x.spec.dtype) for name, x in program.weight_inputs().items()},
        {link.df: jnp.zeros(link.shape, link.group.dtype) for link in program.links()},
    )


def outer_products(program: Program, trace: InputOutputTrace, signal: dict[str, jax.Array]) -> Factors:
    """The input traces, and `dy = sum_s df L` by the end of relations that reach a group with a signal."""
    dys = {}
    for relation in {one.end: one for one in program.relations}.values():
        links = [link for link in relation.links if link.group.name in signal]
        terms = [(trace.dfs[link.df] * link.seen(signal[link.group.name])).sum(-1) for link in links]
        if terms:
            dys[relation.end] = (sum(terms[1:], terms[0]),)
    return Factors(trace.xs, dys)


def complete_step(
    program: Program, jacobians: Jacobians, before: InputOutputTrace, after: InputOutputTrace, signal: Signal
) -> tuple[Factors, Factors, Factors]:
    """The whole gradient of a step: by the new hidden states, by the old ones, and past all of them.

    Args:
      program: the program of one sample.
      jacobians: of the step.
      before: the trace of the old hidden states.
      after: the trace of the new ones.
      signal: of the step.
    """
    own = own_signals(program, jacobians, signal)
    past = past_hidden(program, jacobians, own, signal)
    of_products = Factors(jacobians.xs, {name: (dy,) for name, dy in past.items()})
    return outer_products(program, after, own), outer_products(program, before, signal.old), of_products


def by_relation(program: Program, parts: tuple[Factors, ...]) -> tuple[Factors, ...]:
    """Factors by the name of each relation, from those by the end of relations, which a window keeps once."""
    return tuple(
        part._replace(dys={one.name: part.dys[one.end] for one in program.relations if one.end in part.dys})
        for part in parts
    )


def present(*parts: Factors) -> tuple[Factors, ...]:
    """The parts that name the end of a relation."""
    return tuple(part for part in parts if part.dys)


def decayed(decay: Number, xs: dict[str, jax.Array], new: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`decay eps_x + x` of each input."""
    return {name: beside(decay, eps) * eps + new[name] for name, eps in xs.items()}


def traces_of(relation: Relation, trace: InputOutputTrace) -> dict[str, jax.Array]:
    """The trace of the input, and one of the output for each hidden group."""
    inputs = {} if relation.x is None else {"x": trace.xs[relation.x.name]}
    return inputs | {f"df of {link.group.name}": trace.dfs[link.df] for link in relation.links}
