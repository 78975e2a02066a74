"""The audit on random modules, some of which couple samples: numbers confirm what it calls independent."""

from collections.abc import Callable

import brainstate
import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, event, given, settings, strategies as st

import pure_batching as pb
from pure_batching._independence.probe import moved_leaves
from pure_batching.testing.modules import SETTINGS, Net
from pure_batching.testing.strategies import algorithms, modules

from .subjects import IS_NIGHT

# At night, a thousand modules in all.
PARTS, EXAMPLES = 4, 250 if IS_NIGHT else 1
SAMPLES = 3

# What is done to an input [n] or [B, n]: nothing to others' samples, or something that a batch axis in front couples.
HARMLESS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "as it is": lambda x: x,
    "softmax of features": lambda x: jax.nn.softmax(x, -1),
    "flat and back": lambda x: x.reshape(-1).reshape(x.shape),
    "features there and back": lambda x: x[..., ::-1][..., ::-1],
    "products of features": lambda x: x * jnp.einsum("...i,...i->...", x, x)[..., None],
}
COUPLING: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean over the first axis": lambda x: x - x.mean(0),
    "norm of everything": lambda x: x / jnp.linalg.norm(x),
    "rolled": lambda x: jnp.roll(x, 1, 0),
    "reversed": lambda x: x[::-1],
    "sorted": lambda x: jnp.sort(x, 0),
    "running sum": lambda x: jnp.cumsum(x, 0),
    "order": lambda x: x + jnp.argsort(x, 0),
    "softmax of the first axis": lambda x: jax.nn.softmax(x, 0),
    "the first one": lambda x: jnp.broadcast_to(x[:1], x.shape),
    "a shift when flat": lambda x: jnp.roll(x.reshape(-1), 1).reshape(x.shape),
}
CHANGES = HARMLESS | COUPLING


class Changed(brainstate.nn.Module):
    """A module whose first input is changed before."""

    def __init__(self, net: Net, change: str) -> None:
        super().__init__()
        self.inner, self.change = net(), change

    def update(self, first: jax.Array, *others: jax.Array) -> jax.Array:
        return self.inner(jax.tree.map(CHANGES[self.change], first), *others)


@pytest.mark.parametrize("part", [pytest.param(i, marks=pytest.mark.xdist_group(f"audit {i}")) for i in range(PARTS)])
def test_numbers_confirm_what_is_called_independent(part: int) -> None:
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(modules(), algorithms(), st.sampled_from(sorted(CHANGES)), st.sampled_from(["vmap", "manual"]))
    def confirmed(net: Net, algorithm: pb.Algorithm, change: str, strategy: str) -> None:
        with brainstate.environ.context(precision=64):
            learner, params = pb.capture(
                Changed(net, change), *net.example(), algorithm=algorithm, environ=dict(SETTINGS)
            )
            batched = pb.vmap(learner, SAMPLES) if strategy == "vmap" else _coupled(learner)
            found, moved = pb.audit(batched, probe=False), moved_leaves(batched, params)
        kinds = {name: verdict.kind for name, verdict in found.leaves.items()}
        event(f"{strategy}, {change}: {', '.join(sorted(set(kinds.values())))}")
        assert "undecided" not in kinds.values(), str(found)
        assert not {name for name in moved if kinds[name] == "independent"}, str(found)
        assert strategy == "manual" or found.is_independent, str(found)
        assert change in COUPLING or found.is_independent, str(found)
        assert strategy == "vmap" or change in HARMLESS or not found.is_independent, str(found)

    confirmed()


def _coupled(learner: pb.Learner) -> pb.Learner:
    return pb.manual(learner, SAMPLES, allow_coupling=True)
