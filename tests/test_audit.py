"""Are the samples independent? Each operation by itself, the registry, and what is said of those that couple them."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import ShortTermState
from brainstate.nn import Module
from jax import lax

import pure_batching as pb
from pure_batching._independence import walk
from pure_batching._independence.probe import moved_leaves
from pure_batching._independence.values import Along
from pure_batching._independence.verdicts import Verdict, verdicts
from pure_batching._reader import jaxprs
from pure_batching.errors import BatchSizeError, SampleCouplingError, StructureError

from . import modules
from .bench import ONLINE_RULES, RUNS, SAMPLES, WEIGHTS, Request, bench
from .models import MODELS, N_IN, N_OUT, N_REC
from .trees import assert_close, assert_identical

Array = jax.Array
Step = Callable[[Array, Array], Any]

FEATURES = 4
SETTINGS = {"dt": 1.0 * u.ms}


def columns(size: int) -> Array:
    return jnp.arange(size)


def normal(key: Array) -> Array:
    return jax.random.normal(key, (2,))


def halved_while_large(x: Array) -> Array:
    return lax.while_loop(lambda a: jnp.abs(a).sum() > 0.1, lambda a: a / 2, x)


def rounds_while_large(x: Array) -> Array:
    """A counter that starts the same for all samples."""
    return lax.while_loop(lambda a: jnp.abs(a[0]).sum() > 0.1, lambda a: (a[0] / 2, a[1] + 1), (x, 0))[1]


def rounds(x: Array) -> Array:
    return lax.while_loop(lambda a: a[0] < 3, lambda a: (a[0] + 1, a[1] * x), (0, x))[1]


def two_loops(x: Array) -> Array:
    """A carry that is known to depend on samples only in the second round."""
    return lax.fori_loop(0, 3, lambda _, ab: (ab[1], ab[1] + x), (jnp.zeros_like(x), jnp.zeros_like(x)))[0]


def kept_in_a_reference(x: Array) -> Array:
    ref = jax.new_ref(jnp.zeros_like(x[0]))
    ref[...] = x.sum(0)
    return x + ref[...]


# Functions of `x [B, 4]` and `n [B]`, integers in [0, B): what they do with the samples, and by which operation.
INDEPENDENT: dict[str, Step] = {
    "element-wise": lambda x, n: jnp.where(x > 0, jnp.tanh(x), jnp.clip(x, -1, 1)) * n[:, None],
    "a constant": lambda x, n: x + jnp.arange(x.size).reshape(x.shape),
    "nothing of the samples": lambda x, n: jnp.ones(x.shape).mean(0) + jnp.zeros(x.shape),
    "broadcast": lambda x, n: jnp.broadcast_to(n[:, None, None], (*n.shape, 2, 3)),
    "transpose twice": lambda x, n: (x.T * jnp.arange(FEATURES)[:, None]).T,
    "features into two axes": lambda x, n: x.reshape(-1, 2, 2).sum(-1),
    "samples within an axis": lambda x, n: jnp.tanh(x.reshape(-1)).reshape(x.shape),
    "samples within an axis, the other way": lambda x, n: jnp.tanh(x.T.reshape(-1)).reshape(FEATURES, -1).T,
    "mean over features": lambda x, n: x - x.mean(1, keepdims=True),
    "argmax over features": lambda x, n: x.argmax(-1),
    "softmax": lambda x, n: jax.nn.softmax(x),
    "logsumexp": lambda x, n: jax.nn.logsumexp(x, axis=-1),
    "cumulative": lambda x, n: jnp.cumsum(x, 1) + lax.cummax(x, 1),
    "sorted features": lambda x, n: jnp.sort(x, -1),
    "argsorted features": lambda x, n: jnp.argsort(x, -1),
    "the largest": lambda x, n: lax.top_k(x, 2)[1],
    "reversed features": lambda x, n: x[:, ::-1],
    "rolled features": lambda x, n: jnp.roll(x, 1, 1),
    "some features": lambda x, n: x[:, 1:3] + x[:, jnp.array([0, 3])],
    "product with weights": lambda x, n: x @ jnp.ones((FEATURES, 3)),
    "weights first": lambda x, n: (jnp.ones((3, FEATURES)) @ x.T).T,
    "outer product": lambda x, n: jnp.einsum("bi,bj->bij", x, x),
    "inner product": lambda x, n: jnp.einsum("bi,bi->b", x, x),
    "convolution": lambda x, n: convolved(x[:, :, None]),
    "mapped convolution": lambda x, n: jax.vmap(lambda a: convolved(a[None, :, None])[0])(x),
    "a kernel for each sample": jax.vmap(lambda a, i: convolved(a[None, :, None], i * jnp.ones((2, 1, 5)))[0]),
    "a kernel's derivative for each sample": lambda x, n: jax.vmap(
        jax.grad(lambda k, a: convolved(a, k).sum()), (None, 0)
    )(jnp.ones((2, 2, 5)), x.reshape(-1, 1, 2, 2)),
    "its derivative for a batch of each sample": jax.vmap(
        jax.grad(lambda a, i: convolved(jnp.stack([a, i * a]).reshape(2, 2, 2), a.reshape(2, 2, 1)).sum())
    ),
    "pooling": lambda x, n: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"),
    "side by side": lambda x, n: jnp.concatenate([x, n[:, None] + 0.0, jnp.ones((*n.shape, 2))], axis=1),
    "one batch after the other": lambda x, n: jnp.split(jnp.tanh(jnp.concatenate([x, 2 * x])), 2)[1],
    "stacked": lambda x, n: jnp.stack([x, 2 * x], 1)[:, 1] + jnp.unstack(jnp.stack([x, x]))[0],
    "tiled": lambda x, n: jnp.tile(x, (2, 2))[: x.shape[0]],
    "padded features": lambda x, n: jnp.pad(x, ((0, 0), (1, 1))),
    "a slice that starts anywhere": lambda x, n: lax.dynamic_slice(x, (0, jnp.arange(3)[1]), (x.shape[0], 2)),
    "an update that starts anywhere": lambda x, n: lax.dynamic_update_slice(x, n[:, None] + 0.0, (0, jnp.arange(3)[1])),
    "its own entry": lambda x, n: jnp.take_along_axis(x, n[:, None] % FEATURES, 1),
    "its own entry, counted": lambda x, n: x[columns(x.shape[0]), n % FEATURES],
    "its own entries, counted": lambda x, n: x[columns(x.shape[0])[:, None], jnp.array([[0, 2]])],
    "a row of a table": lambda x, n: jnp.arange(30.0).reshape(10, 3)[n],
    "one-hot": lambda x, n: jax.nn.one_hot(n, 7),
    "its own entry set": lambda x, n: x.at[columns(x.shape[0]), n % FEATURES].set(1.0),
    "its own entry added": lambda x, n: jnp.zeros_like(x).at[columns(x.shape[0]), n % FEATURES].add(x[:, 0]),
    "mapped update": jax.vmap(lambda a, i: a.at[i].add(2.0)),
    "feature columns added": lambda x, n: x.at[:, jnp.array([0, 2])].add(x[:, :2]),
    "one sample after the other": lambda x, n: lax.map(lambda a: jnp.sort(a) @ a, x),
    "over time": lambda x, n: lax.scan(lambda c, a: (c + a, c * a), n + 0.0, x.T)[1].T,
    "a loop": lambda x, n: two_loops(x),
    "a mapped loop, each sample until it is done": lambda x, n: jax.vmap(halved_while_large)(10 * x),
    "a mapped loop within a loop": lambda x, n: lax.fori_loop(0, 2, lambda _, a: jax.vmap(halved_while_large)(a), x),
    "how often a mapped loop went round": lambda x, n: jax.vmap(rounds_while_large)(10 * x),
    "a loop that knows no sample": lambda x, n: rounds(x),
    "a branch that knows no sample": lambda x, n: lax.cond(jnp.arange(3)[1] > 0, jnp.sin, jnp.cos, x),
    "mapped branches": jax.vmap(lambda a, i: lax.switch(i % 2, [jnp.sin, jnp.cos], a)),
    "a mean over another named axis": lambda x, n: jax.vmap(lambda a: a - lax.pmean(a, "all"), 1, 1, axis_name="all")(
        x
    ),
    "a jitted function": lambda x, n: jax.jit(lambda a: a * 2)(x),
    "a rematerialised function": lambda x, n: jax.checkpoint(jnp.sin)(x),
    "a derivative": lambda x, n: jax.grad(lambda a: jnp.tanh(a).sum())(x),
    "a function with its own derivative": lambda x, n: jax.nn.relu(x),
    "a determinant": lambda x, n: jnp.linalg.qr(jnp.eye(FEATURES) + x[:, :, None])[1],
    "Fourier transform": lambda x, n: jnp.abs(jnp.fft.fft(x, axis=1)),
    "typed random keys": lambda x, n: jax.vmap(lambda i: normal(jax.random.key(i)))(n),
    "raw random keys": lambda x, n: jax.vmap(lambda i: normal(jax.random.split(jax.random.PRNGKey(i))[1]))(n),
}

COUPLED: dict[str, tuple[str, Step]] = {
    "mean over samples": ("reduce_sum", lambda x, n: x - x.mean(0)),
    "maximum over all": ("reduce_max", lambda x, n: x / x.max()),
    "argmax over samples": ("argmax", lambda x, n: x + x.argmax(0)),
    "softmax over samples": ("reduce_max", lambda x, n: jax.nn.softmax(x, 0)),
    "argsort over samples": ("sort", lambda x, n: jnp.argsort(x, 0)),
    "ranked samples": ("top_k", lambda x, n: x + lax.top_k(x.T, 1)[0].T),
    "flipped samples": ("rev", lambda x, n: jnp.flip(x, 0)),
    "rolled samples": ("slice", lambda x, n: jnp.roll(x, 1, 0)),
    "the first sample": ("slice", lambda x, n: x + x[:1]),
    "every product": ("dot_general", lambda x, n: x @ x.T),
    "contracted samples": ("dot_general", lambda x, n: x @ (x.T @ x)),
    "every difference": ("sub", lambda x, n: x[:, None] - x[None]),
    "an untold transpose": ("transpose", lambda x, n: jnp.concatenate([x, x, x], 1)[:, : x.shape[0]].T),
    "cumulative over samples": ("cumsum", lambda x, n: jnp.cumsum(x, 0)),
    "convolution over samples": ("conv_general_dilated", lambda x, n: convolved(x[None])[0]),
    "convolution whose channels are samples": ("conv_general_dilated", lambda x, n: x + convolved(x.T[None]).sum()),
    "pooling over samples": (
        "reduce_window_sum",
        lambda x, n: lax.reduce_window(x, 0.0, lax.add, (2, 1), (1, 1), "SAME"),
    ),
    "permuted samples": ("gather", lambda x, n: x[np.roll(np.arange(x.shape[0]), 1)]),
    "shifted entries": ("gather", lambda x, n: x[(columns(x.shape[0]) + 1) % x.shape[0], n % FEATURES]),
    "a branch on all": ("reduce_sum", lambda x, n: lax.cond(x.sum() > 0, lambda a: a + 1, jnp.cos, x)),
    "a loop on all": ("reduce_or", lambda x, n: lax.while_loop(lambda a: (a > 0.1).any(), lambda a: a - 1, x)),
    "a state handed on": ("scan", lambda x, n: lax.scan(lambda c, a: (c + a, c), jnp.zeros(FEATURES), x)[1]),
    "Fourier transform over samples": ("fft", lambda x, n: jnp.abs(jnp.fft.fft(x, axis=0))),
    "a matrix of samples": ("qr", lambda x, n: jnp.linalg.qr(x)[0]),
    "within a jitted function": ("reduce_sum", lambda x, n: jax.jit(lambda a: a - a.sum(0))(x)),
    "within a loop": ("reduce_sum", lambda x, n: lax.fori_loop(0, 3, lambda _, a: a - a.mean(0), x)),
    "a mean over a named axis": ("psum", lambda x, n: jax.vmap(lambda a: a - lax.pmean(a, "all"), axis_name="all")(x)),
    "within a mapped loop": ("reduce_sum", lambda x, n: lax.map(lambda a: a - a.mean(0), x.T).T),
    "blended in an axis": ("slice", lambda x, n: x.reshape(-1)[2 : 2 + x.shape[0]]),
}

UNDECIDED: dict[str, tuple[str, Step]] = {
    "a linear system": (
        "custom_linear_solve",
        lambda x, n: jnp.linalg.solve(jnp.eye(FEATURES) + x[:, None], x[..., None]),
    ),
    "a sample that is looked up": ("gather", lambda x, n: x[n]),
    "samples that are looked up and set": ("scatter", lambda x, n: jnp.zeros_like(x).at[n].set(x)),
    "sums by label": ("scatter-add", lambda x, n: jax.ops.segment_sum(x, n, x.shape[0])),
    "padded samples": ("pad", lambda x, n: jnp.pad(x, ((1, 1), (0, 0)))[1:-1]),
    "samples and others": ("concatenate", lambda x, n: jnp.concatenate([jnp.zeros((1, FEATURES)), x])[1:]),
    "samples cut by another number": ("reshape", lambda x, n: jnp.tile(x, (5, 1)).reshape(5 * FEATURES, -1).T[:, :2]),
    "a sample at a time, by hand": (
        "dynamic_slice",
        lambda x, n: lax.map(lambda i: lax.dynamic_index_in_dim(x, i, keepdims=False), columns(x.shape[0])),
    ),
    "a reference": ("get", lambda x, n: kept_in_a_reference(x)),
    "a callback": ("pure_callback", lambda x, n: jax.pure_callback(np.flip, x, x)),
}


def convolved(x: Array, kernel: Array | None = None) -> Array:
    kernel = jnp.ones((2, x.shape[-1], 5)) if kernel is None else kernel
    return lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))


def pooled_over_samples(x: Array) -> Array:
    return lax.reduce_window(x, 0.0, lax.add, (2, 1), (1, 1), "SAME")


def solved(h: Array) -> Array:
    """A linear system for each sample, which no rule follows."""
    return jnp.linalg.solve(jnp.eye(h.shape[-1]) + 0.1 * h[..., :, None] * h[..., None, :], h[..., None])


def arguments(seed: Any, samples: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(samples, FEATURES))), jnp.asarray(rng.permutation(samples))


def verdict_of(step: Step, samples: int) -> Verdict:
    (found,) = verdicts(step, arguments(0, samples), [Along(0), Along(0)]).values()
    return found


def others_that_move(step: Step, seed: int, samples: int) -> bool:
    """Whether a row moves when another sample is changed, in any of several draws."""
    run = jax.jit(step)
    return any(row_moves_others(run, seed + draw, samples, row) for draw in range(3) for row in range(samples))


def row_moves_others(step: Step, seed: int, samples: int, row: int) -> bool:
    base, other = (arguments((seed, i), samples) for i in (0, 1))
    changed = [a.at[row].set(b[row]) for a, b in zip(base, other, strict=True)]
    before, after = (np.delete(np.asarray(step(*given)), row, axis=0) for given in (base, changed))
    return before.tobytes() != after.tobytes()


class TestOperations:
    """At 3 samples, and at as many as there are features: nothing may be told from sizes."""

    @pytest.mark.parametrize("samples", [3, FEATURES])
    @pytest.mark.parametrize("name", INDEPENDENT)
    def test_independent(self, name: str, samples: int, seed: int) -> None:
        assert verdict_of(INDEPENDENT[name], samples) == Verdict("independent", "proved")
        assert not others_that_move(INDEPENDENT[name], seed, samples)

    @pytest.mark.parametrize("samples", [3, FEATURES])
    @pytest.mark.parametrize("name", COUPLED)
    def test_coupled(self, name: str, samples: int, seed: int) -> None:
        primitive, step = COUPLED[name]
        found = verdict_of(step, samples)
        assert (found.kind, found.how, found.primitive) == ("coupled", "proved", primitive)
        assert found.where.startswith("test_audit.py:")
        assert others_that_move(step, seed, samples)

    @pytest.mark.parametrize("name", UNDECIDED)
    def test_undecided(self, name: str) -> None:
        primitive, step = UNDECIDED[name]
        found = verdict_of(step, 3)
        assert (found.kind, found.how, found.primitive) == ("undecided", "", primitive)

    def test_a_zero_does_not_undo_a_coupling(self) -> None:
        assert verdict_of(lambda x, n: x + 0 * x.sum(0), 3).kind == "coupled"

    def test_a_coupling_counts_more_than_doubt(self) -> None:
        assert verdict_of(lambda x, n: x[n] + x.sum(0), 3).primitive == "reduce_sum"

    def test_what_is_not_used_does_not_count(self) -> None:
        def step(x: Array, n: Array) -> Array:
            return jax.jit(lambda a: (a.sum(0), a + 1))(x)[1]

        assert verdict_of(step, 3).kind == "independent"

    def test_what_a_callback_gives_may_remember_samples(self) -> None:
        def step(x: Array, n: Array) -> Array:
            ask = jax.jit(lambda: jax.experimental.io_callback(np.zeros, jax.ShapeDtypeStruct((3,), float), 3))
            return x[:, 0] + ask()

        assert verdict_of(step, 3).kind == "undecided"

    def test_within_another_trace(self) -> None:
        """Constants may be unknown there."""

        def outer(places: Array) -> Array:
            assert verdict_of(lambda x, n: x[places], 3).kind == "undecided"
            return places

        jax.make_jaxpr(outer)(jnp.arange(3))

    def test_numbers_are_computed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each index is made of the one before, twice: without memory there would be 2^40 evaluations."""
        evaluated: list[Any] = []

        def evaluate(*given: Any) -> Any:
            evaluated.append(given)
            assert len(evaluated) <= 200
            return jaxprs.evaluate(*given)

        def step(x: Array, n: Array) -> Array:
            index = jnp.arange(len(x))
            for _ in range(40):
                index = index + (index - index)
            return x[index]

        monkeypatch.setattr(walk, "evaluate", evaluate)
        assert verdict_of(step, 3).kind == "independent"
        assert evaluated

    def test_shared_arguments_stay_free(self) -> None:
        (found,) = verdicts(lambda w, x: x + w.mean(0), [jnp.ones((3, 4)), jnp.ones((3, 4))], [None, Along(0)]).values()
        assert found.kind == "independent"


# Functions of one or two square matrices that give a square matrix: nothing tells the samples from the features.
ONE = (
    lambda a: a.T,
    lambda a: a - a.mean(1, keepdims=True),
    lambda a: a.sum(0)[:, None] + jnp.zeros_like(a),
    lambda a: a.reshape(2, 8).reshape(8, 2).reshape(4, 4),
    lambda a: a.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4),
    lambda a: a.reshape(4, 2, 2).transpose(0, 2, 1).reshape(4, 4),
    lambda a: jnp.tanh(a.reshape(16)).reshape(4, 4),
    lambda a: jnp.sort(a, 1),
    lambda a: jnp.cumsum(a, 1),
    lambda a: jnp.roll(a, 1, 1),
    lambda a: a[jnp.array([0, 1, 2, 3])],
    lambda a: a[:, jnp.array([3, 1, 0, 0])],
    lambda a: a[jnp.arange(4)[:, None], jnp.array([[1, 0, 3, 2]])],
    lambda a: a[jnp.arange(4), jnp.array([1, 0, 3, 2])][:, None] * jnp.ones((1, 4)),
    lambda a: jnp.zeros((4, 4)).at[jnp.arange(4), jnp.array([1, 0, 3, 2])].add(a[:, 0]),
    lambda a: a.at[:, 1].set(a[:, 0]),
    lambda a: lax.scan(lambda c, r: (c + r, c * r), jnp.ones(4), a.T)[1],
    lambda a: lax.map(lambda r: r * r.sum(), a),
    lambda a: jnp.concatenate([a, 2 * a])[4:],
    lambda a: jnp.concatenate([a[:, 2:], a[:, :2]], 1),
    lambda a: lax.cumsum(a.reshape(4, 2, 2), axis=2).reshape(4, 4),
)
TWO = (
    lambda a, b: a + b,
    lambda a, b: jnp.where(a > 0, a, b),
    lambda a, b: a @ b,
    lambda a, b: a @ b.T,
    lambda a, b: jnp.einsum("bi,bj->bij", a, b).sum(1),
    lambda a, b: jnp.einsum("bi,ij->bj", a, b),
    lambda a, b: jnp.take_along_axis(a, jnp.argsort(b, 1), 1),
    lambda a, b: a * b[:, :1],
    lambda a, b: lax.scan(lambda c, r: (c, c @ r), b, a)[1],
)


def random_program(rng: np.random.Generator) -> Step:
    """Some of them after each other, on what was computed so far and on a matrix of weights."""
    plan = [(int(rng.integers(len(ONE) + len(TWO))), *rng.integers(0, 3, 2).tolist()) for _ in range(4)]

    def step(x: Array, n: Array) -> Array:
        found = [jnp.arange(16.0).reshape(4, 4) / 16, x]
        for which, one, other in plan:
            a, b = found[-1 - one % len(found)], found[-1 - other % len(found)]
            found.append(ONE[which](a) if which < len(ONE) else TWO[which - len(ONE)](a, b))
        return found[-1]

    return step


class TestNoFalseProof:
    def test_of_random_programs(self, seed: int) -> None:
        rng, kinds = np.random.default_rng(seed), []
        for _ in range(60):
            step = random_program(rng)
            kinds.append(verdict_of(step, FEATURES).kind)
            if kinds[-1] == "independent":
                assert not any(row_moves_others(jax.jit(step), seed, FEATURES, row) for row in (0, 2))
        assert min(kinds.count("independent"), kinds.count("coupled")) > 10


class TestSourceLines:
    def test_of_a_function(self) -> None:
        def step(x: Array, n: Array) -> Array:
            centred = x - x.mean(0)
            return centred / 2

        line = inspect.getsourcelines(step)[1] + 1
        assert verdict_of(step, 3).where == f"test_audit.py:{line} (step)"

    def test_of_this_use_of_a_jitted_function_of_jax(self) -> None:
        jax.jit(lambda x: jnp.roll(x, 1, 0))(jnp.ones((3, FEATURES)))

        def step(x: Array, n: Array) -> Array:
            return jnp.roll(x, 1, 0)

        line = inspect.getsourcelines(step)[1] + 1
        assert verdict_of(step, 3).where == f"test_audit.py:{line} (step)"

    def test_within_a_function_that_the_user_jits(self) -> None:
        @jax.jit
        def inner(x: Array) -> Array:
            return x - x.mean(0)

        line = inspect.getsourcelines(inner)[1] + 2
        assert verdict_of(lambda x, n: inner(x), 3).where == f"test_audit.py:{line} (inner)"


class _Cell(Module):
    """A recurrent cell, and what a module does with its output."""

    def __init__(self, then: Callable[[Array], Array] = lambda h: h) -> None:
        super().__init__()
        self.cell, self.then = brainscale.nn.MinimalRNNCell(N_IN, N_REC), then

    def update(self, x: Array) -> Array:
        return self.then(self.cell(x))


class Centred(_Cell):
    """Its output is centred over the samples."""

    def update(self, x: Array) -> Array:
        h = self.cell(x)
        return h - h.mean(0)


class Remembering(_Cell):
    """A state that is kept once for the batch, summed over it, and read at the next step."""

    def init_state(self, *_: Any, **__: Any) -> None:
        self.memory = ShortTermState(jnp.zeros(N_IN))

    def update(self, x: Array) -> Array:
        before = self.memory.value
        self.memory.value = jnp.atleast_2d(0.5 * before + x).sum(0)
        return self.cell(x + before)


class Exchanging(_Cell):
    """Two states that are kept once, each of which becomes the other, by two operations."""

    def init_state(self, *_: Any, **__: Any) -> None:
        self.one, self.two = ShortTermState(jnp.zeros(N_IN)), ShortTermState(jnp.zeros(N_IN))

    def update(self, x: Array) -> Array:
        rows = jnp.atleast_2d(x)
        self.one.value, self.two.value = self.two.value + rows.sum(0), self.one.value + rows.max(0)
        return self.cell(x)


def looked_up(h: Array) -> Array:
    return h if h.ndim == 1 else h[jnp.int32(h[:, 0] > 0)]


def captured(net: Module, *examples: Any, environ: Any = SETTINGS) -> tuple[pb.Learner, Any]:
    return pb.capture(net, *(examples or (jnp.ones(N_IN),)), algorithm=pb.ES_D_RTRL(0.9), environ=environ)


def kinds(audit: pb.Audit) -> dict[str, str]:
    return {name: verdict.kind for name, verdict in audit.leaves.items()}


class TestRegistry:
    @pytest.mark.parametrize(("name", "strategy"), RUNS)
    def test_is_proved_independent(self, name: str, strategy: str, seed: int) -> None:
        found = pb.audit(bench(name, seed).batched(strategy), probe=False)
        assert found.is_independent, str(found)
        assert {verdict.how for verdict in found.leaves.values()} == {"proved"}
        assert found.strategy == f"pb.{'sharded' if strategy == 'nested' else strategy}"

    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    @pytest.mark.parametrize("rule", ["D_RTRL", "Hybrid"])
    @pytest.mark.parametrize("name", [*WEIGHTS, "conv_spikes"])
    def test_traces_are_proved_independent(self, name: str, rule: str, strategy: str, seed: int) -> None:
        found = pb.audit(bench(name, seed, ONLINE_RULES[rule]).batched(strategy), probe=False)
        assert any(leaf.startswith("trace.") for leaf in found.leaves)
        assert {verdict.how for verdict in found.leaves.values()} == {"proved"}
        assert found.is_independent, str(found)

    @pytest.mark.parametrize("name", ["tutorial", "delayed", "trees", "counting"])
    def test_every_leaf_of_a_step_is_named(self, name: str, seed: int) -> None:
        learner = bench(name, seed).learner
        groups = [group.name for group in learner.program.groups]
        names = set(pb.audit(learner, probe=False).leaves)
        assert {f"hidden[{path!r}]" for path in learner.program.states.hidden} <= names
        assert {f"jacobians.diagonals[{group!r}]" for group in groups} <= names
        for field in ("other", "shared"):
            assert all(
                any(n.startswith(f"{field}[{path!r}]") for n in names)
                for path in getattr(learner.program.states, field)
            )
        assert any(n.startswith("output") for n in names)

    def test_a_module_is_captured(self, seed: int) -> None:
        model = MODELS["LSTMCell"]
        with brainstate.environ.context(dt=1.0 * u.ms):
            found = pb.audit(model.build(seed), *model.inputs(seed))
        with_trace = pb.audit(bench("LSTMCell", seed).learner).leaves
        assert found.leaves == {name: verdict for name, verdict in with_trace.items() if not name.startswith("trace.")}
        assert len(found.leaves) < len(with_trace)

    def test_batch_normalisation_is_coupled(self, seed: int) -> None:
        model = MODELS["normalized"]
        found = pb.audit(model.build(seed), *model.inputs(seed), environ=model.settings)
        assert set(kinds(found).values()) == {"coupled"}
        lines, start = inspect.getsourcelines(modules.Normalized.update)
        (line,) = [start + i for i, text in enumerate(lines) if "self.norm(x)" in text]
        for verdict in found.leaves.values():
            assert verdict.primitive == "reduce_sum"
            layer, user = verdict.where.split(", called at ")
            assert re.fullmatch(r"brainstate/nn/_\w+\.py:\d+ \(_BatchNorm\.update\)", layer)
            assert user == f"modules.py:{line} (Normalized.update)"


class TestNumbers:
    @pytest.mark.parametrize(
        ("name", "rule", "strategy"),
        [("tutorial", "D_RTRL", "manual"), ("GRUCell", "ES_D_RTRL", "vmap"), ("delayed", "ES_D_RTRL", "manual")],
    )
    def test_nothing_that_moves_is_called_independent(self, name: str, rule: str, strategy: str, seed: int) -> None:
        """As it stands nothing moves; `python -m property_tests.faults --audit` asks this of faulty copies."""
        made = bench(name, seed, ONLINE_RULES[rule])
        try:
            batched = made.batched(strategy)
            moved, found = moved_leaves(batched, made.params), kinds(pb.audit(batched, probe=False))
        except (SampleCouplingError, AssertionError):  # refused, or stopped by a check of shapes: nothing is claimed
            return
        assert not {leaf for leaf in moved if found[leaf] == "independent"}


class TestReport:
    def test_coupled_leaves_come_first(self) -> None:
        net, place = Centred(), f"test_audit.py:{inspect.getsourcelines(Centred.update)[1] + 2} (Centred.update)"
        assert str(pb.audit(net, jnp.ones(N_IN), environ=SETTINGS)).splitlines()[:4] == [
            "pb.manual: 7 leaves, 1 coupled, 6 independent",
            f"  coupled      output                                         by reduce_sum at {place}",
            "  independent  hidden['cell.h']                               proved",
            "  independent  jacobians.xs['cell.W_u.weight_op']             proved",
        ]

    def test_says_what_to_do(self) -> None:
        coupled, undecided = (
            pb.audit(_Cell(then), jnp.ones(N_IN), probe=False) for then in (lambda h: h - h.mean(0), looked_up)
        )
        assert str(coupled).endswith("or accept it: pb.manual(..., allow_coupling=True).")
        assert str(undecided).endswith("What is undecided is tried with numbers by pb.audit(..., probe=True).")
        assert not coupled.is_independent
        assert not undecided.is_independent

    def test_cannot_be_changed(self, seed: int) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            pb.audit(bench("GRUCell", seed).learner).leaves = {}  # type: ignore[misc]


class TestProbe:
    @pytest.mark.parametrize(("then", "kind"), [(solved, "independent"), (looked_up, "coupled")])
    def test_decides_what_no_rule_can_follow(self, then: Callable[[Array], Array], kind: str) -> None:
        net = _Cell(then)
        assert kinds(pb.audit(net, jnp.ones(N_IN), probe=False))["output"] == "undecided"
        found = pb.audit(net, jnp.ones(N_IN)).leaves
        assert (found["output"].kind, found["output"].how) == (kind, "probed")
        assert found["hidden['cell.h']"] == Verdict("independent", "proved")
        assert found["output"].where.startswith("test_audit.py:")

    def test_of_a_learner(self) -> None:
        learner, params = captured(_Cell(looked_up))
        assert pb.audit(learner).leaves["output"].kind == "coupled"
        assert pb.audit(pb.manual(learner, 2), params=params).leaves["output"].kind == "coupled"
        assert pb.audit(pb.vmap(learner, 2)).is_independent

    def test_needs_what_the_samples_hold(self) -> None:
        """Zero weights silence the output that would tell; nothing is said to be proved."""
        learner, params = captured(_Cell(looked_up))
        silent = pb.audit(learner, params=jax.tree.map(jnp.zeros_like, params)).leaves["output"]
        assert silent.how == "probed"


class Calls:
    """Counts how often it is called."""

    number = 0

    def __call__(self) -> None:
        self.number += 1


class TestManual:
    def test_refuses_a_coupled_module(self) -> None:
        learner, _ = captured(Centred())
        place = f"test_audit.py:{inspect.getsourcelines(Centred.update)[1] + 2} (Centred.update)"
        text = f"pb.manual: output: got samples coupled by reduce_sum at {place}, expected samples that do not"
        with pytest.raises(SampleCouplingError, match=re.escape(text)):
            pb.manual(learner, SAMPLES)

    @pytest.mark.parametrize("samples", [1, 2, N_REC])
    def test_refuses_at_every_batch_size(self, samples: int, seed: int) -> None:
        with pytest.raises(SampleCouplingError, match=r"_BatchNorm\.update"):
            pb.manual(bench("normalized", seed).learner, samples)

    def test_does_not_refuse_what_is_undecided(self) -> None:
        assert pb.manual(captured(_Cell(looked_up))[0], SAMPLES).batch_size == SAMPLES

    def test_traces_a_module_once_with_a_batch_and_once_with_a_larger_one(self, seed: int) -> None:
        seen = Calls()
        learner, _ = captured(modules.Watched(modules.Counting(N_IN, N_REC), seen))
        before = seen.number
        pb.manual(learner, SAMPLES)
        assert seen.number == before + 2

    def test_is_built_in_the_precision_of_the_capture(self, seed: int) -> None:
        learner = bench("LSTMCell", seed).learner
        jax.config.update("jax_enable_x64", val=False)
        try:
            assert pb.audit(pb.manual(learner, SAMPLES)).is_independent
        finally:
            jax.config.update("jax_enable_x64", val=True)

    def test_allowed_coupling_is_the_module_s_own(self, seed: int) -> None:
        """Two steps equal the module's own with a batch, running statistics included, which every sample is given."""
        made = bench("normalized", seed)
        batched = pb.manual(made.learner, SAMPLES, allow_coupling=True)
        with brainstate.environ.context(**made.model.settings):
            net = made.model.build(seed)
            brainstate.nn.init_all_states(net, batch_size=SAMPLES)
            carry = batched.init()
            for (x,) in (made.model.inputs(seed + i, SAMPLES) for i in range(2)):
                carry, got = batched.step(made.params, carry, x)
                assert_close(got, net(x))
        for row in range(SAMPLES):
            assert_close(carry.other["norm.running_mean"][row], net.norm.running_mean.value)
        assert carry.other["norm.running_var"].shape == (SAMPLES, *net.norm.running_var.value.shape)
        assert jnp.ptp(carry.other["norm.running_mean"]) > 0

    def test_allowed_coupling_has_a_gradient(self, seed: int) -> None:
        made = bench("normalized", seed)
        request = Request("vmap", "mean")
        batched = pb.manual(made.learner, SAMPLES, allow_coupling=True)
        got = pb.sequence_grad(batched, made.model.loss)(made.params, None, *made.data(*request.lead))[0]
        assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(got["cell.phi.weight_op"]))

    def test_allowing_changes_nothing_else(self, seed: int) -> None:
        made = bench("delayed", seed)
        strict, lenient = made.batched("manual"), pb.manual(made.learner, SAMPLES, allow_coupling=True)
        inputs = made.data(SAMPLES)[0]
        assert_identical(
            lenient.step(made.params, lenient.init(), *inputs), strict.step(made.params, strict.init(), *inputs)
        )

    def test_a_state_that_is_kept_once_couples_what_reads_it(self) -> None:
        """Within one step, the output reads the state alone, which holds all samples of the step before."""
        found = pb.audit(captured(Remembering())[0])
        assert {found.leaves[name].primitive for name in ("output", "hidden['cell.h']", "other['memory']")} == {
            "reduce_sum"
        }
        assert kinds(found)["output"] == "coupled"
        assert kinds(pb.audit(captured(Exchanging())[0]))["other['two']"] == "coupled"

    def test_a_state_that_is_kept_once_is_given_to_every_sample(self) -> None:
        learner, params = captured(Remembering())
        batched = pb.manual(learner, SAMPLES, allow_coupling=True)
        carry, _ = batched.step(params, batched.init(), jnp.ones((SAMPLES, N_IN)))
        assert_identical(carry.other["memory"], jnp.full((SAMPLES, N_IN), float(SAMPLES)))


class TestArguments:
    def test_a_learner_with_examples(self, seed: int) -> None:
        with pytest.raises(StructureError, match=r"pb\.audit: got a learner and 1 example input, expected"):
            pb.audit(bench("GRUCell", seed).learner, jnp.ones(N_IN))

    def test_a_learner_with_settings(self, seed: int) -> None:
        with pytest.raises(StructureError, match=r"pb\.audit: got a learner and settings, expected a learner alone"):
            pb.audit(bench("GRUCell", seed).learner, environ={"fit": True})

    @pytest.mark.parametrize("size", [1, SAMPLES + 1, "many"])
    def test_another_size_for_a_batch(self, size: Any, seed: int) -> None:
        with pytest.raises(BatchSizeError, match=f"got batch size {size!r} for pb.vmap of 3 samples, expected 3"):
            pb.audit(bench("GRUCell", seed).batched("vmap"), batch_size=size)

    @pytest.mark.parametrize("size", [1, 0])
    def test_a_batch_of_fewer_than_two(self, size: int, seed: int) -> None:
        with pytest.raises(BatchSizeError, match="got batch size"):
            pb.audit(bench("GRUCell", seed).learner, batch_size=size)

    def test_a_learner_of_one_sample_in_a_batch(self, seed: int) -> None:
        with pytest.raises(BatchSizeError, match="got batch size 1, expected at least 2"):
            pb.audit(pb.vmap(bench("GRUCell", seed).learner, 1))

    @pytest.mark.parametrize("size", [2, N_OUT, N_REC])
    def test_every_batch_size_tells_the_same(self, size: int, seed: int) -> None:
        learner = bench("readouts", seed).learner
        assert pb.audit(learner, batch_size=size) == pb.audit(learner)
