"""Checkpoints of orbax: what is restored goes on bit for bit, and what belongs to another learner is refused."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax import export

import pure_batching as pb
from pure_batching.errors import DtypeError, PureBatchingError, ShapeError, StructureError

from . import around
from .around import SAMPLES, flattened, in_another_process, specs
from .bench import RULES, SAMPLES as BENCH_SAMPLES, STEPS, Bench, bench
from .trees import assert_close, assert_identical, largest

Tree = Any
RULE = "D_RTRL published"
OPTIMIZER = optax.adam(1e-2)
HALF = STEPS // 2

# A module with units, and one that draws random numbers at each step, whose carry holds typed keys.
SWITCHED = (("tutorial", "manual"), ("noisy", "loop"))


def begun(made: Bench) -> dict[str, Tree]:
    """The whole state of a training."""
    carry = made.batched("vmap").init(jax.random.key(3))
    return {"params": made.params, "memory": OPTIMIZER.init(made.params), "carry": carry}


def go_on(made: Bench, strategy: str, state: dict[str, Tree], start: int, stop: int) -> dict[str, Tree]:
    """The state after some steps of the sequence."""
    train = pb.online(made.batched(strategy), made.model.loss, OPTIMIZER)
    data = jax.tree.map(lambda x: x[start:stop], made.data(STEPS, BENCH_SAMPLES))
    params, memory, aux = train(state["params"], state["memory"], state["carry"], *data)
    return {"params": params, "memory": memory, "carry": aux.carry}


def written(folder: Path, state: Tree) -> None:
    with ocp.StandardCheckpointer() as files:
        files.save(folder, state)


def read(folder: Path, target: Tree) -> Tree:
    """As the documentation has it: checked first, then restored."""
    with ocp.StandardCheckpointer() as files:
        pb.check_saved(files.metadata(folder).item_metadata.tree, target)
        return files.restore(folder, target)


def last_half(folder: Path) -> None:
    """What the other process does: it captures again, and goes on with what it finds."""
    for name, strategy in SWITCHED:
        made = bench(name, 0, RULES[RULE])
        state = read(folder / name, jax.eval_shape(lambda made=made: begun(made)))
        written(folder / f"{name} ended", go_on(made, strategy, state, HALF, STEPS))


class TestAnotherProcess:
    def test_goes_on_under_another_strategy(self, tmp_path: Path) -> None:
        """In the middle of a sequence: params, the state of the optimizer, and a carry with its keys."""
        halves = {}
        for name, _ in SWITCHED:
            made = bench(name, 0, RULES[RULE])
            halves[name] = go_on(made, "vmap", begun(made), 0, HALF)
            written(tmp_path / name, halves[name])
        in_another_process(
            "import pathlib, sys; from tests.test_checkpoints import last_half; last_half(pathlib.Path(sys.argv[1]))",
            tmp_path,
        )
        for name, strategy in SWITCHED:
            made = bench(name, 0, RULES[RULE])
            want = go_on(made, strategy, halves[name], HALF, STEPS)
            got = read(tmp_path / f"{name} ended", jax.eval_shape(lambda made=made: begun(made)))
            assert_identical(got, want)
            assert jax.tree.leaves(want["carry"].trace)
            assert all(largest(leaf) > 0 for leaf in jax.tree.leaves(want["memory"][0].mu))
        assert halves["noisy"]["carry"].keys


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The metadata of a checkpoint."""
    folder = tmp_path_factory.mktemp("saved") / "state"
    written(folder, begun(bench("tutorial", 0)))
    with ocp.StandardCheckpointer() as files:
        return files.metadata(folder).item_metadata.tree


OTHERS: dict[str, tuple[Callable[[], Tree], type[PureBatchingError], str]] = {
    "another module": (
        lambda: begun(bench("GRUCell", 0)),
        StructureError,
        r"checkpoint\['carry'\]\.hidden\['h'\]: got nothing, expected float64\[3, 7\]\..*Missing or too many",
    ),
    "another rule": (
        lambda: begun(bench("tutorial", 0, RULES["D_RTRL"])),
        StructureError,
        r"checkpoint\['carry'\]\.trace\.weights\['out\.weight_op -> out\.r'\]\['weight'\]: got nothing, expected",
    ),
    "a larger batch": (
        lambda: {**begun(bench("tutorial", 0)), "carry": bench("tutorial", 0).batched("vmap", 5).init()},
        ShapeError,
        r"checkpoint\['carry'\]\.hidden\['neu\.V'\]: got shape \(3, 7\), expected \(5, 7\)\. Restore it into",
    ),
    "another optimizer": (
        lambda: {**begun(bench("tutorial", 0)), "memory": optax.sgd(1e-2).init(bench("tutorial", 0).params)},
        StructureError,
        r"checkpoint\['memory'\]\[0\]\['count'\]: got int32\[\], expected no such leaf\.",
    ),
    "another precision": (
        lambda: jax.tree.map(single, jax.eval_shape(lambda: begun(bench("tutorial", 0)))),
        DtypeError,
        r"checkpoint\['carry'\]\.hidden\['neu\.V'\]: got float64, expected float32\. Restore",
    ),
}


class TestAnotherLearner:
    """A checkpoint that does not fit is refused before it is read, at the leaf that differs."""

    @pytest.mark.parametrize("name", OTHERS)
    def test_is_refused(self, saved: Tree, name: str) -> None:
        target, error, text = OTHERS[name]
        with pytest.raises(error, match=f"(?s)^{text}"):
            pb.check_saved(saved, target())

    def test_its_own_passes(self, saved: Tree) -> None:
        target = jax.eval_shape(lambda: begun(bench("tutorial", 0)))
        assert pb.check_saved(saved, target) is target
        assert pb.check_saved(target, begun(bench("tutorial", 1))) is not None
        with pytest.raises(StructureError, match=r"^file\['n'\]: got nothing, expected number\[\]\."):
            pb.check_saved(saved, {**target, "n": 3}, name="file")

    def test_keys_and_numbers_of_python(self, tmp_path: Path) -> None:
        state = {"key": jax.random.split(jax.random.key(0), 3), "raw": jax.random.PRNGKey(0), "rate": 0.5, "n": 3}
        written(tmp_path / "state", state)
        restored = read(tmp_path / "state", state)
        assert_identical(restored["key"], state["key"])
        with pytest.raises(ShapeError, match=r"\['key'\]: got shape \(3, 2\), expected \(2,\)"):
            read(tmp_path / "state", {**state, "key": jax.random.key(0)})


def single(spec: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec.shape, np.float32) if spec.dtype == np.float64 else spec


TRAINING = """
import pathlib, pickle, sys
import jax, numpy as np
import orbax.checkpoint as ocp
from jax import export

folder, every = pathlib.Path(sys.argv[1]), int(sys.argv[2])
exported, state, inputs, targets = pickle.loads((folder / "training").read_bytes())
step = jax.jit(export.deserialize(exported).call)
jax.block_until_ready(step(*state, inputs[:1], targets[:1]))
last = float(input())
with ocp.CheckpointManager(folder / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
    done = manager.latest_step() or 0
    if done:
        state = manager.restore(done, args=ocp.args.StandardRestore(state))
    print("restored", done, flush=True)
    while done < last:
        row = done % len(inputs)
        state = step(*state, inputs[row : row + 1], targets[row : row + 1])
        done += 1
        if done % every == 0:
            print("saving", done, flush=True)
            manager.save(done, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            print("saved", done, flush=True)
"""
EVERY, KILLS = 4, 20


class Progress:
    """What a training says: where it began, and the last step that it began to save, and that it has saved."""

    def __init__(self) -> None:
        self.restored, self.saving, self.saved = -1, -1, -1

    def take(self, line: str) -> str:
        word, number = line.split()
        setattr(self, word, int(number))
        return word


class TestKilled:
    def test_twenty_times(self, tmp_path: Path) -> None:
        """At random moments of a save and between two; what is lost are the steps since the last whole checkpoint.

        The process that trains knows JAX, orbax and an exported step of `pb.online`.
        """
        learner, params = around.captured(RULES[RULE])
        batched, optimizer, (inputs, targets) = pb.vmap(learner, SAMPLES), optax.sgd(0.01), around.data(64)
        train = pb.online(batched, around.loss, optimizer)
        begun = params, optimizer.init(params), batched.init(jax.random.key(5))

        def step(params: Tree, memory: Tree, carry: pb.Carry, x: jax.Array, y: jax.Array) -> Tree:
            trained, memory, aux = train(params, memory, carry, x, y)
            return trained, memory, aux.carry

        run, arrays = flattened(step, *begun, inputs[:1], targets[:1])
        start = arrays[:-2]
        exported = bytes(export.export(jax.jit(run))(*specs(arrays)).serialize())
        given = exported, start, np.asarray(inputs), np.asarray(targets)
        (tmp_path / "training").write_bytes(pickle.dumps(given))
        rng, reached, landed, waiting = np.random.default_rng(0), Progress(), 0, started(tmp_path)
        for _ in range(KILLS):
            running, waiting = waiting, started(tmp_path)
            now = killed(running, int(rng.integers(4)), float(rng.uniform(0, 0.04)))
            assert max(reached.saved, 0) <= now.restored <= max(reached.saving, 0)
            landed += now.saving > now.saved
            reached = now if now.saving > 0 else reached
        assert landed > 0
        last = reached.saving + 2 * EVERY
        *_, line = lines_of(waiting, last)
        assert line == f"saved {last}"
        with ocp.StandardCheckpointer() as files:
            got = files.restore(tmp_path / "checkpoints" / str(last) / "default", [*start])
        state, one = start, jax.jit(export.deserialize(bytearray(exported)).call)
        for done in range(last):
            row = done % len(inputs)
            state = one(*state, inputs[row : row + 1], targets[row : row + 1])
        assert_identical([np.asarray(leaf) for leaf in got], [np.asarray(leaf) for leaf in state])
        rows = np.arange(last) % len(inputs)
        want, _, aux = train(*begun, inputs[rows], targets[rows])
        assert_close(jax.tree.unflatten(jax.tree.structure(want), got[: len(jax.tree.leaves(want))]), want)
        assert aux.losses[-64:].mean() < aux.losses[:64].mean()


def started(folder: Path) -> subprocess.Popen[str]:
    """A process that is ready to train, and waits; the first one's programs are compiled for all of them."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environ = {**os.environ, "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu", **cache}
    command = [sys.executable, "-c", TRAINING, str(folder), str(EVERY)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)


def lines_of(process: subprocess.Popen[str], last: float = np.inf) -> Iterator[str]:
    """Let it train to a step, and read what it says until it ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        print(last, file=process.stdin, flush=True)
        yield from (line.strip() for line in process.stdout)


def killed(process: subprocess.Popen[str], saves: int, delay: float) -> Progress:
    """A training that is killed a moment after it begins to save for the n-th time, or after its start."""
    progress, lines = Progress(), lines_of(process)
    for line in lines:
        saves -= progress.take(line) == "saving"
        if saves <= 0:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    for line in lines:  # what it said before it died
        progress.take(line)
    assert process.returncode == -signal.SIGKILL
    return progress
