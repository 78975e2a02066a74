"""ES_D_RTRL: traces of a weight's input and of its output, O(inputs + outputs) per sample."""

import numbers
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._options import check_choice, is_count
from .._program import Jacobians, Params, Program, Signal
from .._relation import Relation
from ..errors import AlgorithmError
from .base import (
    RULES,
    VJPS,
    Algorithm,
    Credit,
    Factors,
    Parts,
    apply_matrix,
    credit_of,
    own_signals,
    past_hidden,
)

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

    with `D = dh[t]/dh[t-1]` (diagonal), `df = dh/dy`, `L = dloss/dh` and the bias correction `c`. The published rule is
    complete: it adds what the loss of a step depends on past the new hidden states, the products `y` of weights and old
    states, with `K = dloss/dy` and `l = dloss/dh[t-1]` at fixed `h[t]`:

        eps_x[t-1] (x) sum_s eps_df[t-1, s] l[t, s] / c[n-1] + x[t] (x) K[t]

    Source: Wang et al., "BrainScale: Enabling Scalable Online Learning in Spiking Neural Networks" (2024),
    doi:10.1101/2024.09.24.614728, and brainscale 0.1.0, `IODimVjpAlgorithm`.

    Attributes:
      decay_or_rank: the decay in (0, 1) as a float, or the rank `r >= 1` as an integer, `decay = (r - 1) / (r + 1)`.
      rule: `"brainscale"`, the numbers of brainscale 0.1.0: `c = 1 - (1 - decay)**(n + 1)` for n < 1000, else 1.
        `"published"`, the correction that fits the smoothing, `c = 1 - decay**(n + 1)`, and a path from one hidden
        state of a group to another within a step counts once. `n` is the number of updates before this one.
      vjp: `"single-step"`, as above; `"multi-step"`, the exact gradient inside each window of `sequence_grad`, and the
        trace for the steps before the window.

    Raises:
      AlgorithmError: a decay or rank out of range, or one whose bias correction is 0 (rank 1 with the default rule); an
        unknown rule or vjp.
    """

    decay_or_rank: float | int = eqx.field(static=True)
    rule: str = eqx.field(static=True, default="brainscale")
    vjp: str = eqx.field(static=True, default="single-step")

    def __check_init__(self) -> None:
        check_choice("rule", self.rule, RULES, AlgorithmError)
        check_choice("vjp", self.vjp, VJPS, AlgorithmError)
        if not _is_decay(self.decay_or_rank) and not is_count(self.decay_or_rank):
            raise AlgorithmError(
                "decay_or_rank",
                got=repr(self.decay_or_rank),
                expected="a float with 0 < decay < 1, or an integer rank >= 1",
                repair="Use a decay such as 0.9 or a rank such as 19, which are the same.",
            )
        if not self._first_correction() > 0:
            raise AlgorithmError(
                "decay_or_rank",
                got=f"{self.decay_or_rank!r}, whose decay is {self.decay:g}",
                expected=f'a decay whose bias correction with rule="{self.rule}" is not 0 in float32',
                repair="The gradient is divided by the correction, in brainscale 0.1.0 too; "
                "use a decay such as 0.9 or a rank such as 19.",
            )

    def _first_correction(self) -> float:
        """The bias correction of the first step, the smallest of all, in single precision."""
        smoothing = self.decay if self.rule == "published" else 1 - self.decay
        return float(np.float32(1) - np.float32(smoothing))

    @property
    def decay(self) -> float:
        """The decay factor of both traces."""
        if is_count(self.decay_or_rank):
            return (self.decay_or_rank - 1) / (self.decay_or_rank + 1)
        return float(self.decay_or_rank)

    def init(self, program: Program) -> InputOutputTrace:
        """Zeros."""
        return InputOutputTrace(
            {name: jnp.zeros(x.spec.shape, x.spec.dtype) for name, x in program.weight_inputs().items()},
            {link.name: jnp.zeros(link.shape, link.group.dtype) for link in program.links()},
        )

    @property
    def credit(self) -> Credit:
        """By backpropagation inside the window with `vjp="multi-step"`, else by the trace."""
        return credit_of(self.vjp)

    @property
    def is_complete(self) -> bool:
        """With the published rule."""
        return self.rule == "published"

    @property
    def recomputes(self) -> bool:
        """No: the steps of a window are kept."""
        return False

    def step(
        self,
        program: Program,
        params: Params,
        trace: InputOutputTrace,
        jacobians: Jacobians,
        signal: Signal,
        count: jax.Array,
    ) -> tuple[InputOutputTrace, tuple[Factors, ...]]:
        """The recursions and the gradient of the class's docstring."""
        del params
        decay, dfs = self.decay, {}
        for link in program.links():
            diagonal = link.seen(jacobians.diagonals[link.group.name], tail=2)
            carried = apply_matrix(diagonal, trace.dfs[link.name])
            dfs[link.name] = decay * carried + (1 - decay) * jacobians.dfs[link.name]
        new = InputOutputTrace({name: decay * eps + jacobians.xs[name] for name, eps in trace.xs.items()}, dfs)
        if not self.is_complete:
            return new, (self._factors(program, new, signal.new, count),)
        own = own_signals(program, jacobians, signal)
        past = past_hidden(program, jacobians, own, signal)
        of_new = self._factors(program, new, own, count)
        of_old = self._factors(program, trace, signal.old, jnp.maximum(count - 1, 0))
        of_products = Factors(jacobians.xs, {name: (dy,) for name, dy in past.items()})
        return new, tuple(part for part in (of_new, of_old, of_products) if part.dys)

    def window_trace(
        self,
        program: Program,
        params: Params,
        trace_before: InputOutputTrace | None,
        trace_after: InputOutputTrace,
        records: tuple[Factors, ...],
    ) -> InputOutputTrace:
        """The trace of the last step."""
        del program, params, trace_before, records
        return trace_after

    def window_gradient(
        self, program: Program, params: Params, trace_before: InputOutputTrace | None, records: tuple[Factors, ...]
    ) -> Parts:
        """The records of the steps, which are the factors already."""
        del program, params, trace_before
        return Parts(records, {})

    def gradient_of_trace(
        self, program: Program, params: Params, trace: InputOutputTrace, signal: Signal, count: jax.Array
    ) -> Parts:
        """The factors of one step with this trace."""
        del params
        return Parts((self._factors(program, trace, signal.new, count),), {})

    def traces_of(self, relation: Relation, trace: InputOutputTrace) -> dict[str, jax.Array]:
        """The trace of the input, and one of the output for each hidden group."""
        inputs = {} if relation.x is None else {"x": trace.xs[relation.x.name]}
        return inputs | {f"df of {link.group.name}": trace.dfs[link.name] for link in relation.links}

    def _factors(
        self, program: Program, trace: InputOutputTrace, signal: dict[str, jax.Array], count: jax.Array
    ) -> Factors:
        """The input traces, and `dy = sum_s eps_df L / c` of each relation that reaches a group with a signal."""
        correction, dys = self._correction(count), {}
        for relation in program.relations:
            links = [link for link in relation.links if link.group.name in signal]
            terms = [(trace.dfs[link.name] * link.seen(signal[link.group.name])).sum(-1) for link in links]
            if terms:
                dy = sum(terms[1:], terms[0])
                dys[relation.name] = (dy / correction.astype(dy.dtype),)
        return Factors(trace.xs, dys)

    def _correction(self, count: jax.Array) -> jax.Array:
        n = count.astype(jnp.result_type(float))
        if self.rule == "published":
            return 1 - self.decay ** (n + 1)
        return jnp.where(count < _CORRECTED_STEPS, 1 - (1 - self.decay) ** (n + 1), 1.0)


def _is_decay(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and 0 < float(value) < 1
