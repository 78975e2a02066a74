"""The lives of a sample in a window: a reset ends one life and begins the next.

A window gives credit to the trace that came into it only by steps of the life that came in, and the trace that goes
out is of the last life alone. The functions here leave other lives out by selection, because a product with zero would
keep their NaN and infinity.
"""

from typing import Any

import jax
import jax.numpy as jnp

from .._algorithms.base import Trace
from .steps import Steps, select


def credited(trace: Trace, steps: Steps, fresh: Trace) -> Trace:
    """The trace before a window, fresh for a sample that makes no step of the life that came in.

    Args:
      trace: before the window; None, for a window that is a fresh start, stays None.
      steps: the window's data.
      fresh: the trace of a sample that starts anew.
    """
    if trace is None or not steps.have_flags:
        return trace
    mask, reset = _flags(steps)
    is_first_life = jnp.cumsum(reset.astype(jnp.int32), 0) == 0
    return select((mask & is_first_life).any(0), trace, fresh)


def continued(trace: Trace, records: Any, steps: Steps, fresh: Trace) -> tuple[Trace, Any]:
    """The trace before a window and the records of its steps, without the lives that end in it.

    Args:
      trace: before the window; None, for a window that is a fresh start, stays None.
      records: of the steps, `[K, B, ...]`.
      steps: the window's data.
      fresh: the trace of a sample that starts anew.
    """
    if steps.reset is None:
        return trace, records
    kept = None if trace is None else select(steps.reset.any(0), fresh, trace)
    return kept, select(is_last_life(steps), records, jax.tree.map(jnp.zeros_like, records))


def is_last_life(steps: Steps) -> jax.Array:
    """Whether no reset follows a step in its window, `[K, B]`."""
    resets = _flags(steps)[1].astype(jnp.int32)
    from_here = jnp.cumsum(resets[::-1], 0)[::-1]
    return from_here == resets


def counted(count: jax.Array, steps: Steps) -> jax.Array:
    """The count of updates, `[B]`, after a window that is one update of the life that makes a step of it last."""
    if not steps.have_flags:
        return count + 1
    mask, reset = _flags(steps)
    return jnp.where(reset.any(0), 0, count) + (mask & is_last_life(steps)).any(0).astype(count.dtype)


def _flags(steps: Steps) -> tuple[jax.Array, jax.Array]:
    """The mask and the resets, `[K, B]`; at least one of them is given."""
    given: Any = steps.reset if steps.mask is None else steps.mask
    none = jnp.zeros(given.shape, bool)
    return (~none if steps.mask is None else steps.mask), (none if steps.reset is None else steps.reset)
