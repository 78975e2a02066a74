"""A run that begins in BrainScale, is trained here, and goes back: states, traces and weights are handed over."""

import sys

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import optax

import pure_batching as pb

TIME, BATCH, FEATURES, HIDDEN = 300, 8, 4, 16
BEGIN, END = 10, 290

if jax.__version_info__ >= (0, 11):
    print("BrainScale 0.1.0 compiles its algorithms with JAX below 0.11 only: nothing was run.")
    sys.exit()

brainstate.environ.set(dt=1.0 * u.ms)
brainstate.random.seed(0)


def loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Of one sample at one step."""
    return ((prediction - target) ** 2).sum()


def distance(one: object, other: object) -> float:
    """The largest difference of two trees."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(jnp.abs(a - b).max()) for a, b in pairs)


inputs = brainstate.random.randn(TIME, BATCH, FEATURES)
targets = inputs[..., :1] + jnp.roll(inputs[..., 1:2], 1, axis=0)

# A gated layer with a leaky readout, written for one sample.
net = brainstate.nn.Sequential(brainscale.nn.MGUCell(FEATURES, HIDDEN), brainscale.nn.LeakyRateReadout(HIDDEN, 1))
learner, params = pb.capture(net, inputs[0, 0], algorithm=pb.ES_D_RTRL(0.9))
batched = pb.manual(learner, BATCH)

# There: the module's own states with a batch axis, in BrainScale's manual mode. Its traces grow as it runs.
brainstate.nn.init_all_states(net, batch_size=BATCH)
native = brainscale.ES_D_RTRL(net, decay_or_rank=0.9, mode=brainstate.mixin.Batching())
native.compile_graph(inputs[0])
for x in inputs[:BEGIN]:
    native(x)
carry = pb.from_native(batched, native)
print(f"from BrainScale: {int(carry.update_count[0])} steps, {len(jax.tree.leaves(carry))} arrays")

# The same steps here give the same carry, traces included.
begun = batched.init()
for x in inputs[:BEGIN]:
    begun, _ = batched.step(params, begun, x)
assert distance(begun, carry) < 1e-5

# Here: an update of the weights at every step, from where BrainScale stood.
optimizer = optax.adam(1e-2)
train = pb.online(batched, loss, optimizer)
part = slice(BEGIN, END)
params, _, aux = train(params, optimizer.init(params), carry, inputs[part], targets[part])
print(f"trained here: loss {aux.losses[:20].mean():.3f} -> {aux.losses[-20:].mean():.3f}")
assert aux.losses[-20:].mean() < aux.losses[:20].mean() / 2

# Back: the carry and the trained weights. Both go on, and say the same.
pb.to_native(batched, aux.carry, native)
pb.write_states(net, params)
carry, differences = aux.carry, []
for x in inputs[END:]:
    carry, ours = batched.step(params, carry, x)
    differences.append(distance(native(x), ours))
print(f"back in BrainScale: the outputs of {TIME - END} steps differ by {max(differences):.1e} at most")
assert max(differences) < 1e-5
assert distance(pb.from_native(batched, native), carry) < 1e-4
