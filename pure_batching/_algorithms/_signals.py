"""The learning signals of a step as a complete rule needs them: each path from a state to the loss counts once."""

import jax

from .._program import Jacobians, Program, Signal
from .._relation import Group
from .base import apply_transposed


def own_signals(program: Program, jacobians: Jacobians, signal: Signal) -> dict[str, jax.Array]:
    """The signal of each state, `[*varshape, ns]` by group, without the paths through other states of its group.

    Where it reads a step for a complete rule, the reader sees to it that no product reaches one group by itself and
    through another one.
    """
    return {group.name: _own_signal(group, jacobians, signal.new[group.name]) for group in program.groups}


def past_hidden(
    program: Program, jacobians: Jacobians, own: dict[str, jax.Array], signal: Signal
) -> dict[str, jax.Array]:
    """What the traces leave out of the gradient of a step, as `dloss/dy` by the end of relations.

    That is what reaches the output past every hidden state. A weight with another use that has no trace gets the whole
    gradient of the step besides, in which what the traces give within this step must not count again.

    Args:
      program: the program of one sample.
      jacobians: the derivatives of the step.
      own: see `own_signals`.
      signal: of the step.
    """
    found = dict(signal.products)
    for relation in program.relations:
        if relation.weight in program.direct:
            terms = [(jacobians.dfs[k.df] * k.seen(own[k.group.name])).sum(-1) for k in relation.links]
            found[relation.end] = -sum(terms[1:], terms[0])
    return {relation.end: found[relation.end] for relation in program.relations if relation.end in found}


def _own_signal(group: Group, jacobians: Jacobians, signal: jax.Array) -> jax.Array:
    """The signal of each state without the paths through the other states of its group: `L'` with `M^T L' = L`.

    `M = dh/dperturbation` of the group (`Jacobians.within`). A state that feeds another one within the step would
    count twice in a trace, once by itself and once through the other. `M` minus the identity is nilpotent, since a step
    has an order, so that `ns - 1` substitutions solve the system exactly.
    """
    if group.name not in jacobians.within:
        return signal
    own = signal
    for _ in range(group.num_states - 1):
        fed = apply_transposed(jacobians.within[group.name], own) - own
        own = signal - fed
    return own
