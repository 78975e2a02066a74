"""Numbers that show whether samples reach each other: one is changed or poisoned, and the others may not move."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._algorithms.base import Trace
from .._learning.learner import Learner
from .._learning.traces import step_trace
from .._program import Jacobians, Params, Perturbation, States
from .._tree import Tree, is_key, spec_of, with_lead
from .verdicts import is_shared, leaves_of

# The sizes of the drawn numbers, one draw each: neurons that are silent, active, saturated.
_SCALES = (0.1, 1.0, 10.0)


class Traced(NamedTuple):
    """The result of a batched step, with the algorithm's trace after it."""

    output: Tree
    states: States
    jacobians: Jacobians
    trace: Trace


def traced_step(learner: Learner) -> Callable[..., Traced]:
    """`(params, states, inputs, perturbation, trace, count) -> Traced`."""

    def run(
        params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation, trace: Trace, count: Any
    ) -> Traced:
        done = learner.execute(params, states, inputs, perturbation)
        signal = learner.program.signal(perturbation)
        after, _ = step_trace(learner, params, trace, done.jacobians, signal, count)
        return Traced(done.output, done.states, done.jacobians, after)

    return run


def moved_leaves(learner: Learner, params: Params | None) -> set[str]:
    """The leaves in which some row moved when another sample was changed, or poisoned with NaN."""
    run, moved = jax.jit(traced_step(learner)), set[str]()
    shared = learner.init(jax.random.key(0)).shared

    def whole(states: States, *others: Any) -> tuple[Any, ...]:
        return states._replace(shared=shared), *others

    for seed, scale in enumerate(_SCALES):
        draw = _Draw(learner, np.random.default_rng(seed), scale)
        weights = draw.like(learner.program.params) if params is None else learner.check_params(params)
        base, other = draw.sample_values(2 * seed), draw.sample_values(2 * seed + 1)
        before = run(weights, *whole(*base))
        for row in range(learner.batch_size or 0):
            for new in (other, _poisoned(other)):
                moved |= _rows_that_moved(before, run(weights, *whole(*_with_row(base, new, row))), row)
    return moved


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Numbers for every leaf of a sample."""

    learner: Learner
    rng: np.random.Generator
    scale: float

    def sample_values(self, seed: int) -> tuple[Any, ...]:
        """States and a trace around those of a fresh start, inputs, and a perturbation; nothing that is shared."""
        learner, carry = self.learner, self.learner.init(jax.random.key(seed))
        hidden, other, trace = (self.around(field) for field in (carry.hidden, carry.other, carry.trace))
        inputs = self.like(with_lead(self.learner.program.inputs, learner.lead))
        perturbation = self.around(learner.zero_perturbation())
        return States(hidden, other, carry.keys, {}), inputs, perturbation, trace, carry.update_count

    def around(self, tree: Tree) -> Tree:
        """Floats near those of a tree, and everything else unchanged."""
        drawn = self.like(spec_of(tree))
        return jax.tree.map(lambda x, noise: x + noise if _is_number(x) else x, tree, drawn)

    def like(self, spec: Tree) -> Tree:
        """Values of a specification: small integers, and floats around zero."""
        return jax.tree.map(self._leaf, spec)

    def _leaf(self, spec: jax.ShapeDtypeStruct) -> jax.Array:
        if _is_number(spec):
            return jnp.asarray(self.scale * self.rng.standard_normal(spec.shape), spec.dtype)
        return jnp.asarray(self.rng.integers(0, 3, spec.shape)).astype(spec.dtype)


def _is_number(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact))


def _poisoned(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jnp.full_like(x, jnp.nan) if _is_number(x) else x, tree)


def _with_row(tree: Tree, other: Tree, row: int) -> Tree:
    return jax.tree.map(lambda x, new: x.at[row].set(new[row]), tree, other)


def _rows_that_moved(before: Traced, after: Traced, row: int) -> set[str]:
    """The leaves in which a row other than the changed one has other bits."""
    pairs = zip(leaves_of(before), leaves_of(after), strict=True)
    return {name for (name, old), (_, new) in pairs if _rest(name, old, row) != _rest(name, new, row)}


def _rest(name: str, leaf: Tree, row: int) -> bytes:
    """The bits of a leaf without the row of one sample."""
    (array,) = jax.tree.leaves(leaf)
    bits = np.asarray(jax.random.key_data(array) if is_key(array.dtype) else array)
    return bits.tobytes() if is_shared(name) else np.delete(bits, row, axis=0).tobytes()
