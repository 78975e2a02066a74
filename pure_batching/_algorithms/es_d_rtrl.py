"""ES_D_RTRL: traces of a weight's input and of its output, O(inputs + outputs) per sample."""

import numbers
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from .._errors import AlgorithmError
from .._program import Jacobians, Program
from .base import Algorithm, Factors, check_rule, own_signal

# BrainScale stops correcting the bias after so many steps.
_CORRECTED_STEPS = 1000


class InputOutputTrace(NamedTuple):
    """The trace of ES_D_RTRL.

    Attributes:
      xs: a decaying sum of each weight's input, `[..., *x.shape]`, by the relation that reads it first.
      dfs: a smoothed `dh/dy`, `[..., *varshape, ns]`, by relation and group.
    """

    xs: dict[str, jax.Array]
    dfs: dict[str, jax.Array]


class ES_D_RTRL(Algorithm):
    """Exponentially smoothed, diagonally approximated real-time recurrent learning.

        eps_x[t]  = decay eps_x[t-1] + x[t]
        eps_df[t] = decay D[t] eps_df[t-1] + (1 - decay) df[t]
        grad[t]   = eps_x[t] (x) sum_s eps_df[t, s] L[t, s] / c[n]

    with `D = dh[t]/dh[t-1]` (diagonal), `df = dh/dy`, `L = dloss/dh` and the bias correction `c`.
    Source: Wang et al., "BrainScale: Enabling Scalable Online Learning in Spiking Neural Networks" (2024), and
    brainscale 0.1.0, `IODimVjpAlgorithm`.

    Attributes:
      decay_or_rank: the decay in (0, 1) as a float, or the rank `r >= 1` as an integer, `decay = (r - 1) / (r + 1)`.
      rule: `"brainscale"`, the numbers of brainscale 0.1.0: `c = 1 - (1 - decay)**(n + 1)` for n < 1000, else 1.
        `"published"`, the smoothing's own correction `c = 1 - decay**(n + 1)`, and a path from one hidden state of a
        group to another within a step counted once.

    Raises:
      AlgorithmError: a decay or rank out of range, an unknown rule.
    """

    decay_or_rank: float | int = eqx.field(static=True)
    rule: str = eqx.field(static=True, default="brainscale")

    def __check_init__(self) -> None:
        check_rule(self.rule)
        if not _is_decay(self.decay_or_rank) and not _is_rank(self.decay_or_rank):
            raise AlgorithmError(
                "decay_or_rank",
                got=repr(self.decay_or_rank),
                expected="a float with 0 < decay < 1, or an integer rank >= 1",
                repair="Use a decay such as 0.9 or a rank such as 19, which are the same.",
            )

    @property
    def decay(self) -> float:
        """The decay factor of both traces."""
        if _is_rank(self.decay_or_rank):
            return (self.decay_or_rank - 1) / (self.decay_or_rank + 1)
        return float(self.decay_or_rank)

    def init(self, program: Program) -> InputOutputTrace:
        """Zeros."""
        links = [(link, relation.y.dtype) for relation in program.relations for link in relation.links]
        return InputOutputTrace(
            {name: jnp.zeros(x.spec.shape, x.spec.dtype) for name, x in program.weight_inputs().items()},
            {link.name: jnp.zeros((*link.group.varshape, link.group.num_states), dtype) for link, dtype in links},
        )

    def update(self, program: Program, trace: InputOutputTrace, jacobians: Jacobians) -> InputOutputTrace:
        """The two recursions of the class's docstring."""
        decay = self.decay
        xs = {key: decay * eps + jacobians.xs[key] for key, eps in trace.xs.items()}
        dfs = {}
        for link in (link for relation in program.relations for link in relation.links):
            carried = (jacobians.diagonals[link.group.name] * trace.dfs[link.name][..., None, :]).sum(-1)
            dfs[link.name] = decay * carried + (1 - decay) * jacobians.dfs[link.name]
        return InputOutputTrace(xs, dfs)

    def factors(
        self,
        program: Program,
        trace: InputOutputTrace,
        jacobians: Jacobians,
        signal: dict[str, jax.Array],
        count: jax.Array,
    ) -> Factors:
        """The input traces, and `dy = sum_s eps_df L / c` of each relation."""
        if self.rule == "published":
            signal = {group.name: own_signal(group, jacobians, signal[group.name]) for group in program.groups}
        correction = self._correction(count)
        dys = {}
        for relation in program.relations:
            terms = [(trace.dfs[link.name] * signal[link.group.name]).sum(-1) for link in relation.links]
            dy = sum(terms[1:], terms[0])
            dys[relation.name] = _to_shape(dy / correction.astype(dy.dtype), relation.y.shape)
        return Factors(trace.xs, dys)

    def _correction(self, count: jax.Array) -> jax.Array:
        n = count.astype(jnp.result_type(float))
        if self.rule == "published":
            return 1 - self.decay ** (n + 1)
        return jnp.where(count < _CORRECTED_STEPS, 1 - (1 - self.decay) ** (n + 1), 1.0)


def _is_decay(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and 0 < float(value) < 1


def _is_rank(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1


def _to_shape(dy: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Where `y` was broadcast to the hidden shape, its gradient sums over what was broadcast."""
    lead = tuple(range(dy.ndim - len(shape)))
    kept = tuple(i + len(lead) for i, size in enumerate(shape) if size == 1 and dy.shape[i + len(lead)] != 1)
    return dy.sum(lead + kept, keepdims=True).reshape(shape) if lead or kept else dy
