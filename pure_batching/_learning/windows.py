"""How a sequence is cut into windows."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._algorithms.base import Trace
from .._options import is_count
from .._program import Jacobians, Params, States
from .._reader.early import cut_step
from .._tree import Tree, nbytes, with_lead
from ..errors import OptionError
from .compiled import kept
from .learner import Learner

# The bytes that a window may keep, unless a user says otherwise.
BUDGET = 256 * 2**20

# What the steps of a window keep is read again at its end, and is then still in the cache of most processors.
_CACHED = 8 * 2**20

# The end of a window reads and writes the trace of all samples. Its steps should keep so many times more.
_AMORTISED = 8


class Windows(NamedTuple):
    """What a user asked for.

    Attributes:
      length: the number of steps of a window; None for the rule of `chosen`.
      budget: with None, the bytes that a window may keep.
    """

    length: int | None = None
    budget: int = BUDGET

    @classmethod
    def of(cls, window: Any, budget: Any) -> "Windows":
        """The options of a driver; OptionError for what is no positive integer."""
        if window is not None:
            _check_count("window", window, "None or an integer >= 1", "Give a number of steps.")
        _check_count("budget", budget, "an integer >= 1", "Give a number of bytes.")
        return cls(None if window is None else int(window), int(budget))

    def fitting(self, learner: Learner, time: int) -> int:
        """The largest length that the budget allows, or the one asked for.

        Where the gradient depends on the window, the length is not ours to choose: it is the whole sequence.
        """
        if self.length is not None:
            return min(self.length, time)
        if learner.algorithm.depends_on_window:
            return time
        stacked, once = _kept_bytes(learner)
        if time * stacked <= self.budget:
            return time
        # Between windows, the trace and what replaces it are held besides.
        left = max(self.budget - 2 * once, self.budget // 4)
        return max(1, min(time, left // max(stacked, 1)))

    def chosen(self, learner: Learner, time: int) -> int:
        """The length of the windows of a gradient.

        Without a length asked for: what the steps of a window keep has `_CACHED` bytes, or `_AMORTISED` times as many
        as the trace where that is more, and at most the budget. Where the trace is made of all steps at the end of
        their window, that takes as long as the gradient does, and one window needs no trace: then as many as the budget
        allows. Windows are made equally long where they can be, since a last one of another length is a program of its
        own.
        """
        largest = self.fitting(learner, time)
        if self.length is not None or learner.algorithm.depends_on_window:
            return largest
        if _makes_trace_at_end(learner):
            return equal_length(time, largest)
        stacked, once = _kept_bytes(learner)
        wanted = max(_CACHED, _AMORTISED * once) // max(stacked, 1)
        return equal_length(time, max(1, min(largest, wanted)))


def has_large_traces(learner: Learner) -> bool:
    """Whether the traces of all samples are larger than a cache."""
    return _kept_bytes(learner)[1] > _CACHED


def _makes_trace_at_end(learner: Learner) -> bool:
    """Whether the steps of a window leave the trace as it is, so that the window's end makes it."""

    def look() -> bool:
        program, algorithm = learner.program, learner.algorithm
        is_same: list[bool] = []

        def of_step(params: Params, *step: Any) -> None:
            before = algorithm.init(program)
            after = _first_step(learner, params, before, *step)[1][0]
            is_same.extend(a is b for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))

        jax.eval_shape(of_step, *_step_specs(learner))
        return all(is_same)

    return kept(learner, look, _makes_trace_at_end)


def _check_count(name: str, value: Any, expected: str, repair: str) -> None:
    if not is_count(value):
        raise OptionError(name, got=repr(value), expected=expected, repair=repair)


def equal_length(time: int, length: int) -> int:
    """A length of about `length` and not more, that divides the time or leaves a little less than a window."""
    for divisor in range(length, 3 * length // 4, -1):
        if time % divisor == 0:
            return divisor
    count = -(-time // length)
    return -(-time // count)


def _kept_bytes(learner: Learner) -> tuple[int, int]:
    """The bytes that each step of all samples keeps until the end of its window, and those of the traces."""

    def count() -> tuple[int, int]:
        stacked, once = ((learner.batch_size or 1) * nbytes(spec) for spec in _kept_specs(learner))
        return stacked + nbytes(_early_products(learner)), once

    return kept(learner, count, _kept_bytes)


def _kept_specs(learner: Learner) -> tuple[Tree, Tree]:
    """The specifications of what each step of one sample keeps until the end of its window, and of the trace.

    A step keeps its record, and at the end of the window the factors that are made of it, their terms and the adjoints.
    """
    program, algorithm = learner.program, learner.algorithm

    def of_step(params: Params, *step: Any) -> tuple[Tree, Tree]:
        trace = algorithm.init(program)
        jacobians, record = _first_record(learner, params, *step)
        parts = algorithm.window_gradient(program, params, trace, jax.tree.map(lambda x: x[None], record))
        made = [factors.dys for factors in parts.factors]
        stacked = jacobians if algorithm.credit == "window" else ()
        return (record, stacked, made, made, made), trace

    return jax.eval_shape(of_step, *_step_specs(learner))


def _early_products(learner: Learner) -> list[jax.ShapeDtypeStruct]:
    """The specifications of what a step of all samples multiplies before the steps."""

    def products(params: Params, states: States, inputs: tuple[Tree, ...]) -> list[jax.Array]:
        def step(states: States, inputs: tuple[Tree, ...]) -> Any:
            return learner.execute(params, states, inputs, learner.zero_perturbation())

        cut = cut_step(jax.make_jaxpr(step)(states, inputs), len(jax.tree.leaves(states)))
        return cut.early(*jax.tree.leaves(inputs))

    inputs = with_lead(learner.program.inputs, learner.lead)
    return jax.eval_shape(products, learner.program.params, learner.carry_spec().states, inputs)


def record_spec(learner: Learner) -> Tree:
    """The specification of the record of one step of one sample."""
    return jax.eval_shape(partial(_first_record, learner), *_step_specs(learner))[1]


def _step_specs(learner: Learner) -> tuple[Any, ...]:
    program = learner.program
    return program.params, program.states, program.inputs, program.derivatives


def _first_record(learner: Learner, params: Params, *step: Any) -> tuple[Jacobians, Any]:
    """The derivatives and the record of a step from a fresh start, without a learning signal."""
    jacobians, (_, record) = _first_step(learner, params, learner.algorithm.init(learner.program), *step)
    return jacobians, record


def _first_step(
    learner: Learner, params: Params, trace: Trace, states: States, inputs: tuple[Tree, ...], jacobians: Jacobians
) -> tuple[Jacobians, tuple[Trace, Any]]:
    """The derivatives of such a step, and the trace and the record after it."""
    program, algorithm = learner.program, learner.algorithm
    if algorithm.derivatives is not None:
        jacobians = algorithm.derivatives(program, params, states, inputs, jacobians)
    signal = program.signal(program.zero_perturbation(is_complete=algorithm.is_complete))
    return jacobians, algorithm.step(program, params, trace, jacobians, signal, jnp.zeros((), jnp.int32))
