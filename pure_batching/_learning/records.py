"""What a step leaves to the trace, and what it leaves to the end of its window, as specifications of one sample."""

from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from .._algorithms.base import Record, Trace
from .._program import Jacobians, Params, Signal, States
from .._tree import Tree

if TYPE_CHECKING:
    from .learner import Learner


class Given(NamedTuple):
    """What a trace follows at a step: the arguments of `Algorithm.step` behind the trace.

    Attributes:
      jacobians: the derivatives of the step.
      signal: the learning signal; None where the loss goes another way back, for zeros.
      update_count: the number of updates before this one.
    """

    jacobians: Jacobians
    signal: Signal | None
    update_count: jax.Array


def trace_spec(learner: "Learner") -> Trace:
    """The specification of the trace, in the type in which the rule computes it."""
    return jax.eval_shape(lambda: learner.algorithm.init(learner.program))


def given_spec(learner: "Learner") -> Given:
    """The specification of what a trace follows at a step."""
    program, derivatives = learner.program, learner.algorithm.derivatives

    def first(params: Params, states: States, inputs: tuple[Tree, ...], jacobians: Jacobians) -> Given:
        if derivatives is not None:
            jacobians = derivatives(program, params, states, inputs, jacobians)
        return Given(jacobians, no_signal(learner), jnp.zeros((), jnp.int32))

    return jax.eval_shape(first, program.params, program.states, program.inputs, program.derivatives)


def record_spec(learner: "Learner") -> Record:
    """The specification of the record of a step."""

    def record(params: Params, trace: Trace, given: Given) -> Record:
        return step_given(learner, params, trace, given)[1]

    return jax.eval_shape(record, learner.program.params, trace_spec(learner), given_spec(learner))


def step_given(learner: "Learner", params: Params, trace: Trace, given: Given) -> tuple[Trace, Record]:
    """`Algorithm.step` of one sample."""
    signal = no_signal(learner) if given.signal is None else given.signal
    return learner.algorithm.step(learner.program, params, trace, given.jacobians, signal, given.update_count)


def no_signal(learner: "Learner") -> Signal:
    """The learning signal of a loss that no hidden state reaches, of one sample."""
    program = learner.program
    return program.signal(program.zero_perturbation(is_complete=learner.algorithm.is_complete))
