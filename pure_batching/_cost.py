"""The memory that the gradient of a sequence takes, as XLA counts it, from shapes alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ._learning.learner import Learner, check_learner
from ._learning.sequence import sequence_grad
from ._learning.steps import Steps, Timed
from ._learning.windows import record_spec
from ._options import is_count
from ._tree import Tree, mantissa, nbytes, with_lead
from .errors import OptionError


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the memory.

    Attributes:
      name: what it is: `"params"`, `"inputs"`, `"losses"`, `"gradient"`, `"carry"`, `"trace"`, `"window"` or
        `"temporaries"`; see `cost`.
      weight: of a trace, the path of the weight; "" of the other parts.
      nbytes: its size.
    """

    name: str
    weight: str
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """The memory of one gradient; `print` it to read it.

    Attributes:
      learner: the text of the learner.
      time_steps: of the sequence.
      window: the number of steps in a window.
      parts: of which the total is made, all at one moment.
    """

    learner: str
    time_steps: int
    window: int
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """The bytes of all parts."""
        return sum(part.nbytes for part in self.parts)

    def __str__(self) -> str:
        rows = [(f"{part.name} of {part.weight}" if part.weight else part.name, part.nbytes) for part in self.parts]
        texts = [(name, f"{size:,} B") for name, size in (*rows, ("total", self.total))]
        left, right = (max(map(len, column)) for column in zip(*texts, strict=True))
        head = f"{self.time_steps} steps in windows of {self.window}"
        return "\n".join([head, *(f"{name.ljust(left)}  {size.rjust(right)}" for name, size in texts)])


def cost(learner: Learner, time_steps: int, window: int | None = None) -> Cost:
    """Say how many bytes one call of `sequence_grad(learner, loss, window=window)` holds at its fullest moment.

    Shapes decide, and nothing is run. The gradient is compiled for the default backend, with the sum of squares of the
    output as the loss, which takes about as long as the first call of the gradient does. What XLA says of the compiled
    function is the total: `argument_size_in_bytes + output_size_in_bytes + temp_size_in_bytes` of its
    `memory_analysis()`, less `alias_size_in_bytes`. The parts are

    - `params` and `inputs`, the arguments (the targets are not known here, and are left out), from a fresh start;
    - `gradient`, `losses` and `carry` with the `trace` of each weight, the results. A trace that several weights share
      stands with the first of them;
    - `window`, the records that the steps of one window leave for its end, by their shapes, and at most what XLA holds
      besides the parts above;
    - `temporaries`, the rest: copies, products, what backpropagation keeps of each step, traces that are replaced.

    Another loss changes the temporaries a little.

    Args:
      learner: of one sample, or batched by a strategy; the bytes are those of the whole batch, by `pb.sharded` those of
        each device.
      time_steps: `T`.
      window: as in `sequence_grad`.

    Returns:
      the parts and their total; `print` it to read it.

    Raises:
      StructureError: no learner.
      OptionError: a number of steps or a window that is not a positive integer.
    """
    check_learner(learner, "cost")
    if not is_count(time_steps):
        repair = "Give the number of steps of a sequence."
        raise OptionError("time_steps", got=repr(time_steps), expected="an integer >= 1", repair=repair)
    name, learner = repr(learner), learner.run_by(learner.strategy.on_one_device)
    gradient = sequence_grad(learner, _squares, window=window)
    time, steps, at_once = int(time_steps), _steps(learner, int(time_steps)), learner.at_once()
    length = gradient.windows.chosen(at_once, time)
    with learner.source.numerics.in_force():
        lowered = jax.jit(lambda params, steps: gradient.run(params, None, steps, None), keep_unused=True).lower(
            learner.program.params, steps
        )
    gradients, aux = lowered.out_info
    known = (
        Part("params", "", nbytes(learner.program.params)),
        Part("inputs", "", nbytes(steps)),
        Part("gradient", "", nbytes(gradients)),
        Part("losses", "", nbytes(aux.losses)),
        Part("carry", "", nbytes(aux.carry._replace(trace=()))),
        *_traces(learner, aux.carry.trace),
    )
    besides = _held(lowered.compile()) - sum(part.nbytes for part in known)
    records = min(length * (at_once.batch_size or 1) * nbytes(record_spec(learner)), besides)
    return Cost(name, time, length, (*known, Part("window", "", records), Part("temporaries", "", besides - records)))


def _held(program: jax.stages.Compiled) -> int:
    """The bytes of the arguments, the results and all else that a compiled program holds."""
    memory: Any = program.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def _squares(output: Tree, _: None) -> jax.Array:
    """A loss that reads all of an output."""
    numbers = [leaf for leaf in jax.tree.leaves(mantissa(output)) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return sum(((leaf.real**2).sum() for leaf in numbers), start=jnp.zeros(()))


def _steps(learner: Learner, time: int) -> Steps:
    """The specification of a sequence without targets."""
    inputs = with_lead(learner.program.inputs, (time, *learner.lead))
    return Steps(Timed(inputs, jax.tree.map(lambda _: None, inputs)), Timed(None, None), None, None)


def _traces(learner: Learner, trace: Tree) -> list[Part]:
    """A part for each weight that has a trace, and one for what belongs to none."""
    sizes: dict[str, int] = {}
    seen: list[Any] = []
    for relation in learner.program.relations:
        arrays = jax.tree.leaves(learner.algorithm.traces_of(relation, trace))
        own = [array for array in arrays if not any(array is one for one in seen)]
        seen += own
        sizes[relation.weight] = sizes.get(relation.weight, 0) + nbytes(own)
    others = nbytes(trace) - sum(sizes.values())
    named = [Part("trace", weight, size) for weight, size in sizes.items() if size]
    return [*named, Part("trace", "", others)] if others else named
