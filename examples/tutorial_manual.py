"""The batching tutorial in pure functions; tutorial_manual.py and tutorial_vmap.py differ in one line, the strategy."""

from typing import Any

import brainpy.state
import brainscale
import brainstate
import braintools
import brainunit as u
import jax
import optax

import pure_batching as pb

TIME, BATCH, FEATURES, HIDDEN, CLASSES, EPOCHS = 16, 128, 100, 200, 10, 10

brainstate.environ.set(dt=1.0 * u.ms)
brainstate.random.seed(0)


class LIFNet(brainstate.nn.Module):
    """Recurrent leaky integrate-and-fire neurons with a leaky readout, written for one sample."""

    def __init__(self) -> None:
        super().__init__()
        init = braintools.init.KaimingNormal(unit=u.mV)
        weights = u.math.concatenate([init([FEATURES, HIDDEN]), init([HIDDEN, HIDDEN])], axis=0)
        bias = braintools.init.ZeroInit(unit=u.mV)
        self.neu = brainpy.state.LIF(HIDDEN)
        linear = brainscale.nn.Linear(FEATURES + HIDDEN, HIDDEN, w_init=weights, b_init=bias)
        self.syn = brainpy.state.DeltaProj(comm=linear, post=self.neu)
        self.out = brainscale.nn.LeakyRateReadout(HIDDEN, CLASSES)

    def update(self, x: jax.Array) -> jax.Array:
        """One step of one sample: features in, logits out."""
        self.syn(u.math.concatenate([x, self.neu.get_spike()], axis=-1))
        return self.out(self.neu())


def loss(logits: jax.Array, label: jax.Array) -> jax.Array:
    """Cross entropy of one sample at one step."""
    return braintools.metric.softmax_cross_entropy_with_integer_labels(logits, label)


inputs = brainstate.random.rand(TIME, BATCH, FEATURES)
labels = brainstate.random.randint(0, CLASSES, BATCH)

learner, params = pb.capture(LIFNet(), inputs[0, 0], algorithm=pb.ES_D_RTRL(0.9))
batched = pb.manual(learner, BATCH)
grad_fn = pb.sequence_grad(batched, loss)

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
state = optimizer.init(params)


@jax.jit
def train(params: dict[str, Any], state: optax.OptState) -> tuple[dict[str, Any], optax.OptState, jax.Array]:
    """One epoch: the gradient of the whole batch, summed over time, and one update."""
    gradients, aux = grad_fn(params, None, inputs, brainscale.SingleStepData(labels))
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, aux.losses.mean()


losses = []
for epoch in range(EPOCHS):
    params, state, value = train(params, state)
    losses.append(float(value))
    print(f"Epoch {epoch + 1}/{EPOCHS}, Loss: {value:.4f}")
assert losses[-1] < 0.7 * losses[0]
