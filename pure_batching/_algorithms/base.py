"""What every algorithm has in common: hyperparameters only, and pure functions of one sample."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp

from .._program import Group, Jacobians, Params, Program, Relation

Trace = Any
Record = Any
Signal = dict[str, jax.Array]
StepTransform = Callable[[Any], Any]

RULES = ("brainscale", "published")
VJPS = ("single-step", "multi-step")


class Factors(NamedTuple):
    """A gradient as outer products: the sum over relations of `xy_to_dw(x, dy, w)`.

    Attributes:
      xs: `[..., *x.shape]` by the name of the weight's input.
      dys: `[..., *y.shape]` by the name of the relation: one for all leaves of the weight, or one for each leaf.
    """

    xs: dict[str, jax.Array]
    dys: dict[str, tuple[jax.Array, ...]]


class Closed(NamedTuple):
    """A window at its end.

    Attributes:
      trace: the trace after the window.
      factors: `[K, ...]`, contracted for all steps and samples at once.
      dense: a part of the gradient that is no outer product, by path of the weight; empty where there is none.
    """

    trace: Trace
    factors: tuple[Factors, ...]
    dense: Params


class Algorithm(eqx.Module):
    """An online-learning rule.

    A window of `K` steps goes: `step` at each of them, inside the scan; `close` once, after it. All methods work on one
    sample and are mapped over a batch.
    """

    @abc.abstractmethod
    def init(self, program: Program) -> Trace:
        """The trace before the first step."""

    @abc.abstractmethod
    def step(
        self, program: Program, params: Params, trace: Trace, jacobians: Jacobians, signal: Signal, count: jax.Array
    ) -> tuple[Trace, Record]:
        """What is carried inside a window after one more step, and what the step leaves to its window.

        Args:
          program: the program of one sample.
          params: trainable values by path.
          trace: what is carried, before the step.
          jacobians: the derivatives of the step.
          signal: `dloss/dh` of each group, `[*varshape, ns]`; it reaches the record alone.
          count: how many updates came before, `[]`.
        """

    @abc.abstractmethod
    def close(self, program: Program, params: Params, opened: Trace, carried: Trace, records: Record) -> Closed:
        """The trace and the gradient at the end of a window.

        Args:
          program: the program of one sample.
          params: trainable values by path.
          opened: the trace before the window; None where the window is a fresh start.
          carried: what the last `step` carried on.
          records: what the steps left, `[K, ...]`.
        """

    @abc.abstractmethod
    def apply(
        self, program: Program, params: Params, trace: Trace, signal: Signal, count: jax.Array
    ) -> tuple[tuple[Factors, ...], Params]:
        """The gradient of a trace under a signal `dloss/dh`: the factors of one step, and the dense part."""

    @property
    @abc.abstractmethod
    def backpropagation(self) -> StepTransform | None:
        """What is put around each step when the loss is propagated back through the window; None where it is not."""


def identity(step: Any) -> Any:
    """A step as it is."""
    return step


def own_signal(group: Group, jacobians: Jacobians, signal: jax.Array) -> jax.Array:
    """The signal of each state with the paths through the group's other states taken out: `M^T L' = L`.

    `M` is the identity plus what the states feed each other within the step, which is nilpotent, so that `ns - 1`
    substitutions solve the system exactly.
    """
    if group.name not in jacobians.within:
        return signal
    own = signal
    for _ in range(group.num_states - 1):
        fed = apply_transposed(jacobians.within[group.name], own) - own
        own = signal - fed
    return own


def apply_matrix(matrix: jax.Array, states: jax.Array) -> jax.Array:
    """`[..., ns, ns] [..., ns] -> [..., ns]`, element by element."""
    return (matrix * states[..., None, :]).sum(-1)


def apply_transposed(matrix: jax.Array, states: jax.Array) -> jax.Array:
    """`apply_matrix` with the transposed matrices."""
    return (matrix * states[..., :, None]).sum(-2)


def contract(program: Program, params: Params, parts: tuple[Factors, ...]) -> Params:
    """The gradient of the traced weights, summed over the leading axis of the factors in one contraction.

    Args:
      program: the program of one sample.
      params: trainable values by path.
      parts: factors `[N, ...]`.

    Returns:
      by path of the traced weights, in the weight's units.
    """
    gradients: Params = {}
    for factors in parts:
        if factors.dys:
            chex.assert_equal_shape_prefix(jax.tree.leaves(factors), 1)
        for relation in program.relations:
            if relation.name in factors.dys:
                x = None if relation.x is None else factors.xs[relation.x.name]
                gradient = _weight_gradient(relation, params[relation.weight], x, factors.dys[relation.name])
                gradients = add_gradients({relation.weight: gradient}, gradients)
    return gradients


def add_gradients(*parts: Params) -> Params:
    """The sum of partial gradients, each of some of the weights."""
    total: Params = {}
    for part in parts:
        for path, value in part.items():
            total[path] = jax.tree.map(jnp.add, total[path], value) if path in total else value
    return total


def _weight_gradient(relation: Relation, weight: Any, x: jax.Array | None, dys: tuple[jax.Array, ...]) -> Any:
    """The pullback of the operation mapped over `N`: for a product with a matrix, one product of matrices."""
    leaves, treedef = jax.tree.flatten(weight)
    _, pullback = jax.vjp(lambda *values: map_operation(relation, x, values, dys[0].shape[0]), *leaves)
    if len(dys) == 1:
        return jax.tree.unflatten(treedef, pullback(dys[0]))
    return jax.tree.unflatten(treedef, [pullback(dy)[i] for i, dy in enumerate(dys)])


def map_operation(relation: Relation, x: jax.Array | None, leaves: Any, size: int) -> jax.Array:
    """The operation on `size` inputs `[size, *x.shape]` with the same weight."""
    axes = (None if x is None else 0, *(None for _ in leaves))
    return jax.vmap(relation.op, in_axes=axes, axis_size=size)(x, *leaves)
