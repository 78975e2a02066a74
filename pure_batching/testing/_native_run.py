"""Runs of BrainScale itself, which results are compared with."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
from jax import core

from .._algorithms.base import Algorithm
from .._algorithms.d_rtrl import D_RTRL
from .._algorithms.es_d_rtrl import ES_D_RTRL
from .._bridge import from_native, to_native
from .._carries import unstack
from .._learning.carry import Carry
from .._program import Loss
from .._sources.states import write_states
from .._tree import Tree
from ..errors import PureBatchingError
from ._altered import side_by_side
from ._case import Case, Data, Result, Subject
from ._kept import kept

Make = Callable[..., Any]


def brainscale_runs_here() -> bool:
    """Whether this JAX still has the functions that BrainScale 0.1.0 differentiates with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return hasattr(core, "get_aval")


def counterpart(algorithm: Algorithm) -> Make | None:
    """BrainScale's own algorithm, None where it has none that gives the same numbers."""
    if isinstance(algorithm, ES_D_RTRL) and algorithm == ES_D_RTRL(algorithm.decay_or_rank):
        number: Any = algorithm.decay_or_rank
        return lambda net: brainscale.ES_D_RTRL(net, decay_or_rank=number)
    return brainscale.D_RTRL if algorithm == D_RTRL() else None


@dataclasses.dataclass(frozen=True, eq=False)
class Native:
    """A compiled BrainScale algorithm, which can be run again and again.

    Attributes:
      net: the module.
      algorithm: compiled.
      loss: `(output, target) -> []` of one sample at one step.
      environ: the settings that it runs under.
      call: what runs a step: the algorithm, or its map over samples.
      start: every state that a step may change, and its value before the first step.
      is_batched: whether inputs lead with samples.
    """

    net: Any
    algorithm: Any
    loss: Loss
    environ: Mapping[str, Any]
    call: Callable[..., Tree]
    start: list[tuple[Any, Tree]]
    is_batched: bool = False

    @classmethod
    def of(
        cls, net: Any, algorithm: Any, loss: Loss, environ: Mapping[str, Any], call: Any = None, *, is_batched: bool
    ) -> "Native":
        """Record an algorithm that has just been compiled, with the values of its states."""
        weights = set(map(id, net.states(brainstate.ParamState).values()))
        states = {id(state): state for state in algorithm.states().values() if id(state) not in weights}
        start = [(state, state.value) for state in states.values()]
        return cls(net, algorithm, loss, environ, call or algorithm, start, is_batched)

    def restart(self) -> None:
        """Set every state to its value before the first step."""
        for state, value in self.start:
            state.value = value

    def run(self, data: Data) -> tuple[Tree, jax.Array, Tree]:
        """Gradients summed over steps and samples, losses and outputs of `[T, ...]` data, from where the states are."""
        with brainstate.environ.context(**self.environ):
            gradients, (losses, outputs) = self._compiled(data)
        return {".".join(map(str, path)): value for path, value in gradients.items()}, losses, outputs

    @functools.cached_property
    def _compiled(self) -> Any:
        return brainstate.transform.jit(self._sequence)

    def _sequence(self, data: Data) -> Any:
        weights = self.net.states(brainstate.ParamState)
        loss = jax.vmap(self.loss) if self.is_batched else self.loss

        def step(total: Tree, moment: Data) -> Any:
            def value() -> Any:
                output = self.call(*moment.inputs)
                losses = loss(output, moment.targets)
                return losses.sum(), (losses, output)

            differentiated: Any = brainstate.transform.grad(value, weights, has_aux=True)
            gradient, emitted = differentiated()
            return jax.tree.map(lambda a, b: a + b, total, gradient, is_leaf=u.math.is_quantity), emitted

        zeros = jax.tree.map(u.math.zeros_like, weights.to_dict_values(), is_leaf=u.math.is_quantity)
        return brainstate.transform.scan(step, zeros, data)


def native(subject: Subject, make: Make) -> Native:
    """Build a new module, and compile BrainScale's algorithm for one sample of it."""
    net, environ = subject.net_factory(), subject.environ or {}
    with brainstate.environ.context(**environ):
        brainstate.nn.init_all_states(net, batch_size=None)
        algorithm = make(net)
        algorithm.compile_graph(*jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), subject.learner.program.inputs))
    return Native.of(net, algorithm, subject.loss, environ, is_batched=False)


class Samples(NamedTuple):
    """Results of BrainScale, which runs one sample at a time.

    Attributes:
      gradients: of each sample, `[B, *param.shape]`.
      losses, outputs: `[T, B, ...]`.
      ends: what was read of each sample after the last step.
    """

    gradients: Tree
    losses: jax.Array
    outputs: Tree
    ends: list[Any]


def one_by_one(
    runs: Native, starts: Iterable[Mapping[str, Tree]], data: Data, read: Callable[[], Any] = lambda: None
) -> Samples:
    """Run each sample alone, from states by path; `read` is called after each."""
    parts, ends = [], []
    for i, states in enumerate(starts):
        runs.restart()
        write_states(runs.net, states)
        parts.append(runs.run(jax.tree.map(lambda x, i=i: x[:, i], data)))
        ends.append(read())
    gradients, losses, outputs = zip(*parts, strict=True)
    return Samples(side_by_side(gradients, 0), jnp.stack(losses, 1), side_by_side(outputs, 1), ends)


def refusal(run: Callable[[], Any]) -> str | None:
    """Run BrainScale, and return the text of the error that it raises; None without one."""
    try:
        run()
    except PureBatchingError:
        raise
    except Exception as reason:  # noqa: BLE001 - whatever it cannot do, by any type of error
        return f"brainscale cannot: {type(reason).__name__}: {str(reason).strip().split(chr(10))[0]}"
    return None


def native_round_trip(subject: Subject, carry: Carry) -> tuple[Carry, Carry]:
    """Write the carry of one sample to BrainScale's algorithm and read it back, twice; return the last one first."""
    algorithm = compiled(subject).algorithm
    to_native(subject.learner, carry, algorithm)
    once = from_native(subject.learner, algorithm)
    to_native(subject.learner, once, algorithm)
    return from_native(subject.learner, algorithm), once


@kept
def native_result(case: Case) -> Result:
    """Compute BrainScale's gradient of each sample; the result has no carry."""
    starts = [{**case.params, **carry.hidden, **carry.other} for carry in unstack(case.init(case.reference))]
    samples = one_by_one(compiled(case.subject), starts, case.data)
    return Result(samples.outputs, samples.losses, samples.gradients, None)  # type: ignore[arg-type]


@kept
def compiled(subject: Subject) -> Native:
    """BrainScale's own algorithm on the subject's module, compiled once; every state is written before it runs."""
    make: Any = counterpart(subject.algorithm)
    return native(subject, make)
