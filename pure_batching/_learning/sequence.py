"""sequence_grad: the online gradient of a sequence, scheduled in windows.

Memory grows with the window, not with `T`.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._algorithms.base import Trace, add_gradients
from .._options import check_choice, check_flag
from .._precision import cast_like
from .._program import Loss, Params
from .._strategies.base import SUMMED, SampleAxes
from .._tree import Tree
from .carry import Carry
from .compiled import compiled, in_shares
from .learner import Learner, check_learner
from .losses import SplitLoss, check_loss, check_loss_function
from .sequence_fn import SequenceFn, arguments_axes, begin, keys_of_samples, share_axes
from .steps import Steps
from .sums import summed
from .task import Task
from .window import run_window
from .windows import BUDGET, Windows, has_large_traces

REDUCTIONS = ("mean", "sum", "none")


class Aux(NamedTuple):
    """The results beside a gradient.

    Attributes:
      carry: the carry after the last step.
      losses: `[T, B]`, or `[T]` for one sample.
      outputs: the module's outputs, `[T, B, ...]`; None unless asked for.
    """

    carry: Carry
    losses: jax.Array
    outputs: Tree

    @staticmethod
    def sample_axes() -> "Aux":
        """The axis of the samples in each field."""
        axis: Any = 1
        return Aux(Carry.sample_axes(), axis, axis)


@dataclasses.dataclass(frozen=True, eq=False)
class GradFn(SequenceFn[tuple[Params, Aux]]):
    """The function that `sequence_grad` makes.

    `(params, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (gradients, Aux)`

    The gradients are by path, summed over time and reduced over samples, in the params' units, with `"none"`
    `[B, *param.shape]`; `"mean"` divides by `B` whatever the mask. `Aux` holds the carry after the last step, losses
    and outputs.
    """

    reduction: str
    windows: Windows
    outputs: bool

    def run(self, params: Params, carry: Carry | None, steps: Steps, key: jax.Array | None) -> tuple[Params, Aux]:
        """The gradient for arguments that were checked."""
        of_gradient = 0 if self.reduction == "none" else None
        axes = SampleAxes(arguments_axes(), (of_gradient, Aux.sample_axes()))
        loss, arrays = SplitLoss.of(self.loss)
        run = compiled(self.learner, run_sequence, loss, self.reduction, self.windows, self.outputs, axes=axes)
        gradients, aux = run(arrays, params, carry, steps, key)
        return self.learner.source.as_given(gradients), aux


def sequence_grad(
    learner: Learner,
    loss: Loss,
    *,
    reduction: str = "mean",
    window: int | None = None,
    budget: int = BUDGET,
    outputs: bool = False,
) -> GradFn:
    """Make a function that gives the online gradient of a whole sequence.

    It equals `jax.grad` of the losses summed over a `jax.lax.scan` of `learner.step`, at every window, for algorithms
    with `vjp="single-step"`. With `"multi-step"`, and for BPTT, a window is what credit is propagated back through, so
    that the gradient depends on it.

    Args:
      learner: of one sample, or batched by a strategy.
      loss: `(output, target) -> []`, a real number for one sample at one step.
      reduction: over samples: `"mean"`, `"sum"`, or `"none"` for per-sample gradients.
      window: how many steps are stacked and contracted at once; 1 is online and needs no memory that grows with `T`.
        None takes as many as measured fastest: their records take 8 MiB, or 8 times the traces where that is more, so
        that they stay in a cache and the end of a window, which rewrites the traces, is paid for; and at most `budget`.
        It takes as many as `budget` allows where the end of a window makes a trace of all its steps, as with published
        D_RTRL, and the whole sequence where the gradient depends on the window.
      budget: with `window=None`, the bytes that a window may keep.
      outputs: whether `Aux.outputs` holds the module's outputs.

    Returns:
      `(params, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (gradients, Aux)`, whose `__call__` says
      what each argument is. The gradients have the structure, units and shapes of the params, or `[B, *param.shape]`
      with `reduction="none"`. It is compiled once for each learner, loss and shape: define the loss once, outside the
      training loop. With an online rule its results have no derivative: `jax.grad` through them raises AlgorithmError.
      With `vjp="multi-step"` and RTRL they have one inside one window; a derivative through the trace of the carry, or
      of several windows, raises it likewise.

      Dtypes: an array is converted where JAX would promote it to the captured dtype (bool and integers to any float,
      float32 to float64); a conversion that would lose digits or the kind is a DtypeError. With x64 off, a float64
      array of numpy is a float32 one, as everywhere in JAX.

    Raises:
      OptionError: an unknown reduction, a window or a budget that is not a positive integer, or an `outputs` that is no
        flag.
      StructureError: no learner.
      LossError: a loss that cannot be called.
    """
    check_learner(learner, "sequence_grad")
    check_loss_function(loss)
    check_choice("reduction", reduction, REDUCTIONS)
    check_flag("outputs", outputs)
    return GradFn(learner, loss, reduction, Windows.of(window, budget), outputs)


def run_sequence(
    learner: Learner,
    loss: Hashable,
    reduction: str,
    windows: Windows,
    outputs: bool,  # noqa: FBT001
    arrays_of_loss: Any,
    params: Params,
    carry: Carry | None,
    steps: Steps,
    key: jax.Array | None,
) -> tuple[Params, Aux]:
    """The gradient function of these options, on arguments that were checked."""
    check_loss(learner, SplitLoss(loss, arrays_of_loss).whole(), steps.targets)
    per_sample = reduction == "none"
    axes = SampleAxes(share_axes(), (0 if per_sample else SUMMED, Aux.sample_axes()))
    run = in_shares(learner, gradient_of_share, loss, windows, per_sample, outputs, axes=axes)
    gradients, aux = run(arrays_of_loss, params, carry, steps, keys_of_samples(learner, key))
    return reduced(learner, reduction, params, gradients), aux


def reduced(learner: Learner, reduction: str, params: Params, gradients: Params) -> Params:
    """The gradients in the params' own dtypes, divided by the number of samples where their mean is asked for."""
    if reduction == "mean" and learner.batch_size:
        gradients = jax.tree.map(lambda x: x / learner.batch_size, gradients)
    return cast_like(gradients, params)


def gradient_of_share(
    learner: Learner,
    loss: Hashable,
    windows: Windows,
    per_sample: bool,  # noqa: FBT001
    outputs: bool,  # noqa: FBT001
    arrays_of_loss: Any,
    params: Params,
    carry: Carry | None,
    steps: Steps,
    keys: jax.Array,
) -> tuple[Params, Aux]:
    """The gradient of the samples that run at once, of every weight, in the dtypes in which gradients are added up."""
    task = Task(learner, SplitLoss(loss, arrays_of_loss).whole(), per_sample, outputs)
    start, fresh, steps = begin(learner, carry, steps, keys)
    length = windows.chosen(learner, steps.length)
    trace = None if carry is None else start.trace
    gradients, aux = run_windows(task, params, start, steps, length, trace, fresh)
    return summed(params, gradients, lead=_lead(task)), aux


def run_windows(
    task: Task, params: Params, carry: Carry, steps: Steps, length: int, trace: Trace, fresh: Carry
) -> tuple[Params, Aux]:
    """The sequence in windows of some length, in the dtypes in which gradients are added up.

    Args:
      task: the learner, the loss, and the form of the result.
      params: trainable values by path.
      carry: before the sequence.
      steps: its data, `[T, B, ...]`.
      length: of a window.
      trace: the carry's; None where it is all zeros.
      fresh: the carry of a sample that starts anew.
    """
    if length == steps.length:
        window = run_window(task, params, carry, steps, trace, fresh)
        return window.gradients, Aux(window.carry, window.losses, window.outputs)
    return _windows(task, params, carry, steps, length, trace, fresh)


class _Done(NamedTuple):
    """What the windows before some step gave: the carry, the sum of their gradients, and the number of their steps."""

    carry: Carry
    gradients: Params
    steps: jax.Array


def _windows(
    task: Task, params: Params, carry: Carry, steps: Steps, length: int, trace: Trace, fresh: Carry
) -> tuple[Params, Aux]:
    """Windows of one length in a scan, and what is left of the sequence in a shorter one.

    From a fresh start with traces that no cache holds, the first window is run by itself: it has none to read.
    """

    def after(done: _Done, length: int, trace: Trace) -> tuple[_Done, Any]:
        window = run_window(task, params, done.carry, steps.window(done.steps, length), trace, fresh)
        gradients = add_gradients(done.gradients, window.gradients)
        return _Done(window.carry, gradients, done.steps + length), (window.losses, window.outputs)

    whole, left = divmod(steps.length, length)
    # The position is counted in the carry: as scanned-over numbers it would need memory that grows with the sequence.
    done, emitted = _Done(carry, summed(params, lead=_lead(task)), jnp.zeros((), jnp.int32)), []
    if trace is None and has_large_traces(task.learner):
        whole -= 1
        done, first = after(done, length, None)
        emitted.append(first)
    if whole:
        done, stacked = jax.lax.scan(lambda done, _: after(done, length, done.carry.trace), done, None, length=whole)
        emitted.append(jax.tree.map(lambda x: jax.lax.collapse(x, 0, 2), stacked))
    if left:
        done, last = after(done, left, done.carry.trace)
        emitted.append(last)
    return done.gradients, Aux(done.carry, *jax.tree.map(lambda *x: jnp.concatenate(x), *emitted))


def _lead(task: Task) -> tuple[int, ...]:
    """The axes of the samples in the gradient."""
    return task.learner.lead if task.per_sample else ()
