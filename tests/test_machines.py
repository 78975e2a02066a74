"""The public state machines: they pass what is right, whatever it remembers and draws, and find what is coupled."""

import dataclasses
import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import Phase, settings

import pure_batching as pb
from pure_batching import _slot_carries
from pure_batching.testing import STRATEGIES, BatchMachine, Data, Function, SessionMachine, Subject

from .bench import bench
from .models import MODELS


def run(machine: Any, examples: int = 6, steps: int = 12) -> None:
    case, once = machine.TestCase, (Phase.generate,)
    given: Any = {"max_examples": examples, "stateful_step_count": steps, "phases": once, "report_multiple_bugs": False}
    case.settings = settings(deadline=None, derandomize=True, database=None, suppress_health_check=[*SLOW], **given)
    case("runTest").runTest()


SLOW = settings.get_profile("default").suppress_health_check


def machine_of(base: Any, name: str, **fields: Any) -> Any:
    """A machine for a model of the registry, by `pb.vmap`."""
    model = MODELS[name]

    def data(self: Any, seed: int, steps: int, samples: int) -> Data:
        return Data(model.inputs(seed, steps, samples), model.targets(seed, steps, samples))

    subject = dataclasses.replace(bench(name, 0).subject, strategies={"vmap": pb.vmap})
    return type(name, (base,), {"subject": subject, "data": data, **fields})


@pytest.mark.parametrize("name", ["random_start", "delayed", "trees", "tutorial"])
def test_sessions_of_any_model(name: str) -> None:
    """Whose states are drawn at the start, shared by samples, trees, or in units."""
    machine = machine_of(SessionMachine, name, optimizer=optax.sgd(1e-3))
    run(machine)
    assert all(machine.done[rule] > 0 for rule in ("open", "step", "gradient", "reset", "close")), machine.done
    assert machine.done["alive"] > 0


def test_an_optimizer_that_takes_the_loss() -> None:
    machine = machine_of(SessionMachine, "trees", optimizer=optax.polyak_sgd())
    run(machine)
    assert machine.done["learn"] > 0, machine.done
    assert machine.done["alive"] > 0


def test_batches_whose_samples_share_a_state() -> None:
    machine = machine_of(BatchMachine, "delayed")
    run(machine, 4)
    assert all(machine.done[rule] > 0 for rule in ("join", "step", "sequence", "gather")), machine.done
    assert machine.done["alive"] > 0


def leaky(params: Any, state: Any, x: Any) -> Any:
    new = jnp.tanh(0.7 * state + x @ params)
    return new, new


def centred(params: Any, state: Any, x: Any) -> Any:
    """The mean over the first axis is that of features, or that of samples."""
    new, _ = leaky(params, state, x)
    return (new := new - 0.5 * new.mean(axis=0)), new


def squared(output: Any, target: Any) -> jax.Array:
    return ((output - target) ** 2).sum()


def subject_of(step: Any, *names: str) -> Subject:
    function = Function(step, 0.3 + np.sin(np.arange(12.0)).reshape(3, 4), np.zeros(4))
    by = {name: STRATEGIES[name] for name in names}
    return Subject.of(lambda: function, pb.D_RTRL(rule="published"), (np.zeros(3),), squared, strategies=by)


@functools.cache
def coupled() -> Subject:
    return subject_of(centred, "manual")


class Drawn:
    """Data of that function."""

    def data(self, seed: int, steps: int, samples: int) -> Data:
        rng = np.random.default_rng(seed)
        return Data((rng.normal(size=(steps, samples, 3)),), rng.normal(size=(steps, samples, 4)))


@pytest.mark.parametrize("base", [SessionMachine, BatchMachine])
def test_finds_samples_that_reach_each_other(base: Any) -> None:
    machine = type("Coupled", (Drawn, base), {"subject": coupled()})
    with pytest.raises(AssertionError, match=r"^(the|a|session) .*: got .*, expected .* \(relative difference "):
        run(machine, 30)


def test_finds_a_session_that_moves_by_less_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that makes no step keeps its bits."""
    frozen = _slot_carries.frozen

    def moving(*given: Any) -> pb.Carry:
        kept = frozen(*given)
        return kept._replace(hidden=jax.tree.map(lambda h: h * (1 + 1e-15), kept.hidden))

    monkeypatch.setattr(_slot_carries, "frozen", moving)
    machine = type("Moving", (Drawn, SessionMachine), {"subject": subject_of(leaky, "vmap")})
    with pytest.raises(AssertionError, match=r"^session -?\d+ moved, and no rule named it"):
        run(machine, 200)


class TestWhatASubclassGives:
    def test_data_is_needed(self) -> None:
        machine = type("Bare", (SessionMachine,), {"subject": coupled()})
        with pytest.raises(NotImplementedError, match=r"^Bare needs a method data\(seed, steps, samples\)"):
            run(machine)

    def test_counts_are_its_own(self) -> None:
        one, other = (type("Own", (Drawn, SessionMachine), {"subject": coupled()}) for _ in range(2))
        one.done["open"] += 1
        assert other.done["open"] == 0


def test_hypothesis_is_loaded_with_the_machines() -> None:
    """The rest of the kit does without it."""
    code = (
        "import sys, pure_batching.testing as testing; before = 'hypothesis' in sys.modules\n"
        "testing.SessionMachine, testing.BatchMachine; print(before, 'hypothesis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.split() == ["False", "True"]
