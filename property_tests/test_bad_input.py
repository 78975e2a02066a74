"""Whatever is wrong with an argument, the error is the package's own, and no argument is touched."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import HiddenState
from hypothesis import given, note, settings, strategies as st

import pure_batching as pb
from pure_batching._sources.blueprint import states_of
from pure_batching.testing._native_run import compiled, counterpart

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

# Each makes of a mapping one that has other names.
OTHER_NAMES: dict[str, Damage] = {
    "an entry more": lambda tree: {**tree, "stray": np.ones(SAMPLES)},
    "an entry less": lambda tree: {name: tree[name] for name in [*tree][1:]},
    "an entry renamed": lambda tree: {name if i else "stray": leaf for i, (name, leaf) in enumerate(tree.items())},
}

STRATEGIES = {"one sample": None, "loop": pb.loop, "vmap": pb.vmap, "manual": pb.manual}


class Call(NamedTuple):
    """Something to call.

    Attributes:
      run: on arguments by name.
      right: the right ones.
      damages: those that can be seen, by argument, where these are not all.
      kept: what else must stay as it is.
    """

    run: Callable[[Arguments], Any]
    right: Arguments
    damages: dict[str, set[str]] = {}  # noqa: RUF012 - nothing changes it
    kept: Callable[[], Any] = lambda: None


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


def of_key(entry: Entry) -> Call:
    """A fresh carry."""
    return Call(lambda given_: learner_of(entry, "vmap").init(given_["key"]), {"key": np.zeros(2, np.uint32)})


def of_audit(entry: Entry) -> Call:
    """The audit of a batch with some weights."""
    right = {"params": subject(entry).params}
    return Call(lambda given_: pb.audit(learner_of(entry, "vmap"), params=given_["params"]), right)


def of_states(entry: Entry) -> Call:
    """A module that is written to: with some of its states, or all of them."""
    net = entry.net()
    seen = set(DAMAGES) | {"an entry more", "an entry renamed"}
    right = {"tree": pb.read_states(net)}
    return Call(lambda given_: pb.write_states(net, given_["tree"]), right, {"tree": seen}, lambda: pb.read_states(net))


def to_brainscale(entry: Entry) -> Call:
    """A BrainScale algorithm that is written to."""
    made, native = subject(entry), compiled(subject(entry))
    return Call(
        lambda given_: pb.to_native(made.learner, given_["carry"], native.algorithm),
        {"carry": made.learner.init()},
        kept=lambda: [state.value for state, _ in native.start],
    )


def from_brainscale(entry: Entry) -> Call:
    """A BrainScale algorithm that is read, whose hidden states are wrong; they are right again afterwards."""
    made, native = subject(entry), compiled(subject(entry))
    states = {path: state for path, state in states_of(native.net).items() if isinstance(state, HiddenState)}
    right = {path: state.value for path, state in states.items()}

    def write(values: Arguments) -> None:
        for path, state in states.items():
            object.__setattr__(state, "_value", values[path])  # a state does not take what does not fit

    def run(given_: Arguments) -> Any:
        write(given_["states"])
        try:
            return pb.from_native(made.learner, native.algorithm)
        finally:
            write(right)

    return Call(run, {"states": right}, {"states": set(DAMAGES)}, lambda: {p: s.value for p, s in states.items()})


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
    seen = call.damages.get(name, {*DAMAGES, *OTHER_NAMES})
    of_mappings = [
        (kind, place) for place, node in mappings(right[name]) for kind in OTHER_NAMES if node or "more" in kind
    ]
    leaves, treedef = jax.tree.flatten(right[name], is_leaf=u.math.is_quantity)
    of_leaves = [(kind, (place,)) for place, leaf in enumerate(leaves) for kind in DAMAGES if can_be(kind, leaf)]
    possible = [case for cases in (of_mappings, of_leaves) if (case := [c for c in cases if c[0] in seen])]
    kind, place = draw(st.one_of(*map(st.sampled_from, possible)))
    if kind in OTHER_NAMES:
        wrong = with_change(right[name], place, OTHER_NAMES[kind])
    else:
        leaves[place[0]] = with_damage(kind, leaves[place[0]])
        wrong = jax.tree.unflatten(treedef, leaves)
    return f"{name} at {place}: {kind}", {**right, name: wrong}


def mappings(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every mapping within a tree, and where it is."""
    if isinstance(tree, dict):
        yield place, tree
    if isinstance(tree, (dict, tuple)):
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from mappings(child, (*place, key))


def with_change(tree: Any, place: tuple[Any, ...], change: Damage) -> Any:
    """A tree with something else at a place."""
    if not place:
        return change(tree)
    key, *rest = place
    if isinstance(tree, dict):
        return {**tree, key: with_change(tree[key], tuple(rest), change)}
    children = [with_change(child, tuple(rest), change) if i == key else child for i, child in enumerate(tree)]
    return type(tree)(*children) if hasattr(tree, "_fields") else tuple(children)


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
        before = [(leaf, np.array(leaf)) for leaf in jax.tree.leaves((given_, call.kept()))]
        with pytest.raises(pb.PureBatchingError, match=r"(?s).+: got .+, expected .+\. .+\."):
            call.run(given_)
        assert all(np.array(leaf).tobytes() == old.tobytes() for leaf, old in before)
        assert all(now is leaf for now, (leaf, _) in zip(jax.tree.leaves((given_, call.kept())), before, strict=True))

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

    def test_by_a_start(self, entry: Entry) -> None:
        check(of_key(entry))

    def test_by_the_audit(self, entry: Entry) -> None:
        check(of_audit(entry))

    def test_by_a_module(self, entry: Entry) -> None:
        check(of_states(entry))

    @pytest.mark.parametrize("name", ALGEBRA)
    def test_by_the_algebra(self, entry: Entry, name: str) -> None:
        check(of_algebra(entry)[name])


@pytest.mark.xdist_group("bad input")
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if counterpart(entry.algorithm)], ids=str)
class TestIsRefusedOnTheWay:
    def test_to_brainscale(self, entry: Entry) -> None:
        check(to_brainscale(entry))

    def test_from_brainscale(self, entry: Entry) -> None:
        check(from_brainscale(entry))


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
