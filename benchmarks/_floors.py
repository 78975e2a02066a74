"""The tutorial's network written out by hand: programs that know it, against which the library is measured.

Each gives the gradient that the library gives, the mean over samples and the sum over time. What does not wait for the
step before is done for all steps at once: the input half of the product, the readout and its loss, and every product
that makes the gradient of a weight.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from _measuring import Run, compiled
from _problem import Gradients, Problem

from pure_batching._tutorial.net import Dataset, LIFNet

# Both time constants are 5 ms, and a step is 1 ms.
LEAK = float(np.exp(np.float32(-0.2)))

# The decay of ES_D_RTRL in every benchmark.
DECAY = 0.9


class Weights(NamedTuple):
    """The numbers of the tutorial's network, in mV.

    Attributes:
      inward: from the inputs, `[F, H]`.
      recurrent: from the spikes, `[H, H]`.
      bias: of each neuron, `[H]`.
      outward: to the readout, `[H, C]`.
    """

    inward: jax.Array
    recurrent: jax.Array
    bias: jax.Array
    outward: jax.Array


class Steps(NamedTuple):
    """What a sequence leaves for its gradient, each `[T, B, H]`; the threshold is 1.

    Attributes:
      spikes: of the neurons after each step.
      slopes: how a spike moves with its voltage.
    """

    spikes: jax.Array
    slopes: jax.Array


Floor = Callable[[Weights, Dataset], Gradients]


def by_hand(floor: Floor, problem: Problem) -> Run:
    """The gradient that a program gives, with the weights of a network."""
    weights = weights_of(problem.net, problem.data.inputs.shape[-1])
    return compiled(floor, weights, problem.data)


def forward_by_hand(problem: Problem) -> Run:
    """The mean loss, without a gradient."""
    return compiled(forward, weights_of(problem.net, problem.data.inputs.shape[-1]), problem.data)


def weights_of(net: LIFNet, features: int) -> Weights:
    """The weights of a network."""
    into, out = (state.value for state in (net.syn.comm.weight_op, net.out.weight_op))
    both, bias = (u.get_mantissa(into[name]) for name in ("weight", "bias"))
    return Weights(both[:features], both[features:], bias, out["weight"])


def named(kernel: jax.Array, bias: jax.Array, outward: jax.Array) -> Gradients:
    """Gradients under the names of the network; the kernel is that of inputs and spikes together, `[F + H, H]`."""
    return {"out.weight_op": {"weight": outward}, "syn.comm.weight_op": {"bias": bias, "weight": kernel}}


def forward(weights: Weights, data: Dataset) -> jax.Array:
    """The loss, summed over steps: what no gradient can do without."""
    logits = _logits(weights, _steps(weights, data.inputs).spikes)
    chosen = jnp.take_along_axis(logits, data.labels[None, :, None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - chosen).sum() / len(data.labels)


def es_d_rtrl(weights: Weights, data: Dataset) -> Gradients:
    """ES_D_RTRL of a whole sequence.

    The trace of an input is a decaying sum. The sum over steps of `eps_x[t] (x) dy[t]` is therefore that of
    `x[t] (x) g[t]` with `g[t] = dy[t] + decay g[t+1]`: the narrower side is summed, and no input has a trace.
    """
    steps, times = _smoothed_steps(weights, data.inputs), jnp.arange(1.0, len(data.inputs) + 1)
    of_readout = _of_readout(weights, steps.spikes, data.labels) / (1 - (1 - DECAY) ** times)[:, None, None]
    to_neurons = of_readout @ weights.outward.T

    def back(after: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        signal, slope = step
        total = slope * signal + DECAY * after
        return total, total

    _, neurons = jax.lax.scan(back, jnp.zeros_like(to_neurons[0]), (to_neurons, steps.slopes), reverse=True)
    readout = _from_behind(DECAY, of_readout * _smoothed_readout(times))
    # The sum of `dy` is that of `g[t] - decay g[t+1]`.
    bias = neurons[0].sum(0) + (1 - DECAY) * neurons[1:].sum((0, 1))
    return _contracted(data.inputs, steps, neurons, readout, bias)


def _smoothed_readout(times: jax.Array) -> jax.Array:
    """The trace of the readout's derivative, which is the same for all: `sum_s (decay leak)^s (1 - decay)`."""
    return ((1 - DECAY) * (1 - (DECAY * LEAK) ** times) / (1 - DECAY * LEAK))[:, None, None]


def _smoothed_steps(weights: Weights, inputs: jax.Array) -> Steps:
    """The neurons from rest; the slopes are multiplied by the trace of `dv/dy = 1`."""

    def one(state: tuple[jax.Array, ...], given: jax.Array) -> tuple[tuple[jax.Array, ...], Steps]:
        voltage, spikes, trace = state
        trace = DECAY * LEAK * (1 - slope(voltage)) * trace + (1 - DECAY)
        voltage = LEAK * (voltage - spikes) + given + spikes @ weights.recurrent
        spikes = spike(voltage)
        return (voltage, spikes, trace), Steps(spikes, trace * slope(voltage))

    given = inputs @ weights.inward + weights.bias
    return jax.lax.scan(one, (jnp.zeros_like(given[0]),) * 3, given)[1]


def d_rtrl(weights: Weights, data: Dataset) -> Gradients:
    """Published D_RTRL of a whole sequence: one scan from behind, and no trace."""
    steps = _steps(weights, data.inputs)
    readout = _of_readout(weights, steps.spikes, data.labels)
    to_neurons = readout @ weights.outward.T

    def back(after: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        signal, slope = step
        adjoint = slope * (signal - LEAK * after) + LEAK * after
        return adjoint, adjoint

    _, adjoints = jax.lax.scan(back, jnp.zeros_like(to_neurons[0]), (to_neurons, steps.slopes), reverse=True)
    return _contracted(data.inputs, steps, adjoints, _from_behind(LEAK, readout), adjoints.sum((0, 1)))


def bptt(weights: Weights, data: Dataset) -> Gradients:
    """Backpropagation through time, as JAX derives it."""
    inward, recurrent, bias, outward = jax.grad(forward)(weights, data)
    return named(jnp.concatenate([inward, recurrent]), bias, outward)


def bptt_contracted_once(weights: Weights, data: Dataset) -> Gradients:
    """Backpropagation through time, with one product for the gradient of each weight after the scan from behind."""
    steps = _steps(weights, data.inputs)
    readout = _from_behind(LEAK, _of_readout(weights, steps.spikes, data.labels))
    to_neurons = readout @ weights.outward.T

    def back(after: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        signal, slope = step
        adjoint = slope * (signal + after @ weights.recurrent.T - LEAK * after) + LEAK * after
        return adjoint, adjoint

    _, adjoints = jax.lax.scan(back, jnp.zeros_like(to_neurons[0]), (to_neurons, steps.slopes), reverse=True)
    return _contracted(data.inputs, steps, adjoints, readout, adjoints.sum((0, 1)))


@jax.custom_jvp
def spike(voltage: jax.Array) -> jax.Array:
    """1 above the threshold, with the derivative of `brainpy.state.LIF`."""
    return (voltage > 1).astype(voltage.dtype)


@spike.defjvp
def _(primals: Any, tangents: Any) -> Any:
    (voltage,), (moved,) = primals, tangents
    return spike(voltage), slope(voltage) * moved


def slope(voltage: jax.Array) -> jax.Array:
    """How a spike moves with its voltage."""
    return 0.3 * jax.nn.relu(1 - jnp.abs(voltage - 1))


def _steps(weights: Weights, inputs: jax.Array) -> Steps:
    """The neurons from rest."""

    def one(state: tuple[jax.Array, jax.Array], given: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Steps]:
        voltage, spikes = state
        voltage = LEAK * (voltage - spikes) + given + spikes @ weights.recurrent
        spikes = spike(voltage)
        return (voltage, spikes), Steps(spikes, slope(voltage))

    given = inputs @ weights.inward + weights.bias
    return jax.lax.scan(one, (jnp.zeros_like(given[0]),) * 2, given)[1]


def _logits(weights: Weights, spikes: jax.Array) -> jax.Array:
    """The leaky readout after each step, `[T, B, C]`."""

    def one(rate: jax.Array, given: jax.Array) -> tuple[jax.Array, jax.Array]:
        rate = LEAK * rate + given
        return rate, rate

    given = spikes @ weights.outward
    return jax.lax.scan(one, jnp.zeros_like(given[0]), given)[1]


def _of_readout(weights: Weights, spikes: jax.Array, labels: jax.Array) -> jax.Array:
    """How the loss of each step moves with its logits, `[T, B, C]`."""
    logits = _logits(weights, spikes)
    return (jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])) / len(labels)


def _from_behind(decay: float, values: jax.Array) -> jax.Array:
    """`sum[t] = values[t] + decay sum[t+1]`."""

    def back(after: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = value + decay * after
        return total, total

    return jax.lax.scan(back, jnp.zeros_like(values[0]), values, reverse=True)[1]


def _contracted(inputs: jax.Array, steps: Steps, neurons: jax.Array, readout: jax.Array, bias: jax.Array) -> Gradients:
    """The gradient from what each step gives to the sums that its neurons and its readout form."""
    before = jnp.concatenate([jnp.zeros_like(steps.spikes[:1]), steps.spikes[:-1]])
    both = jnp.concatenate([inputs, before], -1)
    return named(_products(both, neurons), bias, _products(steps.spikes, readout))


def _products(left: jax.Array, right: jax.Array) -> jax.Array:
    """The sum over steps and samples of outer products."""
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])
