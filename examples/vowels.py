"""Real speech learned online: nine speakers of JapaneseVowels, out of the package aeon (which is not imported).

It trains on the 270 training sequences; the 370 test sequences are run once, after the last update.
"""

import importlib.util
import pathlib
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import pure_batching as pb

LONGEST, FEATURES, HIDDEN, SPEAKERS, BATCH, UPDATES = 29, 12, 64, 9, 54, 750
NOISE, SHIFT, RATE = 0.6, 0.3, 1e-2  # of every number, of a sequence's features, of learning


def read(part: str) -> tuple[jax.Array, ...]:
    """Features `[T, B, 12]`, whether a sequence has the step `[T, B]`, and speakers `[B]`."""
    if (found := importlib.util.find_spec("aeon")) is None:
        raise SystemExit("The data is missing: pip install --no-deps aeon==1.6.0")
    file = pathlib.Path(found.submodule_search_locations[0], f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts")
    rows = [line.split(":") for line in file.read_text().split("@data\n")[1].splitlines()]
    each = [np.array([feature.split(",") for feature in row[:-1]], np.float32).T for row in rows]
    inputs = jnp.stack([np.pad(one, ((0, LONGEST - len(one)), (0, 0))) for one in each], axis=1)
    return inputs, (inputs != 0).any(-1), jnp.array([int(row[-1]) - 1 for row in rows])


(inputs, mask, speakers), (tests, test_mask, answers) = map(read, ("TRAIN", "TEST"))
inputs, tests = ((x - inputs[mask].mean(0)) / inputs[mask].std(0) for x in (inputs, tests))
brainstate.random.seed(0)
net = brainstate.nn.Sequential(brainscale.nn.GRUCell(FEATURES, HIDDEN), brainscale.nn.Linear(HIDDEN, SPEAKERS))
learner, fresh = pb.capture(net, inputs[0, 0], algorithm=pb.ES_D_RTRL(0.9, rule="published"))
optimizer = optax.adam(optax.cosine_decay_schedule(RATE, UPDATES))


def weighted_cross_entropy(logits: jax.Array, target: tuple[jax.Array, jax.Array]) -> jax.Array:
    return target[1] * optax.softmax_cross_entropy_with_integer_labels(logits, target[0])


def train_and_test(strategy: Any) -> tuple[Any, jax.Array, jax.Array]:
    """The params, the loss of each update, and who the test sequences are said to be, at their last step."""
    grad_fn = pb.sequence_grad(strategy(learner, BATCH), weighted_cross_entropy)

    def update(state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        keys = jax.random.split(key, 3)
        some = jax.random.choice(keys[0], len(speakers), (BATCH,), replace=False)
        noise, shift = (jax.random.normal(k, (n, BATCH, FEATURES)) for k, n in ((keys[1], LONGEST), (keys[2], 1)))
        x, steps = inputs[:, some] + NOISE * noise + SHIFT * shift, mask[:, some]
        targets = jnp.tile(speakers[some], (LONGEST, 1)), steps / steps.sum(0)  # all sequences count alike
        gradients, aux = grad_fn(state[0], None, x, targets, mask=steps)
        updates, memory = optimizer.update(gradients, state[1])
        return (optax.apply_updates(state[0], updates), memory), aux.losses.sum() / BATCH

    keys, tester = jax.random.split(jax.random.key(0), UPDATES), strategy(learner, len(answers))
    (params, _), losses = jax.lax.scan(update, (fresh, optimizer.init(fresh)), keys)
    _, logits = jax.lax.scan(lambda carry, x: tester.step(params, carry, x), tester.init(), tests)
    return params, losses, logits[test_mask.sum(0) - 1, jnp.arange(len(answers))].argmax(-1)


left, right = (figure := Figure(figsize=(10, 4.5), layout="constrained")).subplots(1, 2)
done = {name: train_and_test(strategy) for name, strategy in {"vmap": pb.vmap, "manual": pb.manual}.items()}
for name, (_, losses, said) in done.items():
    print(f"{name:6} loss {losses[0]:.3f} -> {losses[-1]:.3f}, test accuracy {(said == answers).mean():.4f}")
    assert (said == answers).mean() >= 0.95
    left.semilogy(losses, {"vmap": "-", "manual": ":"}[name])
apart = optax.tree.norm(optax.tree.sub(done["vmap"][0], done["manual"][0])) / optax.tree.norm(done["vmap"][0])
print(f"all weights after {UPDATES} updates, the difference of the strategies: {apart:.1e} of their norm")
assert apart < 1e-3
left.set(xlabel="update", ylabel="loss, by vmap (line) and manual (dots)")
right.set(xlabel="speaker named by the network", ylabel="speaker")
figure.colorbar(right.imshow(np.histogram2d(answers, said, bins=SPEAKERS)[0], norm="symlog"), label="test sequences")
pathlib.Path("build").mkdir(exist_ok=True)
figure.savefig("build/vowels.png", dpi=120)
