"""What is timed: this library's gradient of a sequence, and that of BrainScale's own two strategies.

BrainScale's own are written as in its tutorial; they run in the environment of requirements-parity.lock.
"""

from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import numpy as np
from _common import Gradients, Run

import pure_batching as pb
from pure_batching._tutorial.net import Dataset, LIFNet
from pure_batching._tutorial.training import loss

Strategy = Callable[[pb.Learner, int], pb.Learner]

# `(net, **mode) -> a compiled-to-be algorithm`, such as `lambda net, **mode: brainscale.ES_D_RTRL(net, 0.9, **mode)`.
MakeAlgorithm = Callable[..., Any]


def ours(strategy: Strategy, algorithm: pb.Algorithm, window: int | None, net: LIFNet, data: Dataset) -> Run:
    """Capture, batch and differentiate, inside one `jax.jit` as a training step has it."""
    params, gradient = _parts(strategy, algorithm, window, net, data)
    compiled = jax.jit(gradient)
    return lambda: compiled(params, data)


def ours_outside_jit(
    strategy: Strategy, algorithm: pb.Algorithm, window: int | None, net: LIFNet, data: Dataset
) -> Run:
    """The same as a bare call, which checks its arguments each time."""
    params, gradient = _parts(strategy, algorithm, window, net, data)
    return lambda: gradient(params, data)


def _parts(
    strategy: Strategy, algorithm: pb.Algorithm, window: int | None, net: LIFNet, data: Dataset
) -> tuple[Gradients, Callable[[Gradients, Dataset], Gradients]]:
    learner, params = pb.capture(net, np.asarray(data.inputs)[0, 0], algorithm=algorithm)
    grad_fn = pb.sequence_grad(strategy(learner, len(data.labels)), loss, window=window)

    def gradient(params: Gradients, data: Dataset) -> Gradients:
        return grad_fn(params, None, data.inputs, brainscale.SingleStepData(data.labels))[0]

    return params, gradient


def brainscale_runs_here() -> bool:
    """Whether this JAX still has what BrainScale 0.1.0 differentiates with."""
    return hasattr(jax.core, "get_aval")


def brainscale_manual(make: MakeAlgorithm, net: LIFNet, data: Dataset) -> Run:
    """States with a batch axis, and the algorithm in batching mode."""

    @brainstate.transform.jit
    def run(data: Dataset) -> Gradients:
        brainstate.nn.init_all_states(net, batch_size=len(data.labels))
        algorithm = make(net, mode=brainstate.mixin.Batching())
        algorithm.compile_graph(data.inputs[0])
        return _gradients(net, algorithm, data)

    return lambda: _by_path(run(data))


def brainscale_vmap(make: MakeAlgorithm, net: LIFNet, data: Dataset) -> Run:
    """States of one sample, mapped by BrainState."""

    @brainstate.transform.jit
    def run(data: Dataset) -> Gradients:
        algorithm = make(net)

        @brainstate.transform.vmap_new_states(state_tag="new", axis_size=len(data.labels))
        def init() -> None:
            brainstate.nn.init_all_states(net)
            algorithm.compile_graph(data.inputs[0, 0])

        init()
        return _gradients(net, brainstate.nn.Vmap(algorithm, vmap_states="new"), data)

    return lambda: _by_path(run(data))


def _gradients(net: LIFNet, model: Callable[[jax.Array], jax.Array], data: Dataset) -> tuple[Any, jax.Array]:
    """The tutorial's gradient: the mean over samples, summed over time; and the loss of each step."""
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


def _by_path(result: tuple[Any, jax.Array]) -> Gradients:
    return {".".join(map(str, path)): value for path, value in result[0].items()}
