"""A batch shared out among eight devices by `pb.sharded`; here XLA makes eight devices of the processor."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec as P

import pure_batching as pb

TIME, BATCH, FEATURES, HIDDEN, CLASSES, UPDATES = 16, 64, 10, 32, 5, 60


def step(params: Any, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A leaky network of one sample with a linear readout."""
    hidden = 0.8 * hidden + 0.2 * jnp.tanh(x @ params["in"] + hidden @ params["recurrent"])
    return hidden, hidden @ params["out"]


keys = jax.random.split(jax.random.key(0), 5)
sizes = {"in": (FEATURES, HIDDEN), "recurrent": (HIDDEN, HIDDEN), "out": (HIDDEN, CLASSES)}
params = {
    name: jax.random.normal(key, size) / size[0] ** 0.5 for key, (name, size) in zip(keys, sizes.items(), strict=False)
}
labels = jax.random.randint(keys[3], (BATCH,), 0, CLASSES)
inputs = jax.random.normal(keys[4], (TIME, BATCH, FEATURES)) + 2 * jax.nn.one_hot(labels, FEATURES)
targets = jnp.broadcast_to(labels, (TIME, BATCH))
loss = optax.softmax_cross_entropy_with_integer_labels

learner, params = pb.capture_function(
    step, params, jnp.zeros(HIDDEN), inputs[0, 0], algorithm=pb.ES_D_RTRL(0.9, rule="published")
)
mesh = jax.make_mesh((8,), ("batch",))
shared = pb.sharded(learner, BATCH, mesh=mesh, axis="batch", by=pb.vmap)  # eight samples on each device

on_one, _ = pb.sequence_grad(pb.vmap(learner, BATCH), loss)(params, None, inputs, targets)

# The samples lie on the devices that run them; the params are the same on all.
inputs, targets = jax.device_put((inputs, targets), NamedSharding(mesh, P(None, "batch")))
params = jax.device_put(params, NamedSharding(mesh, P()))
gradients, aux = pb.sequence_grad(shared, loss)(params, None, inputs, targets)

hidden = jax.tree.leaves(aux.carry.hidden)[0]
places = {shard.device: shard.data.shape for shard in hidden.addressable_shards}
print(f"the hidden state {hidden.shape} lies on {len(places)} devices, {places[jax.devices()[0]]} on each")
assert len(places) == 8
assert set(places.values()) == {(BATCH // 8, HIDDEN)}

pairs = [(np.asarray(gradients[name]), np.asarray(on_one[name])) for name in sizes]
difference = max(np.abs(got - want).max() / np.abs(want).max() for got, want in pairs)
print(f"the largest difference to one device, relative to the largest entry: {difference:.1e}")
assert difference < 1e-5

optimizer = optax.adam(1e-2)
train = pb.online(shared, loss, optimizer, every=TIME)
memory, losses = optimizer.init(params), []
for _ in range(UPDATES):
    params, memory, aux = train(params, memory, None, inputs, targets)
    losses.append(float(aux.losses.mean()))
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
assert losses[-1] < losses[0] / 2
