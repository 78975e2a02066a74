"""Evidence accumulation (`braintools.cogtask`) by spiking neurons: noisy evidence for 400 ms, then a decision."""

import pathlib
from typing import Any

import brainpy.state
import brainscale
import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import optax
from braintools import cogtask
from matplotlib.figure import Figure

import pure_batching as pb

BATCH, HIDDEN, UPDATES, RESPONSE = 32, 64, 150, 5

brainstate.environ.set(dt=10.0 * u.ms)
brainstate.random.seed(0)
task = cogtask.EvidenceAccumulation(
    t_fixation=50 * u.ms, t_evidence=400 * u.ms, t_response=RESPONSE * 10 * u.ms, coherences=(6.4, 12.8, 25.6), seed=0
)


class Net(brainstate.nn.Module):
    """Recurrent leaky integrate-and-fire neurons and a leaky readout with a memory of 200 ms."""

    def __init__(self, features: int) -> None:
        super().__init__()
        init, zeros = braintools.init.KaimingNormal(scale=0.5, unit=u.mV), braintools.init.ZeroInit(unit=u.mV)
        weights = u.math.concatenate([2 * init([features, HIDDEN]), init([HIDDEN, HIDDEN])], axis=0)
        linear = brainscale.nn.Linear(features + HIDDEN, HIDDEN, w_init=weights, b_init=zeros)
        self.neurons = brainpy.state.LIF(HIDDEN, tau=100 * u.ms)
        self.synapses = brainpy.state.DeltaProj(comm=linear, post=self.neurons)
        self.readout = brainscale.nn.LeakyRateReadout(HIDDEN, 2, tau=200 * u.ms)

    def update(self, x: jax.Array) -> jax.Array:
        """One step of one sample: fixation and evidence in, a logit for each choice out."""
        self.synapses(u.math.concatenate([x, self.neurons.get_spike()], axis=-1))
        return self.readout(self.neurons())


def loss(logits: jax.Array, label: jax.Array) -> jax.Array:  # the label 0 says that it is not yet time to respond
    return (label > 0) * optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 1) - 1)


inputs, labels = task.batch_sample(BATCH)  # [T, B, features], [T, B]
learner, fresh = pb.capture(Net(inputs.shape[-1]), inputs[0, 0], algorithm=pb.ES_D_RTRL(0.95, rule="published"))
optimizer = optax.adam(3e-3)
grad_fn = pb.sequence_grad(pb.manual(learner, BATCH), loss)


def update(state: tuple[Any, Any], number: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:  # on trials of its own
    inputs, labels = task.batch_sample(BATCH, start_index=number * BATCH)
    gradients, aux = grad_fn(state[0], None, inputs, labels)
    updates, memory = optimizer.update(gradients, state[1])
    return (optax.apply_updates(state[0], updates), memory), aux.losses.sum() / (RESPONSE * BATCH)


(params, _), losses = jax.lax.scan(update, (fresh, optimizer.init(fresh)), jnp.arange(UPDATES))
print(f"loss of the response {losses[:10].mean():.3f} -> {losses[-10:].mean():.3f}")

axes = (figure := Figure(layout="constrained")).subplots()
trials, meant = task.batch_sample(256, start_index=10**6)  # trials that no update has seen
of_tests = pb.sequence_grad(pb.manual(learner, 256), loss, outputs=True)
for (name, weights), line in zip({"before": fresh, "after": params}.items(), (":", "-"), strict=True):
    _, aux = of_tests(weights, None, trials, meant)
    accuracy = (aux.outputs[-RESPONSE:].mean(0).argmax(-1) + 1 == meant[-1]).mean()
    print(f"{name} training: {accuracy:.3f} of new trials are right")
    leaning = aux.outputs[..., 1] - aux.outputs[..., 0]  # [T, B]
    for choice in (1, 2):
        axes.plot(leaning[:, meant[-1] == choice].mean(1), f"C{choice}{line}", label=f"choice {choice}, {name}")
assert accuracy > 0.9
axes.set(xlabel="step of 10 ms", ylabel="logit of choice 2 - logit of choice 1, mean of new trials")
axes.legend(title="right answer")
pathlib.Path("build").mkdir(exist_ok=True)
figure.savefig("build/evidence.png", dpi=120)
