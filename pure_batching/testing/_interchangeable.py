"""All laws at once, for a user's own module."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import brainunit as u
import jax
import numpy as np
from brainstate.nn import Module

from .._algorithms.base import Algorithm
from .._conform import check_numbers
from .._options import check_choice, check_flag
from .._program import Loss, Params
from .._sources.states import read_states
from .._tree import Tree, named_leaves
from .._wording import listed
from ..errors import ShapeError, StructureError
from ._alive import DeadComparisonError, assert_alive, has_traces, largest
from ._case import STRATEGIES, Case, Data, Function, MakeRunner, NetFactory, Subject
from ._margins import note_of
from .laws import ALL, Law, LawViolation


class Report(NamedTuple):
    """The laws that were checked, and how each came out.

    Attributes:
      held: the laws that hold among the strategies that run the module, by name.
      excused: the laws that do not concern the module, and why.
      refused: the strategies that refuse it, under which no law was checked, and why.
      unshown: what the data given cannot show.
    """

    held: tuple[str, ...]
    excused: Mapping[str, str]
    refused: Mapping[str, str]
    unshown: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(self.held)} laws hold: {', '.join(self.held)}"]
        lines += [f"{law} does not apply: {reason}" for law, reason in self.excused.items()]
        lines += [
            f"no law was checked under {name}, which refuses the module: {why}" for name, why in self.refused.items()
        ]
        return "\n".join([*lines, *self.unshown])


def assert_interchangeable(
    net_factory: NetFactory,
    algorithm: Algorithm,
    inputs: Tree,
    targets: Tree,
    loss: Loss,
    *,
    environ: dict[str, Any] | None = None,
    axis_name: str | None = None,
    strategies: Mapping[str, MakeRunner] = STRATEGIES,
    laws: Sequence[str] | None = None,
    window: int = 2,
    is_exact: bool = False,
    spikes: bool = False,
) -> Report:
    """Check every law for a module, and raise LawViolation at the first that does not hold.

    The text of the violation is that of the smallest batch and time that still fail: it names the law, the strategy,
    the leaf's path, the sample and the step, what was got and what was expected. `violation.as_test()` is a test of it.

    A strategy that refuses the module is no violation: the laws are checked among the others, and the report names it
    in `refused`. Where every strategy must run the module, assert that `refused` is empty.

    Args:
      net_factory: `() -> module`; each call gives the same weights. `() -> Function` for a plain JAX function.
      algorithm: the learning rule.
      inputs: `[T, B, ...]`; a tuple for a module with several arguments.
      targets: `[T, B, ...]`.
      loss: `(output, target) -> []` of one sample at one step.
      environ: settings of the capture, such as `dt`.
      axis_name: of the axis along which samples reach each other (`pb.capture`); the laws that are about independent
        samples are excused then.
      strategies: by name, `(learner, B) -> learner` or an adapter; the first is what the others are compared with.
      laws: names of `laws.ALL`; None stands for all.
      window: of the gradients compared.
      is_exact: whether the published D_RTRL equals BPTT here (see `Subject`).
      spikes: whether the outputs are silent until a neuron fires.

    Returns:
      the laws that hold, those that do not apply, the strategies that were left out, and what the data cannot show.

    Raises:
      LawViolation: a law does not hold.
      DeadComparisonError: nothing happens in the data given, so that nothing would be shown.
      PureBatchingError: no function that makes a module, the module cannot be captured, or the data does not fit it.
    """
    _check_factory(net_factory)
    asked = tuple(ALL if laws is None else laws)
    for name in asked:
        check_choice("laws", name, tuple(ALL))
    for name, flag in {"is_exact": is_exact, "spikes": spikes}.items():
        check_flag(name, flag)
    data = Data(inputs if isinstance(inputs, tuple) else (inputs,), targets)
    _check_leads(data)
    example = jax.tree.map(lambda x: x[0, 0], data.inputs)
    subject = Subject.of(
        net_factory,
        algorithm,
        example,
        loss,
        environ=environ,
        axis_name=axis_name,
        strategies=strategies,
        is_exact=is_exact,
    )
    _check_same_weights(net_factory, subject.params)
    case = Case(subject, subject.params, data, window)
    excused = {name: reason for name in asked if (reason := ALL[name].excuse(case)) is not None}
    held = tuple(name for name in asked if name not in excused)
    if "locality" in held:  # a sample of a coupled module may well be dead when it is alone
        _check(ALL["locality"], case)
    _assert_partial(case)
    assert_alive(case.result(case.reference), spikes=spikes, large_traces=False)
    for name in held:
        if name != "locality":
            _check(ALL[name], case)
    return Report(held, excused, subject.refused, _unshown(case))


def _unshown(case: Case) -> tuple[str, ...]:
    """Report traces of at most 1, which a normalisation leaves alone, so that the laws say nothing of it."""
    trace = case.result(case.reference).carry.trace
    if not has_traces(trace) or largest(trace) > 1:
        return ()
    return (f"no trace exceeds 1 (the largest entry is {largest(trace):.2g}), so no normalisation of traces was shown",)


def _check_factory(net_factory: object) -> None:
    """Raise StructureError for a module, or what else makes none; a class makes one where it needs no arguments."""
    if isinstance(net_factory, Module) or not callable(net_factory):
        raise _no_factory(f"one {type(net_factory).__name__}")
    needed = _needed_arguments(net_factory)
    if needed:
        raise _no_factory(f"one that needs the arguments {listed(needed)}")


def _needed_arguments(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments without which a function cannot be called."""
    is_class = isinstance(function, type)  # the metaclass of modules hides the signature of a class
    given = list(inspect.signature(function.__init__ if is_class else function).parameters.values())[is_class:]
    by_name = [one for one in given if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return [one.name for one in by_name if one.default is one.empty]


def _no_factory(got: str) -> StructureError:
    return StructureError(
        "net_factory",
        got=got,
        expected="a function () -> module",
        repair="Pass what makes the module, with the same weights at each call: lambda: Net(...), say.",
    )


def _check_same_weights(net_factory: NetFactory, params: Params) -> None:
    """Raise StructureError for a function that draws other weights at the next call, so that nothing could be equal."""
    net = net_factory()
    again = net.params if isinstance(net, Function) else read_states(net)
    kept = dict(named_leaves(again, ""))
    other = [path for path, value in named_leaves(params, "") if not _are_equal(value, kept[path])]
    if other:
        raise StructureError(
            f"net_factory: params{other[0]}",
            got="other values at the second call",
            expected="the same weights at each call",
            repair="Draw them from a seed: put `with brainstate.random.seed_context(0):` around the constructor.",
        )


def _are_equal(one: Tree, other: Tree) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def _check_leads(data: Data) -> None:
    """Raise ShapeError unless every input leads with time and samples; the rest is for the learner to check."""
    check_numbers(data.inputs, "inputs")
    for name, leaf in named_leaves(data.inputs, "inputs"):
        if np.ndim(u.get_mantissa(leaf)) < len(("T", "B")):
            raise ShapeError(
                name,
                got=f"shape {np.shape(u.get_mantissa(leaf))}",
                expected="(T, B, ...)",
                repair="Time leads, and the samples follow.",
            )


def _assert_partial(case: Case) -> None:
    """A window over the whole sequence propagates everything back, and shows nothing of traces."""
    if 1 < case.data.steps <= case.window:
        raise DeadComparisonError(
            f"window={case.window} holds all {case.data.steps} steps; take a shorter window or a longer sequence"
        )


def _check(law: Law, case: Case) -> None:
    """Check a law, and say more about a violation: its smallest batch, and its margin."""
    try:
        law(case)
    except LawViolation as violation:
        found, small = _smallest(law, case, violation)
        found = found.with_note(f"smallest case that fails: B = {small.data.samples}, T = {small.data.steps}")
        note = note_of(found, small)
        raise found if note is None else found.with_note(note) from None


def _smallest(law: Law, case: Case, violation: LawViolation) -> tuple[LawViolation, Case]:
    """The violation by the smallest batch, and for it the shortest sequence, that fails under the same strategy."""
    tried = ((_violation(law, small), small) for small in _smaller(case))
    found = ((one, small) for one, small in tried if one is not None and one.strategy == violation.strategy)
    return next(found, (violation, case))


def _smaller(case: Case) -> Iterator[Case]:
    for samples in range(1, case.data.samples + 1):
        for steps in range(1, case.data.steps + 1):
            yield case.with_data(case.data.of_steps(0, steps).of_samples(range(samples)))


def _violation(law: Law, case: Case) -> LawViolation | None:
    """The first violation of the law by a case; None where it holds."""
    try:
        law(case)
    except LawViolation as violation:
        return violation
    return None
