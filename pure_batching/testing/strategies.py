"""Hypothesis strategies: modules, algorithms, sequences, carries and batches; they construct and do not filter.

What decides a shape or a program is drawn from a small set, because each costs a compilation; values are drawn freely.
"""

import itertools

import jax
import jax.numpy as jnp
from hypothesis import strategies as st

from .._algorithms.base import RULES, VJPS, Algorithm
from .._algorithms.bptt import BPTT
from .._algorithms.d_rtrl import D_RTRL
from .._algorithms.es_d_rtrl import ES_D_RTRL
from .._algorithms.hybrid import Hybrid
from .._learning.carry import Carry
from .._learning.learner import Learner
from .._program import Params
from .._tree import Tree, with_lead
from ._case import Case, Subject
from .modules import CELLS, NEURONS, OPERATORS, READOUTS, SYNAPSES, Cell, Leaky, Net, Readout, Spiking

WAYS = tuple(itertools.product(RULES, VJPS))
ALGORITHMS: tuple[Algorithm, ...] = (
    *(ES_D_RTRL(decay, rule, vjp) for decay, (rule, vjp) in itertools.product((0.9, 5), WAYS)),
    *(D_RTRL(rule, vjp) for rule, vjp in WAYS),
    *(Hybrid(decay, rule, vjp) for decay, (rule, vjp) in itertools.product((0.9, 5), WAYS)),
    *(BPTT(), BPTT(checkpoint=True)),
)

# Every number of features divides this, so that each operation fits behind each layer.
SIZE = 6

# How large inputs are: enough for spikes and for traces beyond 1, and not so large that a cell saturates.
SCALES = st.floats(1.5, 3.0)


def modules() -> st.SearchStrategy[Net]:
    """Compositions of BrainScale's cells, spiking layers, weight operations, normalisations and readouts."""
    layer = st.one_of(
        st.builds(Cell, st.sampled_from(CELLS), st.just(SIZE)),
        st.builds(Spiking, st.sampled_from(NEURONS), st.sampled_from(SYNAPSES), st.just(SIZE), st.booleans()),
        st.builds(Leaky, st.sampled_from(OPERATORS), st.just(SIZE)),
    )
    readout = st.one_of(st.just(()), st.builds(Readout, st.sampled_from(READOUTS)).map(lambda one: (one,)))
    layers = st.tuples(st.lists(layer, min_size=1, max_size=2).map(tuple), readout).map(lambda both: both[0] + both[1])
    return st.builds(
        Net,
        layers,
        n_inputs=st.integers(1, 2),
        is_normalized=st.booleans(),
        is_shared=st.booleans(),
        has_units=st.booleans(),
        seed=st.integers(0, 99),
    )


def algorithms() -> st.SearchStrategy[Algorithm]:
    """`ES_D_RTRL`, `D_RTRL` and `Hybrid` with every `rule` and `vjp`, and `BPTT`."""
    return st.sampled_from(ALGORITHMS)


def batch_sizes() -> st.SearchStrategy[int]:
    """One sample, two, an ordinary batch, and as many as there are features."""
    return st.sampled_from((1, 2, 3, SIZE))


def partitions(samples: int) -> st.SearchStrategy[list[int]]:
    """Ways to cut a batch into parts of at least one sample."""

    def sizes(cuts: set[int]) -> list[int]:
        ends = [0, *sorted(cuts), samples]
        return [after - before for before, after in itertools.pairwise(ends)]

    return st.sets(st.integers(1, samples - 1)).map(sizes) if samples > 1 else st.just([1])


def permutations(samples: int) -> st.SearchStrategy[list[int]]:
    """Orders of a batch."""
    return st.permutations(range(samples))


def sequences(net: Net, steps: int, samples: int) -> st.SearchStrategy:
    """Data of a module, `[T, B, ...]`."""
    return st.builds(net.data, st.integers(0, 2**32 - 1), st.just(steps), st.just(samples), SCALES)


def cases(subject: Subject, net: Net, steps: int, samples: int, window: int = 2) -> st.SearchStrategy[Case]:
    """A captured module with other weights near its own, and data."""

    def case(seed: int, data_seed: int, scale: float) -> Case:
        params = near(subject, seed)
        return Case(subject, params, net.data(data_seed, steps, samples, scale), window, jax.random.key(seed))

    seeds = st.integers(0, 2**32 - 1)
    return st.builds(case, seeds, seeds, SCALES)


def carries(learner: Learner, params: Params) -> st.SearchStrategy[Carry]:
    """Carries of a learner, of one sample or a batch: fresh from any key, or after some steps on any inputs."""

    def carry(seed: int, steps: int) -> Carry:
        now = learner.init(jax.random.key(seed))
        for key in jax.random.split(jax.random.key(seed), steps):
            now, _ = learner.step(params, now, *_inputs(learner, key))
        return now

    return st.builds(carry, st.integers(0, 2**32 - 1), st.integers(0, 3))


def _inputs(learner: Learner, key: jax.Array) -> tuple[Tree, ...]:
    """The arguments of one step: numbers in (0, 2), and zeros where they are whole."""
    specs, treedef = jax.tree.flatten(with_lead(learner.program.inputs, learner.lead))
    keys = jax.random.split(key, len(specs))
    leaves = [
        jax.random.uniform(k, s.shape, s.dtype, 0, 2) if jnp.issubdtype(s.dtype, jnp.floating) else jnp.zeros_like(s)
        for k, s in zip(keys, specs, strict=True)
    ]
    return jax.tree.unflatten(treedef, leaves)


def near(subject: Subject, seed: int) -> dict:
    """The subject's weights, each entry up to a tenth larger or smaller."""
    leaves, treedef = jax.tree.flatten(subject.params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    factors = [1 + 0.1 * jax.random.uniform(k, x.shape, x.dtype, -1, 1) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, [jnp.asarray(x * f, x.dtype) for x, f in zip(leaves, factors, strict=True)])
