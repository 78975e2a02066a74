"""Are the samples of a batch independent? Where not, which line couples them."""

import dataclasses
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from .._algorithms.bptt import BPTT
from .._capture import capture
from .._learning.learner import Learner
from .._options import check_flag
from .._program import Params
from .._strategies.manual import Manual
from .._tree import Tree
from .._wording import count
from ..errors import BatchSizeError, StructureError
from .leaves import leaf_verdicts, precision_of
from .probe import moved_leaves, traced_step
from .verdicts import Verdict

_ORDER = ("coupled", "undecided", "independent")
_IN_OWN_BATCH = "Use pb.vmap, which runs the step of one sample; or accept it: pb.manual(..., allow_coupling=True)."
_IN_ONE_SAMPLE = "Change the lines that the table names."
_ALONG = (
    "The learner was captured with axis_name={0!r}: its samples are meant to reach each other along this axis. "
    "Change the lines that the table names only where they should not reduce it."
)
_UNDECIDED = "What is undecided is tried with numbers by pb.audit(..., probe=True)."


@dataclasses.dataclass(frozen=True)
class Audit:
    """The report about the samples of a batched step; `print` it to read it.

    Attributes:
      strategy: the name of the strategy that runs the step.
      leaves: a verdict for each leaf that the step computes: `"output"`, `"hidden['neu.V']"`,
        `"other['norm.running_mean']"`, `"jacobians.diagonals['neu.V']"`, and for a learner the algorithm's own, such as
        `"trace.xs['syn.comm.weight_op']"`. The `kind` of a verdict is "independent", "coupled" or "undecided"; `how` is
        "proved", "probed" or ""; `primitive` and `where` are the operation and the source line that couple the samples,
        or that cannot be followed.
      axis_name: the name of the axis along which the learner's samples are meant to reach each other, or None.
      runs_own_batch: whether the module's own code sees the batch axis, as in `pb.manual`.
    """

    strategy: str
    leaves: Mapping[str, Verdict]
    axis_name: str | None = None
    runs_own_batch: bool = False

    @property
    def is_independent(self) -> bool:
        """Whether no leaf is coupled and none is left undecided."""
        return all(verdict.kind == "independent" for verdict in self.leaves.values())

    def __str__(self) -> str:
        kinds = [verdict.kind for verdict in self.leaves.values()]
        found = ", ".join(f"{kinds.count(kind)} {kind}" for kind in _ORDER if kind in kinds)
        rows = sorted(self.leaves.items(), key=lambda row: _ORDER.index(row[1].kind))
        width = max((len(name) for name in self.leaves), default=0)
        lines = [f"  {verdict.kind:<11}  {name:<{width}}  {_reason(verdict)}" for name, verdict in rows]
        return "\n".join(
            [f"{self.strategy}: {count(len(kinds), 'leaf', 'leaves')}, {found}", *lines, *self._repair(kinds)]
        )

    def _repair(self, kinds: list[str]) -> Iterator[str]:
        if "coupled" in kinds:
            own = _IN_OWN_BATCH if self.runs_own_batch else _IN_ONE_SAMPLE
            yield own if self.axis_name is None else _ALONG.format(self.axis_name)
        if "undecided" in kinds:
            yield _UNDECIDED


def _reason(verdict: Verdict) -> str:
    if not verdict.primitive:
        return verdict.how
    return {
        "coupled": f"by {verdict.cause}" + (" (probed)" if verdict.how == "probed" else ""),
        "undecided": f"behind {verdict.cause}",
        "independent": f"probed, behind {verdict.cause}",
    }[verdict.kind]


# How many samples an audit runs by default; each then has two others.
DEFAULT_SIZE = 3


def audit(
    net_or_learner: Any,
    *example_inputs: Tree,
    batch_size: int | None = None,
    environ: dict[str, Any] | None = None,
    probe: bool = True,
    params: Params | None = None,
) -> Audit:
    """Find out for each leaf of a batched step whether the samples are independent, and which line couples them.

    The samples' axis is followed through every equation of the batched step. "independent (proved)" means that no value
    of another sample enters; "coupled" names the first operation that brings samples together, even where its result is
    then multiplied by zero. What no rule can follow is tried with numbers: where one sample is changed or poisoned with
    NaN, the other samples' rows must keep every bit.

    Args:
      net_or_learner: a module, or an unbatched learner, which is run as `pb.manual` runs it, even where its samples are
        coupled; or a batched learner, which is audited as it is.
      *example_inputs: for a module, the arguments of one step of one sample.
      batch_size: the number of samples of a module or an unbatched learner, at least 2; 3 by default. A batched
        learner has its own.
      environ: for a module, settings (`dt`, `fit`) on top of those in force.
      probe: whether undecided leaves are tried with numbers.
      params: the weights of the trial; by default the module's own, or drawn ones.

    Returns:
      a verdict for each leaf that the step computes; `print` it to read it.

    Raises:
      StructureError: example inputs or settings for a learner, which has seen its own at capture.
      StructureError, ShapeError, DtypeError, UnitError: params of another module.
      OptionError: a `probe` that is no flag.
      BatchSizeError: fewer than two samples, or another number than that of a batched learner.
      CaptureError, RandomnessError, StrategyError: the module cannot be captured, or `pb.manual` cannot run it; audit
        `pb.vmap(learner, B)` instead.
    """
    check_flag("probe", probe)
    learner, own = _learner(net_or_learner, example_inputs, environ)
    weights = own if params is None else learner.check_params(params)
    size = _check_size(learner, batch_size)
    batched = learner if learner.batch_size is not None else learner.run_by(Manual(size))
    within = _samples_at_once(batched)
    leaves = _verdicts(within)
    undecided = [name for name, verdict in leaves.items() if verdict.kind == "undecided"]
    if undecided and probe:
        moved = moved_leaves(within, weights)
        leaves = {name: _probed(leaves[name], name in moved) if name in undecided else leaves[name] for name in leaves}
    return Audit(batched.strategy.name, leaves, batched.source.axis_name, batched.strategy.runs_own_batch)


def _samples_at_once(learner: Learner) -> Learner:
    """The learner of samples that run at once, two at least: samples of different shares meet in no equation."""
    within = learner.at_once()
    return within if within.lead[0] > 1 else within.run_by(within.strategy.resized(2))


def _verdicts(learner: Learner) -> dict[str, Verdict]:
    """The verdicts of the step together with the algorithm's trace."""
    with precision_of(learner.program):
        carry = learner.carry_spec()
    return leaf_verdicts(learner, traced_step(learner), carry.trace, carry.update_count)


def _learner(given: Any, examples: tuple[Tree, ...], environ: dict[str, Any] | None) -> tuple[Learner, Params | None]:
    if not isinstance(given, Learner):
        return capture(given, *examples, algorithm=BPTT(), environ=environ)
    if examples or environ is not None:
        more = count(len(examples), "example input") if examples else "settings"
        raise StructureError(
            "pb.audit",
            got=f"a learner and {more}",
            expected="a learner alone",
            repair="A learner has seen its examples and settings at capture; leave them out.",
        )
    return given, None


def _check_size(learner: Learner, given: Any) -> int:
    own = learner.batch_size
    if given is not None and own is not None and given != own:
        raise BatchSizeError(
            "pb.audit",
            got=f"batch size {given!r} for {learner.strategy.name} of {own} samples",
            expected=f"{own}",
            repair="A batched learner has its own batch size; leave batch_size out.",
        )
    size = own or (DEFAULT_SIZE if given is None else given)
    if not isinstance(size, numbers.Integral) or size < 2:  # noqa: PLR2004 - one sample has no neighbour
        raise BatchSizeError(
            "pb.audit",
            got=f"batch size {size!r}",
            expected="at least 2",
            repair="One sample has no other that it could reach; audit with two or more.",
        )
    return int(size)


def _probed(verdict: Verdict, is_moved: bool) -> Verdict:  # noqa: FBT001 - a fact, not a mode
    return dataclasses.replace(verdict, kind="coupled" if is_moved else "independent", how="probed")
