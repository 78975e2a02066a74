"""Whatever is wrong with an argument, the error is the package's own, and no argument is touched."""

from collections.abc import Callable
from typing import Any, NamedTuple

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, note, settings, strategies as st

import pure_batching as pb

from .subjects import COMPLEX, CONVOLVED, GATED, RECURRENT_SPIKES, SAMPLES, STEPS, Entry, subject

Damage = Callable[[Any], Any]
Arguments = dict[str, Any]

# Each makes of a right leaf a wrong one.
DAMAGES: dict[str, Damage] = {
    "an axis more": lambda x: jnp.expand_dims(x, 0),
    "an axis more behind": lambda x: jnp.expand_dims(x, -1),
    "an axis less": lambda x: x[0],
    "one more in front": lambda x: jnp.concatenate([x, x[:1]]),
    "one less in front": lambda x: x[:-1],
    "one more behind": lambda x: jnp.concatenate([x, x[..., :1]], axis=-1),
    "wider": lambda x: x.astype(WIDER[str(x.dtype)]),
    "another kind": lambda x: x.astype(OTHER_KIND[x.dtype.kind]),
    "another unit": lambda x: x * u.kelvin,
    "a word": lambda _: "word",
    "words": lambda x: np.full(x.shape, "word"),
}
WIDER = {"int32": "int64", "float32": "float64", "complex64": "complex128"}
OTHER_KIND = {"b": float, "i": float, "u": float, "f": complex}
OF_SCALARS = {"an axis more", "wider", "another kind", "another unit", "a word", "words"}
# A target may have any features and any type; what leads is fixed, and that it is made of numbers.
OF_TARGETS = {"an axis less", "one more in front", "one less in front", "a word", "words"}
# Without a learner, all that a carry of a batch shows is that its leaves are numbers, and lead with the samples.
OF_ONE_CARRY = {"an axis more", "one more in front", "one less in front", "a word", "words"}

STRATEGIES = {"one sample": None, "loop": pb.loop, "vmap": pb.vmap, "manual": pb.manual}


class Call(NamedTuple):
    """Something to call.

    Attributes:
      run: on arguments by name.
      right: the right ones.
      damages: those that can be seen, by argument, where these are not all.
    """

    run: Callable[[Arguments], Any]
    right: Arguments
    damages: dict[str, set[str]] = {}  # noqa: RUF012 - nothing changes it


def learner_of(entry: Entry, strategy: str) -> pb.Learner:
    """The entry's learner of one sample, or of a batch."""
    make = STRATEGIES[strategy]
    return subject(entry).learner if make is None else make(subject(entry).learner, SAMPLES)


def of_step(entry: Entry, strategy: str) -> Call:
    """A step."""
    learner = learner_of(entry, strategy)
    inputs = entry.net.data(0, STEPS, SAMPLES).inputs
    own = jax.tree.map(lambda x: x[0, 0] if learner.batch_size is None else x[0], inputs)
    right = {"params": subject(entry).params, "carry": learner.init(), "inputs": own}
    return Call(lambda given_: learner.step(given_["params"], given_["carry"], *given_["inputs"]), right)


def of_sequence(entry: Entry, strategy: str, make: Callable[..., Any] = pb.sequence_grad) -> Call:
    """A gradient, or norms."""
    learner, data = learner_of(entry, strategy), entry.net.data(0, STEPS, SAMPLES)
    function, is_single = make(learner, subject(entry).loss), learner.batch_size is None
    own = jax.tree.map(lambda x: x[:, 0], data) if is_single else data
    flags = {name: np.ones((STEPS,) if is_single else (STEPS, SAMPLES), bool) for name in ("mask", "reset")}
    right = {"params": subject(entry).params, "carry": learner.init(), **own._asdict(), **flags}

    def run(given_: Arguments) -> Any:
        flags = {name: given_[name] for name in ("mask", "reset")}
        return function(*(given_[name] for name in ("params", "carry", "inputs", "targets")), **flags)

    return Call(run, right, {"targets": OF_TARGETS})


def clipped(learner: pb.Learner, loss: Any) -> Any:
    """`clipped_grad` with a bound."""
    return pb.clipped_grad(learner, loss, 1.0)


def of_algebra(entry: Entry) -> dict[str, Call]:
    """Every function of carries."""
    batch, one = learner_of(entry, "vmap").init(), subject(entry).learner.init()
    alone, pair = {"carry": batch}, {"carry": batch, "other": batch}
    return {
        "gather": Call(lambda given_: pb.gather(given_["carry"], [0]), alone, {"carry": OF_ONE_CARRY}),
        "permute": Call(lambda given_: pb.permute(given_["carry"], [2, 0, 1]), alone, {"carry": OF_ONE_CARRY}),
        "split": Call(lambda given_: pb.split(given_["carry"], [1, 2]), alone, {"carry": OF_ONE_CARRY}),
        "unstack": Call(lambda given_: pb.unstack(given_["carry"]), alone, {"carry": OF_ONE_CARRY}),
        "apart": Call(lambda given_: pb.apart(given_["carry"]), alone, {"carry": OF_ONE_CARRY}),
        "scatter": Call(lambda given_: pb.scatter(given_["carry"], [0, 1, 2], given_["other"]), pair),
        "concat": Call(lambda given_: pb.concat([given_["carry"], given_["other"]]), pair),
        "stack": Call(lambda given_: pb.stack([given_["carry"], given_["other"]]), {"carry": one, "other": one}),
    }


@st.composite
def damaged(draw: st.DrawFn, call: Call) -> tuple[str, Arguments]:
    """What was done, and arguments of which one leaf is wrong."""
    right = jax.tree.map(np.array, call.right)
    name = draw(st.sampled_from(sorted(right)))
    leaves, treedef = jax.tree.flatten(right[name], is_leaf=u.math.is_quantity)
    place = draw(st.integers(0, len(leaves) - 1))
    seen = call.damages.get(name, set(DAMAGES))
    kinds = sorted(kind for kind in seen if can_be(kind, leaves[place]))
    kind = draw(st.sampled_from([*kinds, "missing"] if len(leaves) > 1 else kinds))
    if kind == "missing":
        return f"{name}, leaf {place}: missing", {**right, name: tuple(leaves[:place] + leaves[place + 1 :])}
    leaves[place] = with_damage(kind, leaves[place])
    return f"{name}, leaf {place}: {kind}", {**right, name: jax.tree.unflatten(treedef, leaves)}


def with_damage(kind: str, leaf: Any) -> Any:
    """A wrong leaf; of a quantity, its numbers are wrong or its unit."""
    if kind in ("another unit", "a word") or not u.math.is_quantity(leaf):
        return DAMAGES[kind](leaf)
    return u.Quantity(DAMAGES[kind](leaf.mantissa), unit=leaf.unit)


def can_be(kind: str, leaf: Any) -> bool:
    """Whether the damage is one to this leaf."""
    array = u.get_mantissa(leaf)
    known = {"wider": str(array.dtype) in WIDER, "another kind": array.dtype.kind in OTHER_KIND}
    return known.get(kind, True) and (bool(jnp.ndim(array)) or kind in OF_SCALARS)


def check(call: Call) -> None:
    """Every damage is refused, and leaves the arguments as they were."""

    @settings(max_examples=3 * settings.default.max_examples)  # nothing is compiled for what is refused
    @given(damaged(call))
    def refused(case: tuple[str, Arguments]) -> None:
        what, given_ = case
        note(what)
        before = [(leaf, np.array(leaf)) for leaf in jax.tree.leaves(given_)]
        with pytest.raises(pb.PureBatchingError, match=r"(?s).+: got .+, expected .+\. .+\."):
            call.run(given_)
        assert all(np.array(leaf).tobytes() == old.tobytes() for leaf, old in before)

    refused()


ENTRIES = (
    Entry(GATED, pb.ES_D_RTRL(0.9)),
    Entry(RECURRENT_SPIKES, pb.D_RTRL()),
    Entry(CONVOLVED, pb.Hybrid(0.9)),
    Entry(COMPLEX, pb.D_RTRL(rule="published"), 32),
)
NORMS = {"sample_norms": pb.sample_norms, "clipped_grad": clipped}
ALGEBRA = ("gather", "permute", "split", "unstack", "apart", "scatter", "concat", "stack")

every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=str)


@pytest.mark.xdist_group("bad input")
@every_entry
class TestIsRefusedAndUntouched:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_by_a_step(self, entry: Entry, strategy: str) -> None:
        check(of_step(entry, strategy))

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_by_a_gradient(self, entry: Entry, strategy: str) -> None:
        check(of_sequence(entry, strategy))

    @pytest.mark.parametrize("name", NORMS)
    def test_by_norms(self, entry: Entry, name: str) -> None:
        check(of_sequence(entry, "vmap", NORMS[name]))

    @pytest.mark.parametrize("name", ALGEBRA)
    def test_by_the_algebra(self, entry: Entry, name: str) -> None:
        check(of_algebra(entry)[name])


# What names no samples, what does not name each of them once, and what are no sizes of parts.
NO_SAMPLES = st.one_of(
    st.sampled_from([None, "012", 1.0, True, {0: 1}, [[0], [1, 2]], [[0, 1, 2]]]),
    st.sampled_from([[0.0, 1.0], [True] * SAMPLES, [2**70], ["0"]]),
    st.integers(-9, 9),
    st.lists(st.integers(-9, 9), min_size=1).filter(lambda rows: not set(rows) <= set(range(SAMPLES))),
    st.just(np.arange(SAMPLES) * u.mV),
)
NOT_EACH = st.lists(st.integers(0, SAMPLES - 1), min_size=1).filter(lambda rows: sorted(rows) != [*range(SAMPLES)])
NO_SIZES = st.one_of(
    NO_SAMPLES.filter(lambda sizes: not isinstance(sizes, list) or sizes != [SAMPLES]),
    st.lists(st.integers(1, 9)).filter(lambda sizes: sum(sizes) != SAMPLES),
)


@pytest.mark.xdist_group("bad input")
class TestIndices:
    """Whatever does not name samples is refused."""

    @given(indices=NO_SAMPLES)
    def test_of_no_sample(self, indices: Any) -> None:
        carry = learner_of(ENTRIES[0], "vmap").init()
        for call in (pb.gather, pb.permute, lambda carry, rows: pb.scatter(carry, rows, carry)):
            self.check(call, carry, indices)

    @given(order=NOT_EACH)
    def test_not_of_each_once(self, order: list[int]) -> None:
        carry = learner_of(ENTRIES[0], "vmap").init()
        for call in (pb.permute, lambda carry, rows: pb.scatter(carry, rows, carry)):
            self.check(call, carry, order)

    @given(sizes=NO_SIZES)
    def test_of_no_sizes(self, sizes: Any) -> None:
        self.check(pb.split, learner_of(ENTRIES[0], "vmap").init(), sizes)

    @staticmethod
    def check(call: Callable[..., Any], carry: pb.Carry, indices: Any) -> None:
        before = repr(indices)
        with pytest.raises(pb.PureBatchingError, match=r"(?s).+: got .+, expected .+\. .+\."):
            call(carry, indices)
        assert repr(indices) == before
