"""One step of the tutorial's network with its gradient, written out by hand: what a stream needs at every step."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from _floors import DECAY, LEAK, Weights, named, slope, spike
from _problem import Gradients

from pure_batching._tutorial.net import Dataset

# `(eps [B, F + H, H], L [B, H]) -> [F + H, H]`.
Contract = Callable[[jax.Array, jax.Array], jax.Array]


class ESCarry(NamedTuple):
    """What ES_D_RTRL carries from step to step.

    Attributes:
      voltage: of the neurons, `[B, H]`.
      rate: of the readout, `[B, C]`.
      inputs: the trace of what enters the neurons, `[B, F + H]`.
      spikes: the trace of what enters the readout, `[B, H]`.
      neurons: the trace of `dv/dy`, `[B, H]`.
      readout: the trace of the readout's derivative, the same for all, `[]`.
      count: steps that were made.
    """

    voltage: jax.Array
    rate: jax.Array
    inputs: jax.Array
    spikes: jax.Array
    neurons: jax.Array
    readout: jax.Array
    count: jax.Array


class DCarry(NamedTuple):
    """What published D_RTRL carries from step to step.

    Attributes:
      voltage: of the neurons, `[B, H]`.
      rate: of the readout, `[B, C]`.
      kernel: the trace of the weights to the neurons, `[B, F + H, H]`.
      bias: the trace of the bias, `[B, H]`.
      readout: the trace of the readout's weights, which is the same for all outputs, `[B, H]`.
    """

    voltage: jax.Array
    rate: jax.Array
    kernel: jax.Array
    bias: jax.Array
    readout: jax.Array


def es_start(weights: Weights, samples: int) -> ESCarry:
    """Rest."""
    (features, hidden), (_, classes) = weights.inward.shape, weights.outward.shape
    still = jnp.zeros((samples, hidden))
    inputs = jnp.zeros((samples, features + hidden))
    return ESCarry(still, jnp.zeros((samples, classes)), inputs, still, still, jnp.zeros(()), jnp.zeros(()))


def d_start(weights: Weights, samples: int) -> DCarry:
    """Rest."""
    (features, hidden), (_, classes) = weights.inward.shape, weights.outward.shape
    still = jnp.zeros((samples, hidden))
    return DCarry(still, jnp.zeros((samples, classes)), jnp.zeros((samples, features + hidden, hidden)), still, still)


def es_step(weights: Weights, carry: ESCarry, x: jax.Array, labels: jax.Array) -> tuple[ESCarry, Gradients]:
    """The next carry, and the gradient of the step's mean loss."""
    now = _now(weights, carry, x, x @ weights.inward + weights.bias, labels)
    correction = 1 / (1 - (1 - DECAY) ** (carry.count + 1))
    inputs, spikes = DECAY * carry.inputs + now.both, DECAY * carry.spikes + now.spikes
    neurons = DECAY * now.kept * carry.neurons + (1 - DECAY)
    readout = DECAY * LEAK * carry.readout + (1 - DECAY)
    own = neurons * now.of_neurons * correction
    gradient = named(inputs.T @ own, own.sum(0), spikes.T @ (now.of_readout * (readout * correction)))
    return ESCarry(now.voltage, now.rate, inputs, spikes, neurons, readout, carry.count + 1), gradient


def d_step(weights: Weights, carry: DCarry, x: jax.Array, labels: jax.Array) -> tuple[DCarry, Gradients]:
    """The next carry, and the gradient of the step's mean loss."""
    return _d_step(weights, carry, x, x @ weights.inward + weights.bias, labels, summed)


def d_rtrl_step_by_step(weights: Weights, data: Dataset) -> Gradients:
    """Published D_RTRL with its trace: it is advanced, and contracted with the signal, at every step.

    Blocks of samples, one after the other, were measured to be no faster, and much slower in a loop.
    """
    return _step_by_step(weights, data, summed)


def d_rtrl_by_einsum(weights: Weights, data: Dataset) -> Gradients:
    """The same as one writes it first: the contraction is an `einsum`."""
    return _step_by_step(weights, data, partial(jnp.einsum, "bio,bo->io"))


def summed(trace: jax.Array, signal: jax.Array) -> jax.Array:
    """A sum over samples of element-wise products, which the compiler fuses with the new trace."""
    return (trace * signal[:, None, :]).sum(0)


def _step_by_step(weights: Weights, data: Dataset, contract: Contract) -> Gradients:
    """The input half of the product is taken for all steps at once."""

    def one(state: tuple[DCarry, Gradients], step: tuple[jax.Array, jax.Array]) -> Any:
        carry, gradient = _d_step(weights, state[0], *step, data.labels, contract)
        return (carry, jax.tree.map(jnp.add, state[1], gradient)), None

    given = data.inputs @ weights.inward + weights.bias
    zeros = named(jnp.zeros_like(jnp.concatenate(weights[:2])), *map(jnp.zeros_like, weights[2:]))
    start = d_start(weights, len(data.labels)), zeros
    return jax.lax.scan(one, start, (data.inputs, given))[0][1]


def _d_step(
    weights: Weights, carry: DCarry, x: jax.Array, given: jax.Array, labels: jax.Array, contract: Contract
) -> tuple[DCarry, Gradients]:
    now = _now(weights, carry, x, given, labels)
    kernel = now.kept[:, None, :] * carry.kernel + now.both[:, :, None]
    bias, readout = now.kept * carry.bias + 1, LEAK * carry.readout + now.spikes
    of_bias = (bias * now.of_neurons).sum(0)
    gradient = named(contract(kernel, now.of_neurons), of_bias, readout.T @ now.of_readout)
    return DCarry(now.voltage, now.rate, kernel, bias, readout), gradient


class Now(NamedTuple):
    """What both rules need of one step.

    Attributes:
      voltage, rate, spikes: after it.
      both: what enters the neurons, `[B, F + H]`.
      kept: of the voltage before, `dv[t]/dv[t-1]`, `[B, H]`.
      of_readout, of_neurons: how the loss moves with the rates, `[B, C]`, and with the voltages, `[B, H]`.
    """

    voltage: jax.Array
    rate: jax.Array
    spikes: jax.Array
    both: jax.Array
    kept: jax.Array
    of_readout: jax.Array
    of_neurons: jax.Array


def _now(weights: Weights, carry: ESCarry | DCarry, x: jax.Array, given: jax.Array, labels: jax.Array) -> Now:
    before = spike(carry.voltage)
    voltage = LEAK * (carry.voltage - before) + given + before @ weights.recurrent
    spikes = spike(voltage)
    rate = LEAK * carry.rate + spikes @ weights.outward
    of_readout = (jax.nn.softmax(rate) - jax.nn.one_hot(labels, rate.shape[-1])) / len(labels)
    of_neurons = (of_readout @ weights.outward.T) * slope(voltage)
    both, kept = jnp.concatenate([x, before], -1), LEAK * (1 - slope(carry.voltage))
    return Now(voltage, rate, spikes, both, kept, of_readout, of_neurons)
