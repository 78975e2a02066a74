"""Aligned axes of a weight operation, against the sparsity of its true Jacobian."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pure_batching._reader.alignment import aligned_axes, is_product
from pure_batching._reader.flat import flat
from pure_batching._relation import Axes, Scattered

Array = jax.Array
Shape = tuple[int, ...]

# How many random points the sparsity is seen at, and how many random operations are put together.
POINTS, COMPOSITIONS = 3, 40

# A connection in three quarters of the places.
MASK = np.arange(20).reshape(5, 4) % 4 != 0

# The rows and columns of the eight stored numbers of a sparse matrix of five rows and four columns.
ROWS, COLUMNS = np.asarray([0, 0, 1, 2, 2, 3, 4, 4]), np.asarray([3, 1, 2, 0, 3, 3, 1, 2])


@jax.custom_jvp
def with_own_jvp(w: Array) -> Array:
    return jnp.tanh(w)


@with_own_jvp.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return with_own_jvp(*primals), 2.0 * tangents[0]


@jax.custom_vjp
def with_own_vjp(w: Array) -> Array:
    return jnp.tanh(w)


with_own_vjp.defvjp(lambda w: (jnp.tanh(w), ()), lambda _, ct: (2.0 * ct,))


def convolved(w: Array, x: Array) -> Array:
    return jax.lax.conv_general_dilated(x[None], w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0]


def channels_first(w: Array, x: Array) -> Array:
    """An image, in two groups of channels."""
    numbers = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(x[None], w, (2, 1), "SAME", dimension_numbers=numbers, feature_group_count=2)[0]


def sparse(w: Array, x: Array) -> Array:
    """A product with a matrix whose stored numbers are the weight."""
    return jnp.zeros(4).at[jnp.asarray(COLUMNS)].add(x[jnp.asarray(ROWS)] * w)


def sparse_rows(w: Array, x: Array) -> Array:
    """A weight with a row for each stored place."""
    return jnp.zeros((4, 3)).at[jnp.asarray(COLUMNS)].add(x[jnp.asarray(ROWS), None] * w)


def placed_by_input(w: Array, x: Array) -> Array:
    """The input, and no table, says where a weight goes."""
    return jnp.zeros(4).at[jnp.abs(x).astype(int) % 4].add(w)


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation.

    Attributes:
      name: what it is called by.
      fun: `(w, *others) -> y`.
      w: the shape of the weight.
      others: the shapes of everything else.
      axes: what must be found, None for an axis of size one or along which a weight element reaches several outputs.
    """

    name: str
    fun: Callable[..., Array]
    w: Shape
    others: tuple[Shape, ...]
    axes: Axes


def product(name: str, of_weight: Callable[[Array], Array], *, aligned: bool = True) -> Case:
    """`x @ f(w)`."""
    return Case(name, lambda w, x: x @ of_weight(w), (5, 4), ((5,),), (1,) if aligned else (None,))


CASES = (
    product("matrix", lambda w: w),
    Case("transposed matrix", lambda w, x: x @ w.T, (4, 5), ((5,),), (0,)),
    Case("matrix from the left", lambda w, x: w @ x, (4, 5), ((5,),), (0,)),
    Case("matrix onto a matrix", lambda w, x: x @ w, (5, 4), ((3, 5),), (None, 1)),
    Case("rows and columns", lambda w, x: jnp.einsum("hwi,io->hwo", x, w), (5, 4), ((2, 3, 5),), (None, None, 1)),
    Case("rows in one", lambda w, x: (x.reshape(6, 5) @ w).reshape(2, 3, 4), (5, 4), ((2, 3, 5),), (None, None, 1)),
    Case("heads", lambda w, x: (x @ w.reshape(5, 6)).reshape(2, 3, 3), (5, 2, 3), ((3, 5),), (None, None, None)),
    Case("a matrix for each row", lambda w, x: jnp.einsum("bi,bij->bj", x, w), (3, 5, 4), ((3, 5),), (0, 2)),
    Case("turned rows", lambda w, x: jnp.einsum("bi,bij->jb", x, w), (3, 5, 4), ((3, 5),), (2, 0)),
    Case("bias", lambda w, z: jnp.tanh(z) + w, (4,), ((4,),), (0,)),
    Case("bias of two axes", lambda w, z: z - w, (3, 4), ((3, 4),), (0, 1)),
    Case("bias in every row", lambda w, z: z + w, (4,), ((3, 4),), (None, 0)),
    Case("bias in every column", lambda w, z: z + w[:, None], (3,), ((3, 4),), (0, None)),
    Case("weight with an axis of size one", lambda w, z: z * w, (1, 4), ((1, 4),), (0, 1)),
    Case("weight stretched along an axis of size one", lambda w, z: z * w, (1, 4), ((3, 4),), (None, 1)),
    Case("output with an axis of size one", lambda w, x: x @ w, (5, 4), ((1, 5),), (None, 1)),
    Case("scalar", lambda w, x: w * x, (), ((4,),), (None,)),
    Case("scalar onto a scalar", lambda w, x: w * x, (), ((),), ()),
    Case("everything onto a scalar", lambda w, x: x @ w, (5,), ((5,),), ()),
    Case("sum of products", lambda w, x: (w * x[:, None]).sum(0), (5, 4), ((5,),), (1,)),
    Case("squeezed", lambda w, x: x @ w.squeeze(1), (5, 1, 4), ((5,),), (2,)),
    Case("reshaped by an axis of size one", lambda w, x: x @ w.reshape(5, 4), (5, 1, 4, 1), ((5,),), (2,)),
    Case("reshaped", lambda w, x: x @ w.reshape(5, 4), (4, 5), ((5,),), (None,)),
    Case("reshaped in front", lambda w, x: x @ w.reshape(6, 4), (2, 3, 4), ((6,),), (2,)),
    Case("reshaped behind", lambda w, x: (w.reshape(4, 6) * x).sum(1), (4, 2, 3), ((6,),), (0,)),
    product("mask", lambda w: w * MASK),
    product("mask by choice", lambda w: jnp.where(MASK, w, 0.0)),
    product("element by element", lambda w: jnp.abs(jnp.exp(-w)) / (1.0 + w**2)),
    product("twice the same", lambda w: w * jnp.sin(w)),
    product("clipped", lambda w: jnp.clip(w, -0.5, 0.5)),
    product("other precision", lambda w: w.astype(jnp.float32).astype(jnp.float64)),
    product("rectified", jax.nn.relu),
    product("soft", jax.nn.softplus),
    product("nested jit", jax.jit(lambda w: jax.jit(jnp.tanh)(w) * 2.0)),
    product("own jvp", with_own_jvp),
    product("own vjp", with_own_vjp),
    product("checkpoint", jax.checkpoint(jnp.sin)),
    product("columns of length one", lambda w: w / jnp.sqrt((w**2).sum(0, keepdims=True))),
    product("rows of length one", lambda w: w / jnp.sqrt((w**2).sum(1, keepdims=True)), aligned=False),
    product("length one", lambda w: w / jnp.sqrt((w**2).sum()), aligned=False),
    product("softmax of rows", lambda w: jax.nn.softmax(w, axis=1), aligned=False),
    product("stacked and summed up", lambda w: jnp.stack([w, w**2], 1).sum(1)),
    product("turned round", lambda w: jnp.concatenate([w[:, 2:], w[:, :2]], axis=1) + w, aligned=False),
    product("reversed", lambda w: w[:, ::-1] + w, aligned=False),
    product("summed up", lambda w: jnp.cumsum(w, axis=1), aligned=False),
    Case("symmetric", lambda w, x: x @ (w + w.T), (4, 4), ((4,),), (None,)),
    Case("stacked with what is turned", lambda w, x: x @ jnp.stack([w, w.T]).sum(0), (4, 4), ((4,),), (None,)),
    Case("used twice", lambda w, x: x @ w @ w, (4, 4), ((4,),), (None,)),
    Case("convolution", convolved, (3, 2, 4), ((6, 2),), (None, 2)),
    Case("convolution in groups", channels_first, (4, 1, 3, 3), ((2, 6, 5),), (0, None, None)),
    Case("convolution with itself", lambda w, x: convolved(w, x @ w[0]), (3, 2, 2), ((6, 2),), (None, None)),
    Case("stored numbers", sparse, (8,), ((5,),), (Scattered(0, COLUMNS),)),
    Case("stored rows", sparse_rows, (8, 3), ((5,),), (Scattered(0, COLUMNS), 1)),
    Case("stored numbers, twice the same", lambda w, x: 2.0 * sparse(w, x), (8,), ((5,),), (Scattered(0, COLUMNS),)),
    Case("stored numbers, in two sums", lambda w, x: sparse(w, x) + sparse(w**2, x), (8,), ((5,),), (None,)),
    Case("stored numbers of stored numbers", lambda w, x: sparse(sparse(w, x)[COLUMNS], x), (8,), ((5,),), (None,)),
    Case("placed by the input", placed_by_input, (5,), ((5,),), (None,)),
    Case("LoRA's A", lambda w, x, b: x @ b @ w, (2, 4), ((5,), (5, 2)), (1,)),
    Case("LoRA's B", lambda w, x, a: x @ w @ a, (5, 2), ((5,), (2, 4)), (None,)),
)

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def found_axes(fun: Callable[..., Array], *arrays: Array) -> Axes:
    """What is found for the first argument."""
    traced = jax.make_jaxpr(fun)(*arrays)
    return aligned_axes(traced, traced.jaxpr.invars[0])


def readable(axes: Axes) -> list[Any]:
    """What can be compared."""
    return [(axis.axis, axis.places.tolist()) if isinstance(axis, Scattered) else axis for axis in axes]


def reached(fun: Callable[..., Array], w: Array, *others: Array) -> np.ndarray:
    """Which output element each weight element moves, `[*y.shape, *w.shape]`."""
    return np.asarray(jax.jacobian(fun)(w, *others) != 0)


def claimed(axes: Axes, y: Shape, w: Shape) -> np.ndarray:
    """Which output element each weight element may move, if an axis of `y` follows an axis of `w`."""
    index = np.indices((*y, *w))
    pairs = [index[i] == reached_by(axis, index[len(y) :]) for i, axis in enumerate(axes) if axis is not None]
    return functools.reduce(np.logical_and, pairs, np.ones((*y, *w), bool))


def reached_by(axis: int | Scattered, index: np.ndarray) -> np.ndarray:
    return axis.places[index[axis.axis]] if isinstance(axis, Scattered) else index[axis]


def drawn(rng: np.random.Generator, *shapes: Shape) -> list[Array]:
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def assert_sound(fun: Callable[..., Array], axes: Axes, arrays: list[Array]) -> None:
    """Each weight element moves the output elements that are claimed for it, and no other."""
    moved = reached(fun, *arrays)
    y, w = moved.shape[: moved.ndim - arrays[0].ndim], arrays[0].shape
    assert len(axes) == len(y)
    assert moved.any()
    assert not (moved & ~claimed(axes, y, w)).any()


class TestTable:
    @every_case
    def test_is_found(self, case: Case, seed: int) -> None:
        arrays = drawn(np.random.default_rng(seed), case.w, *case.others)
        assert readable(found_axes(case.fun, *arrays)) == readable(case.axes)

    def test_of_what_is_not_read(self) -> None:
        assert found_axes(lambda w, x: jnp.zeros(4) * x, jnp.ones((5, 4)), jnp.ones(4)) == (None,)

    @every_case
    def test_is_sound(self, case: Case, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(POINTS):
            assert_sound(case.fun, case.axes, drawn(rng, case.w, *case.others))

    @pytest.mark.parametrize(
        "name",
        [
            "bias in every row",
            "rows of length one",
            "softmax of rows",
            "reversed",
            "symmetric",
            "convolution",
            "LoRA's B",
        ],
    )
    def test_refuses_what_spreads(self, name: str, seed: int) -> None:
        (case,) = [case for case in CASES if case.name == name]
        moved = reached(case.fun, *drawn(np.random.default_rng(seed), case.w, *case.others))
        assert moved.sum(tuple(range(moved.ndim - len(case.w)))).max() > 1


# What a random operation is made of: squares onto squares, with a constant and the value before at hand.
STEPS: tuple[Callable[[Array, Array, Array], Array], ...] = (
    lambda w, _c, _z: jnp.tanh(w),
    lambda w, c, _z: w * c,
    lambda w, c, _z: c - w,
    lambda w, c, _z: c @ w,
    lambda w, c, _z: w @ c,
    lambda w, _c, _z: w.T,
    lambda w, c, _z: w.sum(0)[None, :] * c,
    lambda w, c, _z: w.sum(1)[:, None] * c,
    lambda w, _c, z: w + z,
    lambda w, _c, z: w * jax.jit(jnp.cos)(z),
    lambda w, c, _z: jnp.where(c > 0, w, 0.0),
    lambda w, c, _z: jnp.einsum("ij,ij->i", c, w)[:, None] + c,
    lambda w, c, _z: jnp.einsum("ij,ik->jk", c, w),
    lambda w, c, _z: w.reshape(1, 4, 4, 1).squeeze((0, 3)) / (1.0 + c**2),
    lambda w, c, _z: jnp.broadcast_to(w[:1], c.shape) + c,
    lambda w, _c, _z: w.reshape(2, 8).reshape(8, 2).T.reshape(4, 4),
)
LAST: tuple[Callable[[Array, Array], Array], ...] = (
    lambda w, c: c[0] @ w,
    lambda w, c: w @ c[0],
    lambda w, c: w + c,
    lambda w, _c: w.sum(1),
    lambda w, c: (w * c).sum(0),
)


def composed(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    """A few steps one after the other, chosen at random."""
    steps = [STEPS[i] for i in rng.integers(len(STEPS), size=rng.integers(1, 5))]
    last = LAST[rng.integers(len(LAST))]

    def fun(w: Array, c: Array) -> Array:
        values = [w, w]
        for step in steps:
            values.append(step(values[-1], c, values[-2]))
        return last(values[-1], c)

    return fun


class TestCompositions:
    def test_are_sound(self, seed: int) -> None:
        """Nothing is claimed that the Jacobian does not bear out, however operations are put together."""
        aligned = 0
        for number in range(COMPOSITIONS):
            rng = np.random.default_rng((seed, number))
            fun = composed(rng)
            arrays = drawn(rng, (4, 4), (4, 4))
            axes = found_axes(fun, *arrays)
            assert_sound(fun, axes, arrays)
            aligned += axes != (None,) * len(axes)
        assert 0 < aligned < COMPOSITIONS


# One product of a vector and a square matrix, plus terms without the matrix; and what only looks like one.
PRODUCTS: dict[str, Callable[[Array, Array], Array]] = {
    "x w": lambda w, x: x @ w,
    "w x": lambda w, x: w @ x,
    "with terms": lambda w, x: jnp.tanh(x) + (x @ w + 1.0),
}
NO_PRODUCTS: dict[str, Callable[[Array, Array], Array]] = {
    "twice in one sum": lambda w, x: (y := x @ w) + y,
    "again after a number": lambda w, x: ((y := x @ w) + 1.0) + y,
    "again after the input": lambda w, x: ((y := x @ w) + x[:1]) + y,
    "twice with numbers": lambda w, x: ((y := x @ w) + 1.0) + (y + 2.0),
    "again in part": lambda w, x: ((y := x @ w) + 1.0) + y[:1],
    "again in a function": lambda w, x: ((y := x @ w) + 1.0) + jnp.tanh(y),
    "scaled": lambda w, x: 2.0 * (x @ w),
    "two products": lambda w, x: x @ w + jnp.cos(x) @ w,
}


def recognised(form: Callable[[Array, Array], Array]) -> bool:
    x, w = jnp.ones(4), jnp.ones((4, 4))
    jaxpr = flat(jax.make_jaxpr(form)(w, x)).jaxpr
    return is_product(jaxpr, jaxpr.invars[1], jaxpr.invars[0])


def is_outer(form: Callable[[Array, Array], Array], seed: int) -> bool:
    """Whether the derivative by the matrix is the outer product of the input and the cotangent."""
    w, x, dy = (jnp.asarray(np.random.default_rng(seed).standard_normal(s)) for s in ((4, 4), (4,), (4,)))
    (got,) = jax.vjp(lambda w: form(w, x), w)[1](dy)
    assert jnp.abs(got).max() > 0
    return any(np.allclose(got, want) for want in (jnp.outer(x, dy), jnp.outer(dy, x)))


class TestProducts:
    @pytest.mark.parametrize("name", PRODUCTS)
    def test_are_recognised(self, name: str, seed: int) -> None:
        assert recognised(PRODUCTS[name])
        assert is_outer(PRODUCTS[name], seed)

    @pytest.mark.parametrize("name", NO_PRODUCTS)
    def test_nothing_else_is(self, name: str, seed: int) -> None:
        assert not recognised(NO_PRODUCTS[name])
        assert not is_outer(NO_PRODUCTS[name], seed)
