"""The laws of interchangeable strategies, each a function of a case that raises LawViolation where it does not hold.

    case = Case(subject, subject.params, Data(inputs, targets))
    laws.locality(case)

`ALL` holds them by name. A law that does not concern a case says why: `laws.mask_and_reset.excuse(case)`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from .._algorithms.bptt import BPTT
from .._algorithms.d_rtrl import D_RTRL
from .._algorithms.rtrl import RTRL
from .._carries import concat, gather, permute as permuted, scatter, split, stack, unstack
from .._learning.carry import apart
from .._tree import Tree
from ._altered import changed, joined, of_samples, poisoned, rows
from ._case import Case, Data, Function, Request, Result
from ._compare import Difference, Part, Total
from ._law import (
    Law as Law,
    LawViolation as LawViolation,
    Started,
    assert_same,
    bit_for_bit,
    exactly,
    law,
    natively,
)
from ._native_run import brainscale_runs_here, compiled, counterpart, native_result, native_round_trip, refusal
from ._stepped import begun_anew, stepped


def _one_step(case: Case) -> str | None:
    return "a sequence of one step has no parts" if case.data.steps == 1 else None


def _one_sample(case: Case) -> str | None:
    return "one sample has no others" if case.data.samples == 1 else None


def _coupled(case: Case) -> str | None:
    name = case.subject.axis_name
    return None if name is None else f"samples reach each other along the axis {name!r}"


def _no_counterpart(case: Case) -> str | None:
    learner = case.subject.learner
    if isinstance(case.subject.net_factory(), Function):
        return "a function is none of brainscale's modules"
    if counterpart(learner.algorithm) is None:
        return "only brainscale's single-step ES_D_RTRL and D_RTRL are compared with, by rule='brainscale'"
    spread = [one.weight for one in learner.program.relations if any(map(one.spread, one.leaves))]
    if learner.algorithm == D_RTRL() and spread:
        return f"brainscale's D_RTRL adds up the trace of {spread[0]!r}, whose elements each reach several outputs"
    return refusal(lambda: compiled(case.subject))


def _no_native_run(case: Case) -> str | None:
    if not brainscale_runs_here():
        return "brainscale cannot differentiate with this version of jax"
    return refusal(lambda: native_result(case))


def _not_exact(case: Case) -> str | None:
    exact_here = [D_RTRL(rule="published", vjp=vjp) for vjp in ("single-step", "multi-step")]
    is_exact = case.subject.is_exact and case.subject.algorithm in exact_here
    if is_exact or (isinstance(case.subject.algorithm, RTRL) and case.subject.algorithm.trace_dtype is None):
        return None
    return "RTRL is exact, and the published D_RTRL for modules said to be exact"


@law()
def init(case: Case) -> None:
    """Every strategy begins with the same carry, leaf by leaf, bit for bit."""
    want = Started(case.init(case.reference))
    for name in case.others:
        assert_same("init", name, Started(case.init(name)), want, bit_for_bit)


@law(_coupled, _one_sample)
def locality(case: Case) -> None:
    """What happens to a sample does not depend on the others, bit for bit: change or poison one, no other moves."""
    last = case.data.samples - 1
    kept = np.arange(last)
    for name in case.subject.names:
        want = of_samples(case.result(name), kept)
        for data in (changed(case.data, last), poisoned(case.data, last)):
            assert_same("locality", name, of_samples(case.run(name, data), kept), want, bit_for_bit)


@law()
def equality(case: Case) -> None:
    """Every strategy gives the same outputs, losses, gradients and carry as each sample alone."""
    for name in case.others:
        assert_same("equality", name, case.result(name), case.result(case.reference))
    if _is_stepped(case) and not _coupled(case):
        want = stepped(case, case.init(case.reference), case.data, {})
        assert_same("equality", f"{case.reference}, against step after step", case.result(case.reference), want)


@law(_one_step)
def swap(case: Case) -> None:
    """A carry made by one strategy is continued by another."""
    first, rest = _halves(case)
    part = Part(start=first.steps)
    want = case.run(case.reference, rest, case.run(case.reference, first).carry)
    for name in case.others:
        there = case.run(name, rest, case.run(case.reference, first).carry)
        assert_same("swap", f"{case.reference}, then {name}", there, want, part=part)
        back = case.run(case.reference, rest, case.run(name, first).carry)
        assert_same("swap", f"{name}, then {case.reference}", back, want, part=part)


@law(_coupled, _one_sample)
def algebra(case: Case) -> None:
    """Permuting, splitting and concatenating samples commutes with their gradients."""
    order = np.roll(np.arange(case.data.samples), 1)
    for name in case.subject.names:
        whole, carry = case.result(name), case.init(name)
        turned = case.run(name, case.data.of_samples(order), permuted(carry, order))
        assert_same("algebra", f"{name}, permuted", turned, of_samples(whole, order), part=Part(samples=order))
    name, sizes = case.subject.names[-1], [1, case.data.samples - 1]
    parts, ended = split(case.init(name), sizes), []
    for chosen, part in zip(rows(sizes), parts, strict=True):
        got = case.run(name, case.data.of_samples(chosen), part)
        assert_same("algebra", f"{name}, split", got, of_samples(case.result(name), chosen), part=Part(samples=chosen))
        ended.append(got.carry)
    assert_same("algebra", f"{name}, concatenated", case.run(name, carry=concat(parts)), case.result(name))
    assert_same("algebra", f"{name}, then concatenated", Started(concat(ended)), Started(case.result(name).carry))


@law()
def reduction(case: Case) -> None:
    """Gradients of samples add up to the summed gradient, and the mean is the sum over their number."""
    reductions = [(name, "sum", np.sum) for name in case.subject.names]
    for name, reduced, reduce in [*reductions, (case.subject.names[-1], "mean", np.mean)]:
        each = case.result(name)
        total = Total(jax.tree.map(lambda x, reduce=reduce: reduce(x, axis=0), each.gradients))
        got = case.run(name, request=Request(reduced, case.window))
        got, want = got._replace(gradients=Total(got.gradients)), each._replace(gradients=total)
        assert_same("reduction", f"{name}, reduction={reduced!r}", got, want)


@law(_one_step)
def time(case: Case) -> None:
    """Some steps and then the others equal all of them, at every window."""
    first, rest = _halves(case)
    for name in case.subject.names:
        whole, begun = case.result(name), case.run(name, first)
        ended = case.run(name, rest, begun.carry)
        assert_same("time", f"{name}, in two parts", joined(begun, ended), whole)
        for window in (1, case.data.steps) if _is_stepped(case) else ():
            got = case.run(name, request=Request("none", window))
            assert_same("time", f"{name}, window={window}", got, whole)


@law()
def round_trip(case: Case) -> None:
    """Carries taken apart and put together, and carried over to BrainScale and back, lose nothing."""
    carry, everyone = case.result(case.reference).carry, np.arange(case.data.samples)
    ways: Mapping[str, Any] = {
        "stack(unstack(carry))": stack(unstack(carry)),
        "concat(split(carry))": concat(split(carry, [1] * case.data.samples)),
        "scatter(carry, gather(carry))": scatter(carry, everyone, gather(carry, everyone)),
        "permute there and back": permuted(permuted(carry, everyone[::-1]), everyone[::-1]),
    }
    for way, got in ways.items():
        assert_same("round_trip", way, Started(got), Started(carry), bit_for_bit)
    if not (_coupled(case) or _no_counterpart(case)):
        got, want = native_round_trip(case.subject, unstack(carry)[0])
        assert_same("round_trip", "to_native and from_native", Started(got), Started(want), bit_for_bit)


@law()
def purity(case: Case) -> None:
    """The same inputs give the same bits, nothing is traced twice, and no State is read after the capture."""
    for name in case.subject.names:
        want, before = case.result(name), len(case.subject.traces)
        assert_same("purity", f"{name}, a second time", case.run(name), want, bit_for_bit)
        if len(case.subject.traces) != before:
            difference = Difference("the loss", {}, "traced again", "no trace in a second call", np.inf, 0.0)
            raise LawViolation("purity", name, difference)
    got, want = _poisoned_step(case), _step(case, case.subject.learner)
    assert_same("purity", "a learner whose module was poisoned", got, want, bit_for_bit)


@law(_coupled, _one_step)
def mask_and_reset(case: Case) -> None:
    """A masked step is no step, and a reset sample equals a fresh one."""
    shape = (case.data.steps, case.data.samples)
    place = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))
    flags: dict[str, Any] = {
        "mask": np.array(_COUNTS)[place % len(_COUNTS)],
        "reset": np.array(_RESETS)[place % len(_RESETS)],
    }
    if not _is_stepped(case):
        flags = _flags_between_windows(case)
    for name in case.subject.names:
        got = case.run(name, **flags)._replace(outputs=None)
        want = _flagged(case, name, flags)._replace(outputs=None)
        assert_same("mask_and_reset", name, got, want, part=Part(flags=flags))


@law(_coupled, _no_counterpart, _no_native_run)
def parity(case: Case) -> None:
    """The brainscale rule gives brainscale's own numbers, one sample at a time."""
    want = native_result(case)
    for name in case.subject.names:
        got = case.result(name)._replace(carry=None)
        assert_same("parity", name, got, want, natively)


@law(_coupled, _not_exact)
def exactness(case: Case) -> None:
    """RTRL, and the published D_RTRL where it is exact, equal backpropagation through time."""
    bptt = dataclasses.replace(case, subject=_with_algorithm(case, BPTT()))
    want = bptt.run(case.reference, request=Request("none", None))
    for name in case.subject.names:
        got = case.result(name)
        assert_same("exactness", name, got._replace(carry=None), want._replace(carry=None), exactly)


ALL: Mapping[str, Law] = {
    law.name: law
    for law in (
        *(init, locality, equality, swap, algebra, reduction, time, round_trip, purity, mask_and_reset, parity),
        exactness,
    )
}
"""The laws by name. Where locality does not hold, the laws after it fail for that reason alone."""


# Which steps count and where samples start anew, from a step and a sample on.
_COUNTS, _RESETS = (True, False, True), (False, False, False, True)

# Where only whole windows can be masked: which of three samples ends, and which starts anew.
_ENDS, _STARTS_ANEW, _THREE = 0, 1, 3


def _is_stepped(case: Case) -> bool:
    """Whether a gradient is a sum over steps, whatever the window."""
    return case.subject.algorithm.credit == "trace"


def _halves(case: Case) -> tuple[Data, Data]:
    """Cut the data in two parts that meet where a window ends."""
    middle = _middle(case)
    return case.data.of_steps(0, middle), case.data.of_steps(middle, case.data.steps)


def _middle(case: Case) -> int:
    windows = max(1, case.data.steps // case.window // 2)
    return min(windows * case.window, case.data.steps - 1)


def _flags_between_windows(case: Case) -> dict[str, Any]:
    """Where the second half begins, every third sample has its last step behind it, and the next one starts anew."""
    step, sample = np.ogrid[: case.data.steps, : case.data.samples]
    ended, anew = sample % _THREE == _ENDS, sample % _THREE == _STARTS_ANEW
    return {"mask": (step < _middle(case)) | ~ended, "reset": (step == _middle(case)) & anew}


def _flagged(case: Case, name: str, flags: Mapping[str, Any]) -> Result:
    """Compute what a masked and reset sequence must give."""
    if _is_stepped(case):
        return stepped(case, case.init(name), case.data, flags)
    first, rest = _halves(case)
    begun = case.run(name, first)
    between = [apart(carry) for carry in unstack(begun.carry)]
    restarted = [
        apart(begun_anew(case, i, first.steps, carry)) if flags["reset"][first.steps, i] else carry
        for i, carry in enumerate(between)
    ]
    ended = case.run(name, rest, stack(restarted))
    nothing = ended._replace(
        losses=np.zeros_like(ended.losses),
        gradients=jax.tree.map(np.zeros_like, ended.gradients),
        carry=stack(between),
    )
    return joined(begun, _of_either(flags["mask"][-1], ended, nothing))


def _of_either(counts: np.ndarray, one: Result, other: Result) -> Result:
    """Take the first result for the samples that count, and the second for the others."""

    def choose(axis: int) -> Any:
        return lambda a, b: jnp.where(counts.reshape(-1, *(1 for _ in a.shape[axis + 1 :])), a, b)

    timed = jax.tree.map(choose(1), one[:2], other[:2])
    return Result(*timed, *jax.tree.map(choose(0), one[2:], other[2:]))


def _poisoned_step(case: Case) -> Tree:
    """Run one step of a learner whose module gets NaN in every state after the capture."""
    net = case.subject.net_factory()
    learner = case.subject.captured(net, case.data)
    states: Any = {} if isinstance(net, Function) else brainstate.graph.states(net)  # a function keeps nothing
    for state in states.values():
        state.value = jax.tree.map(_ruined, state.value)
    return _step(case, learner)


def _ruined(leaf: Any) -> Any:
    return jnp.full_like(leaf, jnp.nan) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else leaf


def _step(case: Case, learner: Any) -> Tree:
    example = jax.tree.map(lambda x: x[0, 0], case.data.inputs)
    return learner.step(case.params, learner.init(case.key), *example)


def _with_algorithm(case: Case, algorithm: Any) -> Any:
    subject = case.subject
    return dataclasses.replace(subject, learner=subject.captured(subject.net_factory(), case.data, algorithm))
