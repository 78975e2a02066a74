"""How each weight of a learner learns, and why."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax

from ._algorithms.base import Trace, kept
from ._learning.learner import Learner, check_learner
from ._program import Program, Use, Way
from ._relation import Relation
from ._tree import nbytes

_HEADER = ("weight", "learns by", "hidden states", "trace", "for one sample", "where")


@dataclasses.dataclass(frozen=True)
class Row:
    """One use of one weight.

    Attributes:
      weight: the weight's path.
      way: `"trace"`, by eligibility traces; `"gradient of the step"`, which sees what the weight does within one step
        (within one window, where the learner propagates back through it); or `"none"`.
      groups: the hidden groups that the use reaches, each by the paths of its states; empty without a trace.
      traces: the shape of each trace of one sample, such as `{"weight of h": (5, 7, 1)}`; empty without a trace.
      nbytes: the size of these traces, in bytes for one sample; a trace that several uses share counts for each.
      where: the source line of the use, such as `net.py:33 (Net.update)`; "" where it is not known.
      reason: why there is no trace; "" where there is one.
      incomplete: what the learning rule leaves out of the gradient of a step, counts twice or puts in another place; ""
        where it is complete.
    """

    weight: str
    way: Way
    groups: tuple[str, ...]
    traces: Mapping[str, tuple[int, ...]]
    nbytes: int
    where: str
    reason: str
    incomplete: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A row for each use of each weight; `print` it to read it.

    Attributes:
      learner: the text of the learner.
      rows: by path of the weight, and for one weight in the order of the step.
    """

    learner: str
    rows: tuple[Row, ...]

    def __str__(self) -> str:
        cells = [_cells(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(_HEADER, *cells, strict=True)]
        lines = [_line(_HEADER, widths)]
        for row, texts in zip(self.rows, cells, strict=True):
            lines.append(_line(texts, widths))
            lines += [f"    because {row.reason}"] if row.reason else []
            lines += [f"    the rule {row.incomplete}"] if row.incomplete else []
        return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    traces = ", ".join(f"{name} {list(shape)}" for name, shape in row.traces.items())
    size = f"{row.nbytes:,} B" if row.traces else ""
    return row.weight, row.way, " and ".join(row.groups), traces, size, row.where


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip()


def explain(learner: Learner) -> Explanation:
    """Say how each weight of a learner learns: by a trace, by the gradient of the step, or not at all, and why.

    Args:
      learner: of one sample or batched; the shapes of traces are those of one sample.

    Returns:
      a row for each use of each weight; `print` it to read it.

    Raises:
      StructureError: no learner.
    """
    check_learner(learner, "explain")
    trace = jax.eval_shape(lambda: kept(learner.algorithm, learner.algorithm.init(learner.program)))
    rows = (_row(learner, trace, use) for use in learner.program.uses)
    return Explanation(repr(learner), tuple(rows))


def _row(learner: Learner, trace: Trace, use: Use) -> Row:
    incomplete = "" if learner.algorithm.is_complete else _incomplete(learner.program, use)
    use, arrays = learner.algorithm.learns(learner.program, use, trace)
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    return Row(use.weight, use.way, use.groups, shapes, nbytes(arrays), use.where, use.reason, incomplete)


def _incomplete(program: Program, use: Use) -> str:
    """What a rule that is not complete does to the gradient of a use of a weight; "" for a use without a trace."""
    relation = next((one for one in program.relations if one.name == use.relation), None)
    if relation is None:
        return ""
    mixed = f"takes each element of its output for one that stays in its place, although {use.mixed}"
    lost = _left_out(program, relation)
    return "; it ".join(filter(None, (mixed if use.mixed else "", lost)))


def _left_out(program: Program, relation: Relation) -> str:
    """What such a rule leaves out of the gradient of a step, or counts twice."""
    if relation.weight in program.direct:
        return "counts what this use does within a step twice, as another use has no trace"
    read = [path for link in relation.links for path in link.group.paths if path in program.past.old]
    way = "the way of its result to the output past the hidden states"
    parts = [way] if relation.end in program.past.products else []
    parts += [f"what the output reads of the old {path}" for path in read]
    return f"leaves out {' and '.join(parts)}" if parts else ""
