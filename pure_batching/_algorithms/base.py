"""What every algorithm has in common: hyperparameters only, and pure functions of one sample."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax

from .._errors import AlgorithmError
from .._program import Group, Jacobians, Params, Program, Relation

Trace = Any
Rule = str

RULES = ("brainscale", "published")


class Factors(NamedTuple):
    """The gradient of the traced weights as outer products: the sum over relations of `xy_to_dw(x, dy, w)`.

    Attributes:
      xs: `[..., *x.shape]` by the name of the input trace.
      dys: `[..., *y.shape]` by the name of the relation.
    """

    xs: dict[str, jax.Array]
    dys: dict[str, jax.Array]


class Algorithm(eqx.Module):
    """An online-learning rule; `init`, `update` and `factors` work on one sample and are mapped over a batch."""

    @abc.abstractmethod
    def init(self, program: Program) -> Trace:
        """The trace before the first step."""

    @abc.abstractmethod
    def update(self, program: Program, trace: Trace, jacobians: Jacobians) -> Trace:
        """The trace after one more step."""

    @abc.abstractmethod
    def factors(
        self, program: Program, trace: Trace, jacobians: Jacobians, signal: dict[str, jax.Array], count: jax.Array
    ) -> Factors:
        """The gradient of one step.

        Args:
          program: the program of one sample.
          trace: the trace after the step.
          jacobians: the derivatives of the step.
          signal: `dloss/dh` of each group, `[*varshape, ns]`.
          count: how many steps came before, `[]`.
        """


def check_rule(rule: str) -> None:
    """Raise AlgorithmError for a rule that does not exist."""
    if rule not in RULES:
        raise AlgorithmError(
            "rule", got=repr(rule), expected=" or ".join(map(repr, RULES)), repair="Choose one of them."
        )


def own_signal(group: Group, jacobians: Jacobians, signal: jax.Array) -> jax.Array:
    """The signal of each state with the paths through the group's other states taken out: `M^T L' = L`.

    `M` is the identity plus what the states feed each other within the step, which is nilpotent, so that `ns - 1`
    substitutions solve the system exactly.
    """
    if group.name not in jacobians.within:
        return signal
    feeds = jacobians.within[group.name]
    own = signal
    for _ in range(group.num_states - 1):
        fed = (feeds * own[..., :, None]).sum(-2) - own
        own = signal - fed
    return own


def contract(program: Program, params: Params, factors: Factors) -> Params:
    """The gradient of the traced weights, summed over the leading axis of the factors in one contraction.

    Args:
      program: the program of one sample.
      params: trainable values by path.
      factors: `[N, ...]` each.

    Returns:
      by path of the traced weights, in the weight's units.
    """
    gradients: Params = {}
    for relation in program.relations:
        x = None if relation.x is None else factors.xs[relation.x.name]
        gradient = _weight_gradient(relation, params[relation.weight], x, factors.dys[relation.name])
        known = gradients.get(relation.weight)
        gradients[relation.weight] = gradient if known is None else jax.tree.map(jax.numpy.add, known, gradient)
    return gradients


def _weight_gradient(relation: Relation, weight: Any, x: jax.Array | None, dy: jax.Array) -> Any:
    """The pullback of the operation mapped over `N`: for a product with a matrix, one product of matrices."""
    leaves, treedef = jax.tree.flatten(weight)
    axes = (None if x is None else 0, *(None for _ in leaves))

    def outputs(*values: jax.Array) -> jax.Array:
        return jax.vmap(relation.op, in_axes=axes, axis_size=dy.shape[0])(x, *values)

    _, pullback = jax.vjp(outputs, *leaves)
    return jax.tree.unflatten(treedef, pullback(dy))
