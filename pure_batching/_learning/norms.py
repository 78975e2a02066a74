"""The norm of every sample's gradient, without the gradients themselves."""

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from .._algorithms.base import Factors, contract
from .._program import Loss, Params
from .._relation import Relation
from .._strategies.base import SampleAxes
from .._tree import nbytes
from ..errors import StrategyError
from .carry import Carry
from .compiled import compiled, in_shares
from .euclid import Measure, norm_of, norms_by
from .learner import Learner, check_learner
from .losses import SplitLoss, check_loss, check_loss_function
from .online import Collected, collect, with_trace
from .sequence import Aux, run_windows
from .sequence_fn import SequenceFn, arguments_axes, begin, keys_of_samples, share_axes
from .steps import Steps
from .task import Task
from .tiles import each_in_tiles
from .traces import window_parts
from .windows import BUDGET, Windows

# The gradients of as many samples are held at once as fit into this many bytes.
TILE_BUDGET = 32 * 2**20


@dataclasses.dataclass(frozen=True, eq=False)
class NormFn(SequenceFn[tuple[jax.Array, Aux]]):
    """`(params, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (norms, Aux)`; made by `sample_norms`.

    The norms `[B]` are those of every sample's gradient over the whole sequence.
    """

    windows: Windows

    def run(self, params: Params, carry: Carry | None, steps: Steps, key: jax.Array | None) -> tuple[jax.Array, Aux]:
        """The norms for arguments that were checked."""
        axes = SampleAxes(arguments_axes(), (0, Aux.sample_axes()))
        loss, arrays = SplitLoss.of(self.loss)
        run = compiled(self.learner, _sample_norms, loss, self.windows, axes=axes)
        return run(arrays, params, carry, steps, key)


def sample_norms(learner: Learner, loss: Loss, *, window: int | None = None, budget: int = BUDGET) -> NormFn:
    """Make a function that gives the norm of every sample's gradient over a whole sequence.

    No leaf `[B, *param.shape]` is built: gradients are held for as many samples at a time as fit into 32 MiB, for one
    at least (on each device, where several share the batch evenly) and for half of the batch at most. For an online
    rule that starts afresh, a matrix that multiplies a vector costs `T^2 (in + out)` per sample (the Gram form:
    gradients are sums of `T` outer products, whose inner products are products of two numbers) where that is less than
    `T in out`; other weights are contracted for a few samples at a time, which costs what the summed gradient costs,
    and memory for those few. Weights without a trace, a carry that goes on, several windows, and algorithms that
    propagate back run the whole sequence for a few samples at a time. The norm is that of the numbers in the params'
    own units, in float32 at least; no square inside it overflows or vanishes. What the algorithm carries comes besides,
    of which D_RTRL's traces have such leaves; and along a named axis the samples are differentiated all at once.

    Args:
      learner: batched by a strategy.
      loss: as in `sequence_grad`.
      window: as in `sequence_grad`; memory then does not grow with `T`, but for the losses. None takes as many steps as
        the budget allows.
      budget: with `window=None`, the bytes that a window may keep.

    Returns:
      `(params, carry, inputs, targets, *, mask=None, reset=None, key=None) -> (norms [B], Aux)`.

    Raises:
      StrategyError: the learner is of one sample.
      LossError: a loss that cannot be called.
      OptionError: a window or a budget that is not a positive integer.
    """
    check_batched(learner, "sample_norms")
    check_loss_function(loss)
    return NormFn(learner, loss, Windows.of(window, budget))


def check_batched(learner: Learner, name: str) -> None:
    """Raise StrategyError for a learner of one sample."""
    check_learner(learner, name)
    if learner.batch_size is None:
        raise StrategyError(
            f"pb.{name}", got="a learner of one sample", expected="a batch", repair="Apply pb.vmap or pb.manual first."
        )


def _sample_norms(
    learner: Learner,
    loss: Hashable,
    windows: Windows,
    arrays_of_loss: Any,
    params: Params,
    carry: Carry | None,
    steps: Steps,
    key: jax.Array | None,
) -> tuple[jax.Array, Aux]:
    check_loss(learner, SplitLoss(loss, arrays_of_loss).whole(), steps.targets)
    run = in_shares(learner, _norms_of_share, loss, windows, axes=SampleAxes(share_axes(), (0, Aux.sample_axes())))
    return run(arrays_of_loss, params, carry, steps, keys_of_samples(learner, key))


def _norms_of_share(
    learner: Learner,
    loss: Hashable,
    windows: Windows,
    arrays_of_loss: Any,
    params: Params,
    carry: Carry | None,
    steps: Steps,
    keys: jax.Array,
) -> tuple[jax.Array, Aux]:
    """The norms of the samples that run at once."""
    task = Task(learner, SplitLoss(loss, arrays_of_loss).whole(), per_sample=False, outputs=False)
    start, fresh, steps = begin(learner, carry, steps, keys)
    length = windows.fitting(learner, steps.length)
    is_online = learner.algorithm.credit == "trace" and not learner.program.direct
    if is_online and carry is None and length == steps.length:
        done = collect(task, params, start, steps, fresh)
        parts = window_parts(learner, params, None, done.records)
        if not parts.dense and not jax.tree.leaves(parts.of_trace):
            return _from_factors(task, params, done, parts.factors, steps, fresh)
    return _sample_by_sample(task, params, start, steps, length, fresh)


def _sample_by_sample(
    task: Task, params: Params, carry: Carry, steps: Steps, length: int, fresh: Carry
) -> tuple[jax.Array, Aux]:
    """The whole sequence for as many samples at once as `TILE_BUDGET` allows."""
    learner = task.learner
    one = task._replace(learner=learner.one_of_its_samples())

    def own(common: tuple[Params, Any], carry: Carry, steps: Steps, fresh: Carry) -> Any:
        whole = carry._replace(shared=common[1])
        gradients, aux = run_windows(one, common[0], whole, steps, length, whole.trace, fresh)
        return norm_of(jax.tree.leaves(gradients)), aux.carry, aux.losses

    in_tiles = each_in_tiles(learner.lead[0], tile=_tile(learner, nbytes(params)))
    each = in_tiles if learner.source.axis_name is None else learner.each
    mapped = each(own, (0, Steps.sample_axes(), 0), (0, 0, 1))
    norms, after, losses = mapped((params, carry.shared), carry._replace(shared={}), steps, fresh._replace(shared={}))
    shared = jax.tree.map(lambda leaf: leaf[0], after.shared)  # the same for every sample
    return norms, Aux(after._replace(shared=shared), losses, None)


def _from_factors(
    task: Task, params: Params, done: Collected, factors: tuple[Factors, ...], steps: Steps, fresh: Carry
) -> tuple[jax.Array, Aux]:
    """The norms from the outer products of one window over the whole sequence, which begins afresh."""
    learner = task.learner

    def measured(measure: Measure) -> jax.Array:
        own = [one for path in _weights(factors, learner) for one in _measures(measure, learner, params, factors, path)]
        return jax.vmap(lambda *parts: measure.of_parts(parts))(*own) if own else jnp.zeros(learner.lead)

    after = with_trace(task, params, done, steps, None, fresh)
    return norms_by(measured), Aux(after, done.losses, None)


def _weights(parts: tuple[Factors, ...], learner: Learner) -> list[str]:
    """The weights that outer products are of."""
    named = {name for part in parts for name in part.dys}
    return sorted({relation.weight for relation in learner.program.relations if relation.name in named})


def _measures(
    measure: Measure, learner: Learner, params: Params, parts: tuple[Factors, ...], path: str
) -> list[jax.Array]:
    """The measures `[B]` of parts of one weight's gradient: each leaf by its cheaper form."""
    uses = [(r, part) for part in parts for r in learner.program.relations if r.weight == path and r.name in part.dys]
    relation, factors = uses[0]
    products = _gram_leaves(relation, factors) if len(uses) == 1 else []
    measures = [_gram(measure, relation, factors, i) for i in products]
    names = {relation.name for relation, _ in uses}
    kept = tuple(part._replace(dys={k: dy for k, dy in part.dys.items() if k in names}) for part in parts)

    def own(params: Params, factors: tuple[Factors, ...]) -> jax.Array:
        leaves = jax.tree.leaves(contract(learner.program, params, factors)[path])
        return measure.of_arrays([leaf for i, leaf in enumerate(leaves) if i not in products])

    if len(products) == len(jax.tree.leaves(params[path])):
        return measures
    each = each_in_tiles(learner.lead[0], tile=_tile(learner, nbytes(params[path])))
    return [*measures, each(own, (1,))(params, kept)]


def _gram_leaves(relation: Relation, factors: Factors) -> list[int]:
    """The leaves for which the Gram form costs less than the gradient itself."""
    steps = factors.dys[relation.name][0].shape[0]
    return [
        i
        for i, leaf in enumerate(relation.leaves)
        if leaf.is_factor and steps * sum(leaf.spec.shape) < leaf.spec.shape[0] * leaf.spec.shape[1]
    ]


def _gram(measure: Measure, relation: Relation, factors: Factors, i: int) -> jax.Array:
    """The measure `[B]` of a matrix's gradient, a sum of `T` outer products."""
    dys: Any = factors.dys[relation.name]
    x, dy = factors.xs[relation.x.name if relation.x else ""], dys[i if len(dys) > 1 else 0]
    return jax.vmap(measure.of_products, in_axes=1)(x, dy)


def _tile(learner: Learner, size: int) -> int:
    """As many samples as `TILE_BUDGET` allows for, and half of the batch at most: no leaf leads with all of it."""
    return max(1, min(learner.lead[0] // 2, TILE_BUDGET // max(size, 1)))
