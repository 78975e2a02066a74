"""The laws of interchangeable strategies, each a function of a case that raises LawViolation where it does not hold.

    case = Case(subject, subject.params, Data(inputs, targets))
    laws.locality(case)

`ALL` holds them by name. A law that does not concern a case says why: `laws.reset.excuse(case)`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from .._algorithms.bptt import BPTT
from .._algorithms.d_rtrl import D_RTRL
from .._batch import concat, gather, permute as permuted, scatter, split, stack, unstack
from .._learner import capture
from .._tree import Tree
from ._case import Case, Data, Request, Result
from ._compare import Difference, first_difference, numbers
from ._native_run import brainscale_runs_here, counterpart, native_result, native_round_trip
from ._stepped import stepped


class LawViolation(AssertionError):  # noqa: N818 - what is violated is a law; the error is its text
    """A law does not hold.

    Attributes:
      law: its name.
      strategy: under which strategy.
      difference: the leaf, the step and the sample, what was got and what was expected.
      notes: what else is known, such as the smallest case that fails.
    """

    def __init__(self, law: str, strategy: str, difference: Difference, notes: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join([f"{law} does not hold under {strategy}: {difference}", *notes]))
        self.law, self.strategy, self.difference, self.notes = law, strategy, difference, notes

    def with_note(self, note: str) -> "LawViolation":
        """The same violation with one more line."""
        return LawViolation(self.law, self.strategy, self.difference, (*self.notes, note))


@dataclasses.dataclass(frozen=True)
class Law:
    """A law: call it with a case.

    Attributes:
      name: of the law.
      statement: what it says.
      check: raises LawViolation.
      excuse: why it does not concern a case; None where it does.
    """

    name: str
    statement: str
    check: Callable[[Case], None]
    excuse: Callable[[Case], str | None]

    def __call__(self, case: Case) -> None:
        """Raise LawViolation unless the law holds; do nothing where it does not concern the case."""
        if self.excuse(case) is None:
            self.check(case)


class _Started(NamedTuple):
    carry: Any


def _always(_: Case) -> None:
    return None


def _law(excuse: Callable[[Case], str | None] = _always) -> Callable[[Callable[[Case], None]], Law]:
    def make(check: Callable[[Case], None]) -> Law:
        return Law(check.__name__, (check.__doc__ or "").strip(), check, excuse)

    return make


def _same(law: str, strategy: str, got: Tree, expected: Tree, kind: Callable[[str], str] | None = None) -> None:
    difference = first_difference(got, expected, kind or _kind)
    if difference is not None:
        raise LawViolation(law, strategy, difference)


def _kind(path: str) -> str:
    """What is compared, by path."""
    if path.startswith(".gradients"):
        return "gradient"
    return "trace" if path.startswith(".carry.trace") else "forward"


def _nothing(_: str) -> str:
    return "nothing"


def _exact(path: str) -> str:
    return "exact" if path.startswith(".gradients") else "forward"


def _native(_: str) -> str:
    return "native"


@_law()
def init(case: Case) -> None:
    """Every strategy begins with the same carry, leaf by leaf, bit for bit."""
    want = _Started(case.init(case.reference))
    for name in case.others:
        _same("init", name, _Started(case.init(name)), want, _nothing)


@_law()
def equality(case: Case) -> None:
    """Every strategy gives the same outputs, losses, gradients and carry as each sample alone."""
    for name in case.others:
        _same("equality", name, case.result(name), case.result(case.reference))
    if _is_stepped(case):
        want = stepped(case, case.init(case.reference), case.data, {})
        _same("equality", f"{case.reference}, against step after step", case.result(case.reference), want)


@_law(lambda case: "a sequence of one step has no halves" if case.data.steps == 1 else None)
def swap(case: Case) -> None:
    """A carry made by one strategy is continued by another."""
    first, rest = _halves(case)
    want = case.run(case.reference, rest, case.run(case.reference, first).carry)
    for name in case.others:
        there = case.run(name, rest, case.run(case.reference, first).carry)
        _same("swap", f"{case.reference}, then {name}", there, want)
        back = case.run(case.reference, rest, case.run(name, first).carry)
        _same("swap", f"{name}, then {case.reference}", back, want)


@_law(lambda case: "one sample has no others" if case.data.samples == 1 else None)
def locality(case: Case) -> None:
    """What happens to a sample does not depend on the others, bit for bit: change or poison one, no other moves."""
    last = case.data.samples - 1
    kept = np.arange(last)
    for name in case.subject.names:
        want = _of_samples(case.result(name), kept)
        for data in (_changed(case.data, last), _poisoned(case.data, last)):
            _same("locality", name, _of_samples(case.run(name, data), kept), want, _nothing)


@_law(lambda case: "one sample has no order" if case.data.samples == 1 else None)
def algebra(case: Case) -> None:
    """Permuting, splitting and concatenating samples commutes with their gradients."""
    order = np.roll(np.arange(case.data.samples), 1)
    for name in case.subject.names:
        whole, carry = case.result(name), case.init(name)
        turned = case.run(name, case.data.of_samples(order), permuted(carry, order))
        _same("algebra", f"{name}, permuted", turned, _of_samples(whole, order))
    name, sizes = case.subject.names[-1], [1, case.data.samples - 1]
    for rows, part in zip(_rows(sizes), split(case.init(name), sizes), strict=True):
        got = case.run(name, case.data.of_samples(rows), part)
        _same("algebra", f"{name}, split", got, _of_samples(case.result(name), rows))


@_law()
def reduction(case: Case) -> None:
    """Gradients of samples add up to the summed gradient, and the mean is the sum over their number."""
    reductions = [(name, "sum", np.sum) for name in case.subject.names]
    for name, reduced, reduce in [*reductions, (case.subject.names[-1], "mean", np.mean)]:
        each = case.result(name)
        want = each._replace(gradients=jax.tree.map(lambda x, reduce=reduce: reduce(x, axis=0), each.gradients))
        got = case.run(name, request=Request(reduced, case.window))
        _same("reduction", f"{name}, reduction={reduced!r}", got, want)


@_law(lambda case: "a sequence of one step has no parts" if case.data.steps == 1 else None)
def time(case: Case) -> None:
    """Some steps and then the others equal all of them, at every window."""
    first, rest = _halves(case)
    for name in case.subject.names:
        whole, begun = case.result(name), case.run(name, first)
        ended = case.run(name, rest, begun.carry)
        _same("time", f"{name}, in two parts", _joined(begun, ended), whole)
        for window in (1, case.data.steps) if _is_stepped(case) else ():
            got = case.run(name, request=Request("none", window))
            _same("time", f"{name}, window={window}", got, whole)


@_law()
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
        _same("round_trip", way, _Started(got), _Started(carry), _nothing)
    if counterpart(case.subject.algorithm) is not None:
        got, want = native_round_trip(case.subject, unstack(carry)[0])
        _same("round_trip", "to_native and from_native", _Started(got), _Started(want), _nothing)


@_law()
def purity(case: Case) -> None:
    """The same inputs give the same bits, nothing is traced twice, and no State is read after the capture."""
    for name in case.subject.names:
        want, before = case.result(name), len(case.subject.traces)
        _same("purity", f"{name}, a second time", case.run(name), want, _nothing)
        if len(case.subject.traces) != before:
            difference = Difference("the loss", {}, "traced again", "no trace in a second call", np.inf, 0.0)
            raise LawViolation("purity", name, difference)
    got, want = _poisoned_step(case), _step(case, case.subject.learner)
    _same("purity", "a learner whose module was poisoned", got, want, _nothing)


@_law(
    lambda case: (
        f"samples share {', '.join(case.subject.learner.program.states.shared)}"
        if case.subject.learner.program.states.shared
        else "one step leaves nothing to mask"
        if case.data.steps == 1
        else None
    )
)
def mask_and_reset(case: Case) -> None:
    """A masked step is no step, and a reset sample equals a fresh one."""
    shape = (case.data.steps, case.data.samples)
    place = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))
    flags: dict[str, Any] = {
        "mask": np.array(_COUNTS)[place % len(_COUNTS)],
        "reset": np.array(_RESETS)[place % len(_RESETS)],
    }
    if not _is_stepped(case):
        flags = {"mask": np.broadcast_to(_in_first_half(case), shape), "reset": np.zeros(shape, bool)}
    for name in case.subject.names:
        got = case.run(name, **flags)._replace(outputs=None)
        _same("mask_and_reset", name, got, _flagged(case, name, flags)._replace(outputs=None))


@_law(
    lambda case: (
        "brainscale cannot differentiate with this version of jax"
        if not brainscale_runs_here()
        else "brainscale has no such algorithm"
        if counterpart(case.subject.algorithm) is None
        else None
    )
)
def parity(case: Case) -> None:
    """The brainscale rule gives brainscale's own numbers, one sample at a time."""
    want = native_result(case)
    for name in case.subject.names:
        got = case.result(name)._replace(carry=None)
        _same("parity", name, got, want, _native)


@_law(
    lambda case: (
        None
        if case.subject.is_exact and case.subject.algorithm == D_RTRL(rule="published")
        else "only the published D_RTRL is exact, and only for modules said to be exact"
    )
)
def exactness(case: Case) -> None:
    """Where it is exact, the published D_RTRL equals backpropagation through time."""
    bptt = dataclasses.replace(case, subject=_with_algorithm(case, BPTT()))
    want = bptt.run(case.reference, request=Request("none", None))
    for name in case.subject.names:
        got = case.result(name)
        _same("exactness", name, got._replace(carry=None), want._replace(carry=None), _exact)


ALL: Mapping[str, Law] = {
    law.name: law
    for law in (
        *(init, equality, swap, locality, algebra, reduction, time, round_trip, purity, mask_and_reset, parity),
        exactness,
    )
}
"""The laws by name, in their order."""


# Which steps count and where samples start anew, from a step and a sample on.
_COUNTS, _RESETS = (True, False, True), (False, False, False, True)

# By how much a changed sequence is larger than the one that it stands for.
_LARGER = 3.0


def _is_stepped(case: Case) -> bool:
    """Whether a gradient is a sum over steps, whatever the window."""
    return case.subject.algorithm.backpropagation is None


def _halves(case: Case) -> tuple[Data, Data]:
    """Two parts that meet where a window ends."""
    middle = _middle(case)
    return case.data.of_steps(0, middle), case.data.of_steps(middle, case.data.steps)


def _middle(case: Case) -> int:
    windows = max(1, case.data.steps // case.window // 2)
    return min(windows * case.window, case.data.steps - 1)


def _in_first_half(case: Case) -> np.ndarray:
    return (np.arange(case.data.steps) < _middle(case))[:, None]


def _joined(first: Result, rest: Result) -> Result:
    """Two parts of a sequence as one."""
    outputs, losses = jax.tree.map(lambda a, b: np.concatenate([a, b]), first[:2], rest[:2])
    return Result(outputs, losses, jax.tree.map(np.add, first.gradients, rest.gradients), rest.carry)


def _of_samples(result: Result, rows: np.ndarray) -> Result:
    """Some samples of a result."""
    outputs, losses = jax.tree.map(lambda x: np.asarray(x)[:, rows], result[:2])
    own = jax.tree.map(lambda x: numbers(x)[rows], (result.gradients, result.carry._replace(shared={})))
    return Result(outputs, losses, own[0], own[1]._replace(shared=result.carry.shared))


def _rows(sizes: list[int]) -> list[np.ndarray]:
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def _changed(data: Data, sample: int) -> Data:
    """Another sequence for one sample: its own, backwards and larger."""

    def change(leaf: Any) -> np.ndarray:
        array = np.array(leaf)
        other = array[::-1, sample].copy()
        array[:, sample] = _LARGER * other if np.issubdtype(array.dtype, np.inexact) else other
        return array

    return jax.tree.map(change, data)


def _poisoned(data: Data, sample: int) -> Data:
    """One sample that ruins what it touches."""

    def poison(leaf: Any) -> np.ndarray:
        array = np.array(leaf)
        if np.issubdtype(array.dtype, np.inexact):
            array[:, sample] = np.nan
        return array

    return jax.tree.map(poison, data)


def _flagged(case: Case, name: str, flags: Mapping[str, Any]) -> Result:
    """What a masked and reset sequence must give."""
    if _is_stepped(case):
        return stepped(case, case.init(name), case.data, flags)
    first, _ = _halves(case)
    begun = case.run(name, first)
    silent = np.zeros((case.data.steps - first.steps, case.data.samples), begun.losses.dtype)
    return begun._replace(losses=np.concatenate([begun.losses, silent]))


def _poisoned_step(case: Case) -> Tree:
    """One step of a learner captured from a module whose states are then ruined."""
    net = case.subject.net_factory()
    example = jax.tree.map(lambda x: x[0, 0], case.data.inputs)
    learner, _ = capture(net, *example, algorithm=case.subject.algorithm, environ=case.subject.environ)
    states: Any = brainstate.graph.states(net)
    for state in states.values():
        state.value = jax.tree.map(_ruined, state.value)
    return _step(case, learner)


def _ruined(leaf: Any) -> Any:
    return jnp.full_like(leaf, jnp.nan) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else leaf


def _step(case: Case, learner: Any) -> Tree:
    example = jax.tree.map(lambda x: x[0, 0], case.data.inputs)
    return learner.step(case.params, learner.init(case.key), *example)


def _with_algorithm(case: Case, algorithm: Any) -> Any:
    example = jax.tree.map(lambda x: x[0, 0], case.data.inputs)
    subject = case.subject
    learner, _ = capture(subject.net_factory(), *example, algorithm=algorithm, environ=subject.environ)
    return dataclasses.replace(subject, learner=learner)
