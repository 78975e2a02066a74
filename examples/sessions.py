"""Streaming sessions that come and go, learned from while they run, with a plot that is drawn as it happens.

With a display the plot is live; without one (MPLBACKEND=Agg), the file `build/sessions.png` is written anew instead.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import pure_batching as pb

SLOTS, HIDDEN, MOMENTS, EVERY = 6, 24, 600, 100


def step(params: Any, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A leaky network of one session that predicts the next value of its stream."""
    hidden = 0.7 * hidden + 0.3 * jnp.tanh(x @ params["in"] + hidden @ params["recurrent"])
    return hidden, hidden @ params["out"]


def loss(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Of one session at one step."""
    return ((prediction - target) ** 2).sum()


sizes = {"in": (1, HIDDEN), "recurrent": (HIDDEN, HIDDEN), "out": (HIDDEN, 1)}
keys = jax.random.split(jax.random.key(0), 3)
params = {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, sizes.items(), strict=True)}
learner, params = pb.capture_function(
    step, params, jnp.zeros(HIDDEN), jnp.zeros(1), algorithm=pb.D_RTRL(rule="published")
)
optimizer = optax.adam(3e-3)
memory = optimizer.init(params)
slots = pb.Slots(learner, SLOTS)
table = slots.empty()

rng = np.random.default_rng(0)
streams: dict[int, Any] = {}  # of each session: when it ends, and its phase
losses, seats = [], np.full((SLOTS, MOMENTS), np.nan)
figure, (above, below) = plt.subplots(2, 1, sharex=True, layout="constrained")
pathlib.Path("build").mkdir(exist_ok=True)


def draw() -> None:
    """The losses so far, and who sat where."""
    above.clear()
    below.clear()
    above.semilogy(losses, ".", markersize=2)
    above.set(ylabel="mean loss of the sessions")
    below.imshow(seats % 10, aspect="auto", interpolation="none", cmap="tab10")
    below.set(xlabel="moment", ylabel="slot (a colour is a session)", xlim=(0, MOMENTS))
    plt.pause(0.001)
    figure.savefig("build/sessions.png", dpi=120)


for moment in range(MOMENTS):
    for gone in [one for one, (end, _) in streams.items() if end == moment]:
        table = slots.evict(table, [gone])
        del streams[gone]
    if len(streams) < SLOTS and rng.random() < 0.2:
        streams[moment] = (moment + int(rng.integers(30, 90)), rng.uniform(0, 2 * np.pi))
        table = slots.admit(table, moment)  # its id is the moment when it came
    awake = [one for one in streams if rng.random() < 0.9]  # some streams are late now and then
    if awake:
        wave = np.sin([[0.4 * (moment + ahead) + streams[one][1] for ahead in (0, 1)] for one in awake])
        given = table, awake, wave[:, :1], wave[:, 1:]
        params, memory, aux = slots.learn(params, memory, *given, loss=loss, optimizer=optimizer)
        table = aux.table
        losses.append(aux.losses.mean())
    seats[np.asarray(table.occupied), moment] = np.asarray(table.ids)[np.asarray(table.occupied)]
    if moment % EVERY == EVERY - 1:
        draw()
        print(f"moment {moment + 1}: {len(streams)} sessions, loss {np.mean(losses[-EVERY:]):.4f}")

assert np.mean(losses[-EVERY:]) < np.mean(losses[:EVERY]) / 4
