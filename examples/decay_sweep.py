"""A sweep of ES_D_RTRL's decay in one `jax.vmap`: eight trainings run as one program."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import optax

import pure_batching as pb

mpl.use("Agg")
import matplotlib.pyplot as plt

CUE, BLANK, BATCH, FEATURES, HIDDEN, UPDATES = 4, 20, 64, 20, 16, 60


def step(params: Any, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A leaky network of one sample with a linear readout."""
    hidden = 0.9 * hidden + 0.1 * jnp.tanh(x @ params["in"] + hidden @ params["recurrent"])
    return hidden, hidden @ params["out"]


def loss(logit: jax.Array, target: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Of one sample at one step; it counts at the last step alone."""
    label, weight = target
    return weight * optax.sigmoid_binary_cross_entropy(logit[0], label)


# Some steps with a pattern, then nothing; at the end the network has to say on which side of a plane the pattern was.
# What it says at the end is owed to weights that were used long before: that is what a trace with a long memory is for.
keys = jax.random.split(jax.random.key(0), 5)
pattern, plane = jax.random.normal(keys[3], (BATCH, FEATURES)), jax.random.normal(keys[4], (FEATURES,))
inputs = jnp.concatenate([jnp.tile(pattern, (CUE, 1, 1)), jnp.zeros((BLANK, BATCH, FEATURES))])
time = jnp.arange(CUE + BLANK)[:, None] * jnp.ones(BATCH)
targets = (time * 0 + (pattern @ plane > 0), (time == time.max()) * 1.0)
sizes = {"in": (FEATURES, HIDDEN), "recurrent": (HIDDEN, HIDDEN), "out": (HIDDEN, 1)}
start = {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, sizes.items(), strict=False)}
optimizer = optax.adam(1e-2)


def train(decay: jax.Array) -> jax.Array:
    """The loss of each update with one decay, which may be a traced number."""
    rule = pb.ES_D_RTRL(decay, rule="published")
    learner, params = pb.capture_function(step, start, jnp.zeros(HIDDEN), inputs[0, 0], algorithm=rule)
    grad_fn = pb.sequence_grad(pb.vmap(learner, BATCH), loss)

    def update(state: Any, _: None) -> tuple[Any, jax.Array]:
        gradients, aux = grad_fn(state[0], None, inputs, targets)
        updates, memory = optimizer.update(gradients, state[1])
        return (optax.apply_updates(state[0], updates), memory), aux.losses.sum() / BATCH

    return jax.lax.scan(update, (params, optimizer.init(params)), None, length=UPDATES)[1]


decays = jnp.array([0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
losses = jax.jit(jax.vmap(train))(decays)
for decay, curve in zip(decays, losses, strict=True):
    print(f"decay {decay:.2f}: loss {curve[0]:.3f} -> {curve[-1]:.3f}")
best = decays[losses[:, -1].argmin()]
print(f"the best of them is {best:.2f}")

alone = jax.jit(train)(decays[3])
assert jnp.allclose(alone, losses[3], rtol=1e-3)  # the sweep is what each decay does by itself
assert losses[:, -1].min() < losses[0, -1] / 2  # the decay matters

figure, axes = plt.subplots(layout="constrained")
for decay, curve in zip(decays, losses, strict=True):
    axes.plot(curve, label=f"{decay:.2f}")
axes.set(xlabel="update", ylabel="loss at the last step")
axes.legend(title="decay")
pathlib.Path("build").mkdir(exist_ok=True)
figure.savefig("build/decay_sweep.png", dpi=120)
