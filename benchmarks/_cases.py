"""What is timed: this library's gradient of a sequence, and that of BrainScale's own two strategies.

BrainScale's own are written as in its tutorial; they run in the environment of requirements-parity.lock.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import numpy as np
from _measuring import Run, compiled
from _problem import Gradients, Problem

import pure_batching as pb
from pure_batching._tutorial.net import Dataset
from pure_batching._tutorial.training import loss

Strategy = Callable[[Any, int], Any]

# `(net, **mode) -> a compiled-to-be algorithm`, such as `lambda net, **mode: brainscale.ES_D_RTRL(net, 0.9, **mode)`.
MakeAlgorithm = Callable[..., Any]


def ours(
    strategy: Strategy, algorithm: pb.Algorithm, problem: Problem, window: int | None = None, **options: Any
) -> Run:
    """The gradient of a sequence, inside one `jax.jit` as a training step has it."""
    return by_driver(partial(pb.sequence_grad, window=window, **options), strategy, algorithm, problem)


def by_driver(make: Callable[..., Any], strategy: Strategy, algorithm: pb.Algorithm, problem: Problem) -> Run:
    """The first result of any driver, `make(learner, loss)(params, carry, inputs, targets)`."""
    return by_driver_of(pb, make, strategy, algorithm, problem)


def by_driver_of(package: Any, make: Callable[..., Any], strategy: Strategy, algorithm: Any, problem: Problem) -> Run:
    """The same of a package that may be another version of this library."""
    net, data = problem
    learner, params = package.capture(net, np.asarray(data.inputs)[0, 0], algorithm=algorithm)
    function = make(strategy(learner, len(data.labels)), loss)

    def first(params: Gradients, data: Dataset) -> Any:
        return function(params, None, data.inputs, brainscale.SingleStepData(data.labels))[0]

    return compiled(first, params, data)


def brainscale_runs_here() -> bool:
    """Whether this JAX still has what BrainScale 0.1.0 differentiates with."""
    return hasattr(jax.core, "get_aval")


def brainscale_manual(make: MakeAlgorithm, problem: Problem) -> Run:
    """States with a batch axis, and the algorithm in batching mode."""
    net, data = problem

    @brainstate.transform.jit
    def run(data: Dataset) -> Gradients:
        brainstate.nn.init_all_states(net, batch_size=len(data.labels))
        algorithm = make(net, mode=brainstate.mixin.Batching())
        algorithm.compile_graph(data.inputs[0])
        return native_gradient(net, algorithm, data)

    return Run(lambda: by_path(run(data)))


def brainscale_vmap(make: MakeAlgorithm, problem: Problem) -> Run:
    """States of one sample, mapped by BrainState."""
    net, data = problem

    @brainstate.transform.jit
    def run(data: Dataset) -> Gradients:
        algorithm = make(net)

        @brainstate.transform.vmap_new_states(state_tag="new", axis_size=len(data.labels))
        def init() -> None:
            brainstate.nn.init_all_states(net)
            algorithm.compile_graph(data.inputs[0, 0])

        init()
        return native_gradient(net, brainstate.nn.Vmap(algorithm, vmap_states="new"), data)

    return Run(lambda: by_path(run(data)))


def native_gradient(
    net: brainstate.nn.Module, model: Callable[[jax.Array], jax.Array], data: Dataset
) -> tuple[Any, jax.Array]:
    """The gradient by a compiled algorithm, the mean over samples, summed over time; and the loss of each step."""
    weights = net.states(brainstate.ParamState)

    def mean_loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model(x)
        return loss(logits, data.labels).mean(), logits

    def step(total: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        gradient = brainstate.transform.grad(mean_loss, weights, has_aux=True, return_value=True)
        gradients, value, _ = gradient(x)
        return jax.tree.map(lambda a, b: a + b, total, gradients, is_leaf=u.math.is_quantity), value

    zeros = jax.tree.map(u.math.zeros_like, weights.to_dict_values(), is_leaf=u.math.is_quantity)
    return brainstate.transform.scan(step, zeros, data.inputs)


def by_path(result: tuple[Any, jax.Array]) -> Gradients:
    """The gradient under the names of this library."""
    return {".".join(map(str, path)): value for path, value in result[0].items()}
