"""Sessions come, go, make steps and learn, beside a dictionary of samples that live alone."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings

import pure_batching as pb
from pure_batching.testing import Data, Function, Subject
from pure_batching.testing.sessions import SessionMachine

Tree = Any

# The rule sequences of all machines together; by night more.
SEQUENCES = max(510, 30 * settings().max_examples)


def noisy(params: Tree, state: Tree, x: Tree) -> Any:
    """Each session has a random key of its own."""
    h, key = state
    key, own = jax.random.split(key)
    h = 0.7 * h + jnp.tanh(x @ params["w"] + h @ params["r"]) + 0.1 * jax.random.normal(own, h.shape)
    return (h, key), h[:2]


def counting(params: Tree, state: Tree, x: Tree) -> Any:
    """The samples of a batch share the counter, until they make different numbers of steps."""
    h, step = state
    h = 0.7 * h + jnp.tanh(x @ params["w"] + h @ params["r"]) * jnp.cos(step)
    return (h, step + 1), h[..., :2]


def squared(output: Tree, target: Tree) -> jax.Array:
    return ((output - target) ** 2).sum()


def make(step: Any, memory: Any) -> Function:
    """A function that remembers something besides its hidden state."""
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 4))), "r": jnp.asarray(0.3 * rng.normal(size=(4, 4)))}
    return Function(step, params, (jnp.linspace(-0.5, 0.5, 4), memory))


def subject(step: Any, memory: Any, **strategies: Any) -> Subject:
    factory = functools.partial(make, step, memory)
    return Subject.of(factory, pb.D_RTRL(rule="published"), (jnp.zeros(3),), squared, strategies=strategies)


class Sessions(SessionMachine):
    optimizer = optax.sgd(1e-2)

    def data(self, seed: int, steps: int, samples: int) -> Data:
        rng = np.random.default_rng(seed)
        return Data((rng.normal(size=(steps, samples, 3)),), rng.normal(size=(steps, samples, 2)))


class NoisyByVmap(Sessions):
    subject = subject(noisy, jax.random.key(0), vmap=pb.vmap)


class NoisyByLoop(Sessions):
    subject = subject(noisy, jax.random.key(0), loop=pb.loop)
    is_exact = True


class CountingByTurns(Sessions):
    subject = subject(counting, jnp.zeros((), jnp.int32), manual=pb.manual, vmap=pb.vmap)


def on_two_devices(learner: pb.Learner, samples: int) -> pb.Learner:
    """On one where two do not share them evenly."""
    devices = math.gcd(samples, 2)
    return pb.sharded(learner, samples, mesh=jax.make_mesh((devices,), ("batch",), devices=jax.devices()[:devices]))


class NoisySharedOut(Sessions):
    """The devices divide the slots, also once there are more."""

    subject = subject(noisy, jax.random.key(0), chunked=functools.partial(pb.chunked, chunk=2), sharded=on_two_devices)
    capacity, larger = 4, 6


MACHINES = {
    "noisy-vmap": NoisyByVmap,
    "noisy-loop": NoisyByLoop,
    "counting-manual": CountingByTurns,
    "noisy-shared out": NoisySharedOut,
}

# The part of the sequences that a machine runs, and how often each rule must happen: fewer where a step takes long.
PARTS = dict.fromkeys(MACHINES, 3) | {"noisy-shared out": 6}
LEAST = dict.fromkeys(MACHINES, 20) | {"noisy-shared out": 2}
RULES = ("open", "restore", "step", "ruined", "gradient", "learn", "reset", "close", "snapshot", "grow", "refused")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.xdist_group(f"slots {name}")) for name in MACHINES]
)
def test_no_session_sees_another(name: str) -> None:
    machine = MACHINES[name]
    case = machine.TestCase
    case.settings = settings(max_examples=SEQUENCES // PARTS[name], stateful_step_count=12)
    case("runTest").runTest()
    done = machine.done
    assert all(done[one] >= LEAST[name] for one in RULES), done
    assert (done["swap"] > 0) == (len(machine.subject.names) > 1)
    assert done["alive"] == done["gradient of one"]
    assert done["together"] >= 100, done
