"""ES_D_RTRL: traces of a weight's input and of its output, O(inputs + outputs) per sample."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._options import check_choice, is_count
from .._program import Jacobians, Params, Program, Signal
from .._relation import Relation
from ..errors import AlgorithmError
from ._hyperparameters import Number, beside, check_array, dtype_field, is_array, is_fraction, number_field, plain
from ._input_output_trace import (
    InputOutputTrace,
    by_relation,
    complete_step,
    decayed,
    outer_products,
    present,
    traces_of,
    zeros,
)
from .base import RULES, VJPS, Algorithm, Credit, Factors, Parts, apply_matrix, credit_of

# BrainScale stops correcting the bias after so many steps.
_CORRECTED_STEPS = 1000


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
      decay_or_rank: the decay in (0, 1) as a float, or the rank `r >= 1` as an integer, `decay = (r - 1) / (r + 1)`. A
        decay may be an array `[]`, which may be traced: `jax.vmap` over it then compiles once for all decays.
        Nothing has a derivative by it.
      rule: `"brainscale"`, the numbers of brainscale 0.1.0: `c = 1 - (1 - decay)**(n + 1)` for n < 1000, else 1.
        `"published"`, the correction that fits the smoothing, `c = 1 - decay**(n + 1)`, and a path from one hidden
        state of a group to another within a step counts once. `n` is the number of updates before this one.
      vjp: `"single-step"`, as above; `"multi-step"`, the exact gradient inside each window of `sequence_grad`, and the
        trace for the steps before the window.
      trace_dtype: the float type in which a carry keeps the traces; None for that in which they are computed.

    Raises:
      AlgorithmError: a decay or rank out of range, or one whose bias correction is 0 (rank 1 with the default rule); an
        unknown rule or vjp; a `trace_dtype` that is no float type; at a derivative by the decay.
    """

    decay_or_rank: Number | int = number_field()
    rule: str = eqx.field(static=True, default="brainscale")
    vjp: str = eqx.field(static=True, default="single-step")
    trace_dtype: Any = dtype_field()

    def __check_init__(self) -> None:
        check_choice("rule", self.rule, RULES, AlgorithmError)
        check_choice("vjp", self.vjp, VJPS, AlgorithmError)
        check_array("decay_or_rank", self.decay_or_rank)
        if not is_fraction(self.decay_or_rank) and not is_count(self.decay_or_rank):
            raise AlgorithmError(
                "decay_or_rank",
                got=repr(self.decay_or_rank),
                expected="a float with 0 < decay < 1, or an integer rank >= 1",
                repair="Use a decay such as 0.9 or a rank such as 19, which are the same.",
            )
        if not is_array(self.decay_or_rank) and not self._first_correction() > 0:
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
    def decay(self) -> Number:
        """The decay factor of both traces."""
        if is_count(self.decay_or_rank):
            return (self.decay_or_rank - 1) / (self.decay_or_rank + 1)
        return plain(self.decay_or_rank)

    def init(self, program: Program) -> InputOutputTrace:
        """Zeros."""
        return zeros(program)

    @property
    def credit(self) -> Credit:
        """By backpropagation inside the window with `vjp="multi-step"`, else by the trace."""
        return credit_of(self.vjp)

    @property
    def is_complete(self) -> bool:
        """With the published rule."""
        return self.rule == "published"

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
        dfs = {}
        for link in {link.df: link for link in program.links()}.values():
            diagonal = link.seen(jacobians.diagonals[link.group.name], tail=2)
            carried = apply_matrix(diagonal, trace.dfs[link.df])
            decay = beside(self.decay, carried)
            dfs[link.df] = decay * carried + (1 - decay) * jacobians.dfs[link.df]
        new = InputOutputTrace(decayed(self.decay, trace.xs, jacobians.xs), dfs)
        if not self.is_complete:
            return new, (self._corrected(outer_products(program, new, signal.new), count),)
        of_new, of_old, of_products = complete_step(program, jacobians, trace, new, signal)
        before = jnp.maximum(count - 1, 0)
        return new, present(self._corrected(of_new, count), self._corrected(of_old, before), of_products)

    def window_gradient(
        self, program: Program, params: Params, trace_before: InputOutputTrace | None, records: tuple[Factors, ...]
    ) -> Parts:
        """The records of the steps, which are the factors already."""
        del params, trace_before
        return Parts(by_relation(program, records), {})

    def gradient_of_trace(
        self, program: Program, params: Params, trace: InputOutputTrace, signal: Signal, count: jax.Array
    ) -> Parts:
        """The factors of one step with this trace."""
        del params
        factors = self._corrected(outer_products(program, trace, signal.new), count)
        return Parts(by_relation(program, (factors,)), {})

    def traces_of(self, relation: Relation, trace: InputOutputTrace) -> dict[str, jax.Array]:
        """The trace of the input, and one of the output for each hidden group."""
        return traces_of(relation, trace)

    def _corrected(self, factors: Factors, count: jax.Array) -> Factors:
        """Factors whose `dy` is divided by the bias correction."""
        correction = self._correction(count)
        return factors._replace(dys=jax.tree.map(lambda dy: dy / correction.astype(dy.dtype), factors.dys))

    def _correction(self, count: jax.Array) -> jax.Array:
        n = count.astype(jnp.result_type(float))
        if self.rule == "published":
            return 1 - self.decay ** (n + 1)
        return jnp.where(count < _CORRECTED_STEPS, 1 - (1 - self.decay) ** (n + 1), 1.0)
