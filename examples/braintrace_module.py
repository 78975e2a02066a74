"""A BrainTrace module: its gradients are those of BrainTrace's own D_RTRL, and it is trained here."""

import brainstate
import braintrace
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pure_batching as pb

TIME, BATCH, FEATURES, HIDDEN, UPDATES = 12, 8, 4, 24, 150

brainstate.random.seed(0)


class Net(brainstate.nn.Module):
    """Two layers of BrainTrace, written for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = braintrace.nn.ValinaRNNCell(FEATURES, HIDDEN, activation="tanh")
        self.readout = braintrace.nn.LeakyRateReadout(HIDDEN, 1)

    def update(self, x: jax.Array) -> jax.Array:
        """One step of one sample: features in, a prediction out."""
        return self.readout(self.cell(x))


def loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Of one sample at one step."""
    return ((prediction - target) ** 2).sum()


inputs = brainstate.random.randn(TIME, BATCH, FEATURES)
targets = jnp.cumsum(inputs[..., :1], axis=0) / 3  # the running sum of one feature


def by_braintrace(net: Net, sample: int) -> dict[str, jax.Array]:
    """The gradient of one sample by BrainTrace: its learner at each step, and the gradient of the step's loss."""
    brainstate.nn.init_all_states(net)
    native = braintrace.D_RTRL(net)
    native.compile_graph(inputs[0, sample])
    weights = net.states(brainstate.ParamState)

    def of_step(x: jax.Array, target: jax.Array) -> dict[str, jax.Array]:
        return brainstate.transform.grad(lambda: loss(native(x), target), weights)()

    each = brainstate.transform.for_loop(of_step, inputs[:, sample], targets[:, sample])
    return {".".join(map(str, path)): jax.tree.map(lambda g: g.sum(0), value) for path, value in each.items()}


with brainstate.environ.context(dt=1.0 * u.ms):
    net = Net()
    learner, params = pb.capture(net, inputs[0, 0], algorithm=pb.D_RTRL(rule="published"))
    print(pb.explain(learner))
    native = [by_braintrace(net, sample) for sample in range(2)]
each, _ = pb.sequence_grad(pb.vmap(learner, BATCH), loss, reduction="none")(params, None, inputs, targets)
for sample, gradients in enumerate(native):
    for path, value in gradients.items():
        for got, want in zip(jax.tree.leaves(each[path]), jax.tree.leaves(value), strict=True):
            np.testing.assert_allclose(got[sample], want, rtol=1e-3, atol=1e-5 * float(jnp.abs(want).max()))
    print(f"sample {sample}: {len(gradients)} weights have BrainTrace's own gradients")

optimizer = optax.adam(1e-2)
grad_fn = pb.sequence_grad(pb.manual(learner, BATCH), loss)


def update(state: tuple, _: None) -> tuple[tuple, jax.Array]:
    """One update on the whole batch."""
    gradients, aux = grad_fn(state[0], None, inputs, targets)
    updates, memory = optimizer.update(gradients, state[1])
    return (optax.apply_updates(state[0], updates), memory), aux.losses.mean()


_, losses = jax.lax.scan(update, (params, optimizer.init(params)), None, length=UPDATES)
print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
assert losses[-1] < losses[0] / 2
