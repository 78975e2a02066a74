"""A cell inside a larger equinox model, trained online; the model that comes out is an equinox model again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import pure_batching as pb

TIME, BATCH, FEATURES, HIDDEN, CLASSES, UPDATES = 12, 32, 6, 32, 4, 150


class Model(eqx.Module):
    """An encoder, a GRU, and a readout that also sees the encoded input."""

    encoder: eqx.nn.MLP
    cell: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.encoder = eqx.nn.MLP(FEATURES, HIDDEN, HIDDEN, depth=1, key=keys[0])
        self.cell = eqx.nn.GRUCell(HIDDEN, HIDDEN, key=keys[1])
        self.readout = eqx.nn.Linear(2 * HIDDEN, CLASSES, key=keys[2])

    def __call__(self, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One step of one sample: hidden state and features in, the next hidden state and logits out."""
        encoded = self.encoder(x)
        hidden = self.cell(encoded, hidden)
        return hidden, self.readout(jnp.concatenate([hidden, encoded]))


model = Model(jax.random.key(0))


def step(model: Model, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The model as a function of itself: its floats are trained, and the rest (activations) stays as it is."""
    return model(hidden, x)


# The class is the feature that was largest at the first step, so that the cell has to remember it.
inputs = jax.random.normal(jax.random.key(1), (TIME, BATCH, FEATURES))
labels = jnp.broadcast_to(inputs[0, :, :CLASSES].argmax(-1), (TIME, BATCH))
loss = optax.softmax_cross_entropy_with_integer_labels

learner, params = pb.capture_function(
    step, model, jnp.zeros(HIDDEN), inputs[0, 0], algorithm=pb.D_RTRL(rule="published")
)
print(pb.explain(learner))  # the encoder lies in front of the cell: it learns by the gradient of each step

# equinox's layers take one sample, which is what `pb.vmap` maps; `pb.manual` would call them with a batch axis.
each = {
    name: pb.sequence_grad(strategy(learner, BATCH), loss, reduction="none")(params, None, inputs, labels)[0]
    for name, strategy in {"vmap": pb.vmap, "loop": pb.loop}.items()
}
assert all(jnp.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(*map(jax.tree.leaves, each.values()), strict=True))

grad_fn = pb.sequence_grad(pb.vmap(learner, BATCH), loss)
optimizer = optax.adam(3e-3)


@jax.jit
def update(state: tuple[Model, optax.OptState], _: None) -> tuple[tuple[Model, optax.OptState], jax.Array]:
    """One update on the whole batch."""
    params, memory = state
    gradients, aux = grad_fn(params, None, inputs, labels)  # gradients are a `Model`, too
    updates, memory = optimizer.update(gradients, memory)
    return (optax.apply_updates(params, updates), memory), aux.losses.mean()


(params, _), losses = jax.lax.scan(update, (params, optimizer.init(params)), None, length=UPDATES)
trained = eqx.combine(params, model)  # an ordinary `Model`
_, logits = jax.lax.scan(jax.vmap(trained), jnp.zeros((BATCH, HIDDEN)), inputs)
accuracy = (logits[-1].argmax(-1) == labels[-1]).mean()
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, accuracy at the last step {accuracy:.2f}")
assert losses[-1] < losses[0] / 2
assert accuracy > 0.9
