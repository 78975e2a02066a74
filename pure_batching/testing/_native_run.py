"""BrainScale itself, one sample at a time, as a yardstick."""

from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
from jax import core

from .._algorithms.base import Algorithm
from .._algorithms.d_rtrl import D_RTRL
from .._algorithms.es_d_rtrl import ES_D_RTRL
from .._batch import unstack
from .._execution import Carry
from .._native import from_native, to_native, write_states
from .._tree import Tree
from ._case import Case, Data, Result, Subject

Make = Callable[..., Any]


def brainscale_runs_here() -> bool:
    """Whether this JAX still has what BrainScale 0.1.0 differentiates with."""
    return hasattr(core, "get_aval")


def counterpart(algorithm: Algorithm) -> Make | None:
    """BrainScale's own algorithm, None where it has none that gives the same numbers."""
    if isinstance(algorithm, ES_D_RTRL) and algorithm == ES_D_RTRL(algorithm.decay_or_rank):
        return lambda net: brainscale.ES_D_RTRL(net, decay_or_rank=algorithm.decay_or_rank)
    return brainscale.D_RTRL if algorithm == D_RTRL() else None


def native_round_trip(subject: Subject, carry: Carry) -> tuple[Carry, Carry]:
    """The carry of one sample written to BrainScale's algorithm and read back, and what was written there."""
    algorithm, _ = _compiled(subject)
    to_native(subject.learner, carry, algorithm)
    once = from_native(subject.learner, algorithm)
    to_native(subject.learner, once, algorithm)
    return from_native(subject.learner, algorithm), once


def native_result(case: Case) -> Result:
    """BrainScale's gradient of each sample; no carry."""
    parts = []
    for i, carry in enumerate(unstack(case.init(case.reference))):
        algorithm, net = _compiled(case.subject)
        write_states(net, {**case.params, **carry.hidden, **carry.other})
        with brainstate.environ.context(**(case.subject.environ or {})):
            parts.append(_run(case, algorithm, net, jax.tree.map(lambda x, i=i: x[:, i], case.data)))
    gradients, losses, outputs = zip(*parts, strict=True)
    return Result(_side_by_side(outputs, 1), jnp.stack(losses, 1), _side_by_side(gradients, 0), None)  # type: ignore[arg-type]


def _compiled(subject: Subject) -> tuple[Any, Any]:
    """A new module and BrainScale's algorithm, compiled for one sample."""
    make: Any = counterpart(subject.algorithm)
    net = subject.net_factory()
    with brainstate.environ.context(**(subject.environ or {})):
        brainstate.nn.init_all_states(net)
        algorithm = make(net)
        algorithm.compile_graph(*jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), subject.learner.program.inputs))
    return algorithm, net


def _run(case: Case, algorithm: Any, net: Any, data: Data) -> tuple[Tree, jax.Array, Tree]:
    """Gradients summed over steps, losses and outputs `[T, ...]`."""
    weights = net.states(brainstate.ParamState)

    def step(total: Tree, moment: Data) -> Any:
        def value() -> Any:
            output = algorithm(*moment.inputs)
            loss = case.subject.loss(output, moment.targets)
            return loss, (loss, output)

        differentiated: Any = brainstate.transform.grad(value, weights, has_aux=True)
        gradient, emitted = differentiated()
        return jax.tree.map(lambda a, b: a + b, total, gradient, is_leaf=u.math.is_quantity), emitted

    zeros = jax.tree.map(u.math.zeros_like, weights.to_dict_values(), is_leaf=u.math.is_quantity)
    run: Any = brainstate.transform.jit(lambda data: brainstate.transform.scan(step, zeros, data))
    gradients, (losses, outputs) = run(data)
    return {".".join(map(str, path)): value for path, value in gradients.items()}, losses, outputs


def _side_by_side(parts: Any, axis: int) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *parts)
