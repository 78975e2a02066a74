"""DP-SGD (Abadi et al., 2016): per-sample gradients clipped by `pb.clipped_grad`, and Gaussian noise.

What is private, and what is not:

* A "sample" is one whole sequence. Its influence on an update is bounded by `BOUND`, because it starts from a fresh
  carry and because every sample of a learner is independent of the others (`pb.audit` below). The noise is in
  proportion to that bound. If one person gives several sequences, the bound does not hold for that person.
* A sample is drawn into an update by a coin of its own (Poisson sampling), as the usual accounting of DP-SGD asks for.
  Samples that are not drawn are masked, and the sum is divided by the expected number, not by the number drawn.
* No accounting is done here. An accountant turns `NOISE`, `RATE` and `UPDATES` into an epsilon for a given delta.
* Private in that sense are the trained params alone. The losses and the numbers of samples that are printed below
  are not, nor is any hyperparameter that was chosen by looking at them.
* The random keys have to be secret; the fixed seeds here are not. Floating-point noise leaks in ways of its own
  (Mironov, 2012), about which nothing is done here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import pure_batching as pb

TIME, SAMPLES, FEATURES, HIDDEN, CLASSES = 10, 256, 6, 24, 3
UPDATES, RATE, BOUND, NOISE = 150, 0.25, 3.0, 1.0

keys = jax.random.split(jax.random.key(0), 6)
labels = jax.random.randint(keys[0], (SAMPLES,), 0, CLASSES)
inputs = jax.random.normal(keys[1], (TIME, SAMPLES, FEATURES)) + 1.5 * jax.nn.one_hot(labels, FEATURES)
targets = jnp.broadcast_to(labels, (TIME, SAMPLES))
loss = optax.softmax_cross_entropy_with_integer_labels


def step(params: Any, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A leaky network of one sample with a linear readout."""
    hidden = 0.8 * hidden + 0.2 * jnp.tanh(x @ params["in"] + hidden @ params["recurrent"])
    return hidden, hidden @ params["out"]


sizes = {"in": (FEATURES, HIDDEN), "recurrent": (HIDDEN, HIDDEN), "out": (HIDDEN, CLASSES)}
fresh = {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys[2:5], sizes.items(), strict=True)}
learner, fresh = pb.capture_function(
    step, fresh, jnp.zeros(HIDDEN), inputs[0, 0], algorithm=pb.ES_D_RTRL(0.9, rule="published")
)
batched = pb.vmap(learner, SAMPLES)
assert pb.audit(learner).is_independent
clipped_fn = pb.clipped_grad(batched, loss, BOUND, reduction="sum")
optimizer = optax.adam(1e-2)


def update(state: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], Any]:
    """One update: draw samples, clip, add up, add noise."""
    params, memory = state
    of_coin, of_noise = jax.random.split(key)
    drawn = jax.random.bernoulli(of_coin, RATE, (SAMPLES,))
    total, aux = clipped_fn(params, None, inputs, targets, mask=jnp.broadcast_to(drawn, (TIME, SAMPLES)))
    noise = optax.tree.random_like(of_noise, total, sampler=jax.random.normal)
    noisy = jax.tree.map(lambda g, n: (g + NOISE * BOUND * n) / (RATE * SAMPLES), total, noise)
    updates, memory = optimizer.update(noisy, memory)
    mean = aux.losses.sum() / (drawn.sum() * TIME)
    others = jnp.where(drawn, 0, aux.norms).max()
    report = {"loss": mean, "drawn": drawn.sum(), "clipped": aux.clipped, "others": others}
    return (optax.apply_updates(params, updates), memory), report


(params, _), seen = jax.lax.scan(update, (fresh, optimizer.init(fresh)), jax.random.split(keys[5], UPDATES))
print(f"drawn {seen['drawn'][::30]}, of which clipped {seen['clipped'][::30]}")
print(f"loss, not private: {seen['loss'][0]:.3f} -> {seen['loss'][-10:].mean():.3f}")
assert (seen["others"] == 0).all()  # who was not drawn has no part in the update
assert 0 < seen["clipped"].sum() < seen["drawn"].sum()
assert seen["loss"][-10:].mean() < seen["loss"][0] / 2
