"""A training that goes on in another process, under another strategy, from a checkpoint of orbax: bit for bit."""

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import brainscale
import brainstate
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp

import pure_batching as pb

TIME, BATCH, FEATURES, HIDDEN, CLASSES = 40, 16, 20, 30, 5
brainstate.random.seed(0)


class Net(brainstate.nn.Module):
    """A GRU with a linear readout, written for one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = brainscale.nn.GRUCell(FEATURES, HIDDEN)
        self.readout = brainscale.nn.Linear(HIDDEN, CLASSES)

    def update(self, x: jax.Array) -> jax.Array:
        """One step of one sample: features in, logits out."""
        return self.readout(self.cell(x))


inputs = brainstate.random.rand(TIME, BATCH, FEATURES)
labels = brainscale.SingleStepData(brainstate.random.randint(0, CLASSES, BATCH))
learner, fresh = pb.capture(Net(), inputs[0, 0], algorithm=pb.D_RTRL())
loss = optax.softmax_cross_entropy_with_integer_labels
optimizer = optax.adam(1e-2)


def begun() -> dict[str, Any]:
    return {"params": fresh, "memory": optimizer.init(fresh), "carry": pb.vmap(learner, BATCH).init()}


def go_on(strategy: Any, state: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """The state after the steps `start` to `stop` of the sequence, with an update after each."""
    train = pb.online(strategy(learner, BATCH), loss, optimizer)
    params, memory, aux = train(state["params"], state["memory"], state["carry"], inputs[start:stop], labels)
    return {"params": params, "memory": memory, "carry": pb.check_finite(aux.carry)}


def second_half(folder: pathlib.Path) -> None:
    """What another process does: restore the first half, and write the second."""
    target = jax.eval_shape(begun)
    with ocp.StandardCheckpointer() as files:
        pb.check_saved(files.metadata(folder / "first").item_metadata.tree, target)
        files.save(folder / "second", go_on(pb.manual, files.restore(folder / "first", target), TIME // 2, TIME))


def main(folder: pathlib.Path) -> None:
    """Run both halves here, and the second one in another process too."""
    first = go_on(pb.vmap, begun(), 0, TIME // 2)
    with ocp.StandardCheckpointer() as files:
        files.save(folder / "first", first)
        files.wait_until_finished()
        subprocess.run([sys.executable, __file__, folder], check=True)
        there = jax.tree.leaves(files.restore(folder / "second", jax.eval_shape(begun)))
    here = jax.tree.leaves(go_on(pb.manual, first, TIME // 2, TIME))
    same = all(np.array_equal(one, other) for one, other in zip(here, there, strict=True))
    print(f"{len(here)} arrays after {TIME} steps, the same in both processes, bit for bit: {same}")
    assert same


if __name__ == "__main__":
    if sys.argv[1:]:
        second_half(pathlib.Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            main(pathlib.Path(made))
