"""The sum of per-sample gradients, each clipped by its norm, without the gradients themselves."""

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._options import check_choice
from .._precision import accumulating
from .._program import Loss, Params
from .._strategies.base import SUMMED, SampleAxes
from .._tree import Tree
from ..errors import OptionError
from .carry import Carry
from .compiled import compiled, in_shares
from .euclid import exponent_of, power_of_two
from .learner import Learner
from .losses import SplitLoss, check_loss_function
from .norms import NormFn, check_batched
from .sequence import gradient_of_share, reduced
from .sequence_fn import SequenceFn, arguments_axes, keys_of_samples, share_axes
from .steps import Steps
from .windows import BUDGET, Windows


class ClippedAux(NamedTuple):
    """The results beside a clipped gradient.

    Attributes:
      carry: the carry after the last step.
      losses: `[T, B]`, before clipping.
      norms: `[B]`, of the samples' gradients before clipping.
      clipped: how many samples were clipped, `[]`.
    """

    carry: Carry
    losses: jax.Array
    norms: jax.Array
    clipped: jax.Array

    @staticmethod
    def sample_axes() -> "ClippedAux":
        """The axis of the samples in each field; None for what they share."""
        axes: Any = (1, 0, None)
        return ClippedAux(Carry.sample_axes(), *axes)


@dataclasses.dataclass(frozen=True, eq=False)
class ClippedGradFn(SequenceFn[tuple[Params, ClippedAux]]):
    """The function that `clipped_grad` makes.

    `(params, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (gradients, ClippedAux)`

    The gradients are the sum or mean over samples of the clipped gradient of each.
    """

    bound: float | jax.Array
    reduction: str
    windows: Windows

    def run(
        self, params: Params, carry: Carry | None, steps: Steps, key: jax.Array | None
    ) -> tuple[Params, ClippedAux]:
        """The gradient for arguments that were checked; both passes draw the same random numbers."""
        norms, aux = NormFn(self.learner, self.loss, self.windows).run(params, carry, steps, key)
        bound = jnp.asarray(self.bound, norms.dtype)
        loss, arrays = SplitLoss.of(self.loss)
        axes = SampleAxes((*arguments_axes(), 0, None), None)
        run = compiled(self.learner, _clipped, loss, self.reduction, self.windows, axes=axes)
        gradients, clipped = run(arrays, params, carry, steps, key, norms, bound)
        return self.learner.source.as_given(gradients), ClippedAux(aux.carry, aux.losses, norms, clipped)


class _Weighted(eqx.Module):
    """A loss times the weight of its sample: the gradient of the sum is the weighted sum of the samples' gradients."""

    loss: Loss

    def __call__(self, output: Tree, target: tuple[Tree, jax.Array]) -> Any:
        loss = jnp.asarray(self.loss(output, target[0]))
        return loss.astype(accumulating(loss.dtype)) * target[1]


def _clipped(
    learner: Learner,
    loss: Hashable,
    reduction: str,
    windows: Windows,
    arrays_of_loss: Any,
    params: Params,
    carry: Carry | None,
    steps: Steps,
    key: jax.Array | None,
    norms: jax.Array,
    bound: jax.Array,
) -> tuple[Params, jax.Array]:
    """The gradient in which each sample counts by its scale, and how many samples were scaled down.

    Both are sums over samples, made at once.
    """
    run = in_shares(learner, _clipped_share, loss, windows, axes=SampleAxes((*share_axes(), 0, None), SUMMED))
    gradients, clipped = run(arrays_of_loss, params, carry, steps, keys_of_samples(learner, key), norms, bound)
    return reduced(learner, reduction, params, gradients), clipped


def _clipped_share(
    learner: Learner,
    loss: Hashable,
    windows: Windows,
    arrays_of_loss: Any,
    params: Params,
    carry: Carry | None,
    steps: Steps,
    keys: jax.Array,
    norms: jax.Array,
    bound: jax.Array,
) -> tuple[Params, jax.Array]:
    """Those of the samples that run at once."""
    per_sample = outputs = False
    weights, lift = _weights(norms, bound)
    weighted, arrays = SplitLoss.of(_Weighted(SplitLoss(loss, arrays_of_loss).whole()))
    given = (arrays, params, carry, steps.with_weights(weights), keys)
    gradients, _ = gradient_of_share(learner, weighted, windows, per_sample, outputs, *given)
    return jax.tree.map(lambda x: x / lift.astype(x.dtype), gradients), (weights < lift).sum()


def _weights(norms: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The scale of each sample `[B]` times a power of two, and that power, by which the sum has to be divided.

    A scale `bound / norm` may be no normal number, or one that is lost beside a small derivative. The power is 1 unless
    a scale is below the root of the smallest normal number.
    """
    limits = jnp.finfo(norms.dtype)
    largest = jnp.where(jnp.isfinite(norms), norms, 0).max()
    least = exponent_of(jnp.minimum(bound, largest)) - exponent_of(largest)
    lift = power_of_two(jnp.maximum(limits.minexp // 2 - least, 0), norms.dtype)
    return jnp.minimum(lift, bound * lift / jnp.maximum(norms, limits.tiny)), lift


def clipped_grad(
    learner: Learner,
    loss: Loss,
    bound: float | jax.Array,
    *,
    reduction: str = "mean",
    window: int | None = None,
    budget: int = BUDGET,
) -> ClippedGradFn:
    """Make a function that gives the sum or mean of per-sample gradients, each scaled down to at most `bound`.

    The building block of DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", 2016), without its noise. It
    costs `sample_norms` and one summed gradient, in which each sample's loss is weighted by its scale.

    Args:
      learner: batched by a strategy.
      loss: as in `sequence_grad`.
      bound: the largest norm, `[]`, above 0; inside `jax.jit` it may be traced, and is then not checked.
      reduction: `"mean"` or `"sum"` over samples.
      window: as in `sequence_grad`; memory then does not grow with `T`, but for the losses.
      budget: as in `sequence_grad`.

    Returns:
      `(params, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (gradients, ClippedAux)`, whose
      `clipped` counts the samples that were scaled down, and whose `norms` are those before.

    Raises:
      StrategyError: the learner is of one sample.
      LossError: a loss that cannot be called.
      OptionError: a bound that is not above 0, another reduction, a window or a budget that is not a positive integer.
    """
    check_batched(learner, "clipped_grad")
    check_loss_function(loss)
    _check_bound(bound)
    check_choice("reduction", reduction, ("mean", "sum"))
    return ClippedGradFn(learner, loss, bound, reduction, Windows.of(window, budget))


def _check_bound(bound: Any) -> None:
    """Raise OptionError unless the bound is one number above 0; a value traced by `jax.jit` is not known yet."""
    if not _is_real_number(bound) or (not isinstance(bound, Tracer) and not bound > 0):
        raise OptionError("bound", got=repr(bound), expected="a number above 0", repair="Give the largest norm.")


def _is_real_number(value: Any) -> bool:
    if not isinstance(value, (int, float, np.generic, np.ndarray, jax.Array)) or np.shape(value):
        return False
    dtype = jnp.result_type(value) if isinstance(value, (int, float)) else value.dtype
    return any(jnp.issubdtype(dtype, kind) for kind in (np.integer, np.floating))
