"""Whatever is wrong with an argument, the error is the package's own, and no argument is touched."""

from collections.abc import Callable
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, note, strategies as st

import pure_batching as pb

from .subjects import COMPLEX, GATED, RECURRENT_SPIKES, SAMPLES, STEPS, Entry, subject

Damage = Callable[[Any], Any]

# Each makes of a right leaf a wrong one.
DAMAGES: dict[str, Damage] = {
    "an axis more": lambda x: jnp.expand_dims(x, 0),
    "an axis more behind": lambda x: jnp.expand_dims(x, -1),
    "an axis less": lambda x: x[0],
    "one more in front": lambda x: jnp.concatenate([x, x[:1]]),
    "one less in front": lambda x: x[:-1],
    "one more behind": lambda x: jnp.concatenate([x, x[..., :1]], axis=-1),
    "complex": lambda x: x.astype(complex),
    "another unit": lambda x: x * u.kelvin,
}
# A target may have any features and any type; what leads is fixed.
OF_TARGETS = ("an axis less", "one more in front", "one less in front")
ENTRIES = [Entry(net, pb.ES_D_RTRL(0.9)) for net in (GATED, RECURRENT_SPIKES, COMPLEX)]


def arguments(entry: Entry) -> dict[str, Any]:
    """Right arguments of a gradient."""
    learner, data = pb.vmap(subject(entry).learner, SAMPLES), entry.net.data(0, STEPS, SAMPLES)
    flags = {name: np.ones((STEPS, SAMPLES), bool) for name in ("mask", "reset")}
    own = {"params": subject(entry).params, "carry": learner.init(), **data._asdict(), **flags}
    return jax.tree.map(jnp.asarray, own)


@st.composite
def damaged(draw: st.DrawFn, entry: Entry) -> tuple[str, dict[str, Any]]:
    """What was done, and arguments of which one leaf is wrong."""
    right = arguments(entry)
    name = draw(st.sampled_from(sorted(right)))
    leaves, treedef = jax.tree.flatten(right[name], is_leaf=u.math.is_quantity)
    place = draw(st.integers(0, len(leaves) - 1))
    kinds = [kind for kind in (OF_TARGETS if name == "targets" else DAMAGES) if can_be(kind, leaves[place])]
    kind = draw(st.sampled_from([*kinds, "missing"] if len(leaves) > 1 else kinds))
    if kind == "missing":
        return f"{name}, leaf {place}: missing", {**right, name: tuple(leaves[:place] + leaves[place + 1 :])}
    leaves[place] = with_damage(kind, leaves[place])
    return f"{name}, leaf {place}: {kind}", {**right, name: jax.tree.unflatten(treedef, leaves)}


def with_damage(kind: str, leaf: Any) -> Any:
    """A wrong leaf; of a quantity, its numbers are wrong or its unit."""
    if kind == "another unit" or not u.math.is_quantity(leaf):
        return DAMAGES[kind](leaf)
    return u.Quantity(DAMAGES[kind](leaf.mantissa), unit=leaf.unit)


def can_be(kind: str, leaf: Any) -> bool:
    """Whether the damage is one to this leaf."""
    return bool(jnp.ndim(u.get_mantissa(leaf))) or kind in ("an axis more", "complex", "another unit")


@pytest.mark.xdist_group("bad input")
@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_is_refused_and_untouched(entry: Entry) -> None:
    grad_fn = pb.sequence_grad(pb.vmap(subject(entry).learner, SAMPLES), subject(entry).loss)

    @given(damaged(entry))
    def refused(case: tuple[str, dict[str, Any]]) -> None:
        what, given_ = case
        note(what)
        before = [(leaf, np.array(leaf)) for leaf in jax.tree.leaves(given_)]
        flags = {name: given_[name] for name in ("mask", "reset")}
        with pytest.raises(pb.PureBatchingError, match=r"(?s).+: got .+, expected .+\. .+\."):
            grad_fn(*(given_[name] for name in ("params", "carry", "inputs", "targets")), **flags)
        assert all(np.array_equal(np.array(leaf), old, equal_nan=True) for leaf, old in before)

    refused()
