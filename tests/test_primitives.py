"""The table of JAX's primitives, against the primitives that the installed JAX has."""

import functools
import inspect
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.special
import numpy as np
import pytest
from jax.extend.core import Primitive

from pure_batching._independence.rules import RULES
from pure_batching._independence.walk import INSIDE
from pure_batching._reader.alignment import aligned_axes
from pure_batching._reader.jaxprs import Jaxpr, Literal, closed, evaluate, inner
from pure_batching._reader.places import moved_numbers
from pure_batching._reader.primitives import CALLS, ELEMENT_WISE, LOOPS, MOVING, POSITION_WISE, called, moved_operands

# Some version of JAX from 0.9.2 to 0.12 lacks these.
NOT_IN_EVERY_JAX = {"log2", "mulhi", "one_minus_square", "polynomial", "stack", "tile", "unstack"}

# Other libraries bring these.
OF_OTHERS = {"exprel": "saiunit", "heaviside_surrogate_gradient": "braintools"}

SIZE = 3

# So many equations of a primitive are looked at.
FEW = 4


def floats(rng: np.random.Generator) -> jax.Array:
    """Within the domain of every function."""
    return jnp.asarray(rng.uniform(0.1, 0.9, SIZE))


def integers(rng: np.random.Generator) -> jax.Array:
    """Indices among them."""
    return jnp.asarray(rng.integers(0, SIZE, SIZE))


def complex_numbers(rng: np.random.Generator) -> jax.Array:
    """For functions of one argument."""
    return floats(rng) + 0.5j


DRAWS = (floats, integers)


def functions() -> dict[str, Callable[..., Any]]:
    """The public functions of JAX that may be element-wise."""
    modules = (jax.lax, jnp, jax.scipy.special)
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and not inspect.isclass(value)
    }


def opened(traced: Any) -> Iterator[Any]:
    """The equations of a jaxpr, those of its calls among them."""
    for eqn in inner(traced)[0].eqns:
        body = called(eqn)
        yield from [eqn] if body is None else opened(body)


@functools.cache
def equations_found() -> dict[str, list[Any]]:
    """The equations that JAX's functions of one, two or three arrays are made of, by the name of the primitive."""
    found: dict[str, list[Any]] = {}
    rng = np.random.default_rng(0)
    low = [function for name, function in functions().items() if not name.startswith("jax.numpy.")]
    for function, (count, draw) in itertools.product(low, [*itertools.product((1, 2, 3), DRAWS), (1, complex_numbers)]):
        for eqn in traced_equations(function, [draw(rng) for _ in range(count)]):
            found.setdefault(eqn.primitive.name, []).append(eqn)
    return found


def traced_equations(function: Callable[..., Any], arrays: list[jax.Array]) -> list[Any]:
    """The equations of a function, none where it takes other arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return list(opened(jax.make_jaxpr(function)(*arrays)))
        except Exception:  # noqa: BLE001 - most functions take other arguments
            return []


def is_element_wise(eqn: Any, rng: np.random.Generator) -> bool:
    """Whether a result has the operands' shape, and a changed element moves no other element of the result."""
    shapes = {getattr(var.aval, "shape", None) for var in (*eqn.invars, *eqn.outvars)}
    if shapes - {(SIZE,), ()} or any(var.aval.shape != (SIZE,) for var in eqn.outvars):
        return False
    operands = [var for var in eqn.invars if not isinstance(var, Literal)]
    if any(jnp.issubdtype(var.aval.dtype, jax.dtypes.extended) for var in (*operands, *eqn.outvars)):
        return False
    part = closed(_alone(eqn, operands))
    return bool(operands and eqn.outvars) and not any(_others_move(part, operands, rng) for _ in range(4))


def _alone(eqn: Any, operands: list[Any]) -> Any:
    return Jaxpr((), list(dict.fromkeys(operands)), list(eqn.outvars), [eqn])


def _others_move(part: Any, operands: list[Any], rng: np.random.Generator) -> bool:
    names = list(dict.fromkeys(operands))
    base, other = ([_drawn(var, rng) for var in names] for _ in range(2))
    before = evaluate(part, *base)
    for i, var in enumerate(names):
        if var.aval.shape == (SIZE,):
            changed = [x.at[1].set(y[1]) if i == k else x for k, (x, y) in enumerate(zip(base, other, strict=True))]
            after = evaluate(part, *changed)
            pairs = zip(before, after, strict=True)
            if not all(np.allclose(np.delete(a, 1), np.delete(b, 1), equal_nan=True) for a, b in pairs):
                return True
    return False


def _drawn(var: Any, rng: np.random.Generator) -> jax.Array:
    if jnp.issubdtype(var.aval.dtype, jnp.inexact):
        return jnp.asarray(rng.uniform(0.1, 0.9, var.aval.shape), var.aval.dtype)
    one, size = rng.integers(0, SIZE, var.aval.shape), var.aval.size
    places = one if size == 1 else rng.permutation(size).reshape(var.aval.shape)  # several are distinct
    return jnp.asarray(places).astype(var.aval.dtype)


def primitives() -> set[str]:
    """The names of JAX's primitives, as far as its loaded modules hold them."""
    modules = [module for name, module in sys.modules.items() if name.startswith("jax")]
    values = [value for module in modules for value in list(vars(module).values())]
    return {value.name for value in values if isinstance(value, Primitive)}


class TestElementWise:
    """The table names what JAX has."""

    def test_every_element_wise_primitive_is_in_the_table(self) -> None:
        rng = np.random.default_rng(0)
        unknown = {name: eqns for name, eqns in equations_found().items() if name not in ELEMENT_WISE | POSITION_WISE}
        missing = [name for name, eqns in unknown.items() if all(is_element_wise(eqn, rng) for eqn in eqns)]
        assert missing == []

    def test_nothing_else_is_in_the_table(self) -> None:
        """Those that have a case here; an operand may have size one, which this test leaves out."""
        rng, tried = np.random.default_rng(0), 0
        for name in sorted(ELEMENT_WISE & set(equations_found())):
            eqns = [eqn for eqn in equations_found()[name] if {v.aval.shape for v in eqn.invars} <= {(SIZE,), ()}]
            eqns = [eqn for eqn in eqns if all(v.aval.shape == (SIZE,) for v in eqn.outvars)][:1]
            assert all(is_element_wise(eqn, rng) for eqn in eqns), name
            tried += bool(eqns)
        assert tried > len(ELEMENT_WISE) / 2

    def test_jax_has_every_name(self) -> None:
        assert ELEMENT_WISE - set(OF_OTHERS) - primitives() <= NOT_IN_EVERY_JAX

    def test_each_kind_is_apart(self) -> None:
        kinds = (ELEMENT_WISE, POSITION_WISE, CALLS, LOOPS)
        assert len(frozenset().union(*kinds)) == sum(len(kind) for kind in kinds)

    def test_the_walk_has_a_rule_for_each(self) -> None:
        assert set(RULES) >= ELEMENT_WISE | POSITION_WISE
        assert set(INSIDE) == CALLS | LOOPS


@functools.cache
def equations_of_matrices() -> dict[str, list[Any]]:
    """Those of `equations_found`, and those that functions of `jax.numpy` of a matrix or two are made of."""
    found = {name: eqns[:FEW] for name, eqns in equations_found().items()}
    calls = (
        lambda function, a: function(a),
        lambda function, a: function([a, a]),
        lambda function, a: function(a, (2, 1)),
    )
    of_numpy = [function for name, function in functions().items() if name.startswith("jax.numpy.")]
    for function, call in itertools.product(of_numpy, calls):
        for eqn in traced_equations(functools.partial(call, function), [jnp.ones((SIZE, SIZE))]):
            if len(found.setdefault(eqn.primitive.name, [])) < 4 * FEW:
                found[eqn.primitive.name].append(eqn)
    return found


def is_of_floats(eqn: Any) -> bool:
    """Whether an equation makes floats of floats, and of integers that may say where."""
    operands = [var.aval for var in eqn.invars if not isinstance(var, Literal)]
    kinds = [getattr(getattr(aval, "dtype", None), "kind", "") for aval in (*operands, *(v.aval for v in eqn.outvars))]
    has_both = "f" in kinds[: len(operands)] and set(kinds[len(operands) :]) == {"f"}
    return has_both and set(kinds) <= {"f", "i"} and not eqn.effects


def moves(eqn: Any, rng: np.random.Generator) -> bool:
    """Whether each element of the results is the same element of the operands, whatever these hold."""
    operands = [var for var in eqn.invars if not isinstance(var, Literal)]
    part, names = closed(_alone(eqn, operands)), list(dict.fromkeys(operands))
    first, second = ([_drawn(var, rng) for var in names] for _ in range(2))
    other = [b if jnp.issubdtype(b.dtype, jnp.inexact) else a for a, b in zip(first, second, strict=True)]
    one, same = (_origins(given, evaluate(part, *given)) for given in (first, other))
    return one.size > 0 and bool((one >= 0).all()) and np.array_equal(one, same)


def _origins(given: list[jax.Array], results: list[jax.Array]) -> np.ndarray:
    """Where each element of the results stands among those of the operands; -1 where it does not."""
    elements, whole = (np.concatenate([np.asarray(x).ravel() for x in arrays]) for arrays in (given, results))
    matches = whole[:, None] == elements
    return np.where(matches.any(1), matches.argmax(1), -1)


class TestMoving:
    """The table names what JAX has, and `moved_numbers` says where each element is moved to."""

    def test_every_moving_primitive_is_in_the_table(self) -> None:
        rng, others = np.random.default_rng(0), ELEMENT_WISE | LOOPS | CALLS
        found = {name: [*filter(is_of_floats, eqns)] for name, eqns in equations_of_matrices().items()}
        tried = {name: eqns for name, eqns in found.items() if eqns and name not in others}
        moving = {name for name, eqns in tried.items() if all(moves(eqn, rng) for eqn in eqns)}
        assert moving <= MOVING
        assert moving >= {"concatenate", "gather", "reshape", "slice", "tile", "transpose"}

    def test_jax_has_every_name(self) -> None:
        assert MOVING - primitives() <= NOT_IN_EVERY_JAX

    def test_elements_are_where_they_are_said_to_be(self) -> None:
        rng, tried = np.random.default_rng(0), set()
        found = [eqn for primitive in MOVING for eqn in equations_of_matrices().get(primitive, ())]
        for eqn in found:
            name, operands = eqn.primitive.name, [var for var in eqn.invars if not isinstance(var, Literal)]
            names = list(dict.fromkeys(operands))
            values = dict(zip(names, [_drawn(var, rng) for var in names], strict=True))
            results = evaluate(closed(_alone(eqn, operands)), *values.values())
            for k in [k for k in moved_operands(eqn) if not isinstance(eqn.invars[k], Literal)]:
                given, held = np.asarray(values[eqn.invars[k]]).ravel(), list(values.items())
                known = {var: value for var, value in held if var is not eqn.invars[k]}
                said = moved_numbers(eqn, k, np.arange(len(given)), lambda atom, known=known: _value(atom, known))
                if said is None:  # places were drawn of which two are the same
                    assert name == "scatter"
                    continue
                for result, numbers in zip(results, said, strict=True):
                    kept = numbers >= 0
                    assert np.array_equal(np.asarray(result)[kept], given[numbers[kept]]), name
                    tried |= {name} if kept.any() else set()
        assert tried == {eqn.primitive.name for eqn in found if moved_operands(eqn)}


def _value(atom: Any, known: dict[Any, Any]) -> Any:
    return np.asarray(atom.val) if isinstance(atom, Literal) else known.get(atom)


UNARY = sorted(
    name
    for name in functions()
    if name.startswith("jax.numpy.")
    and [e.primitive.name in ELEMENT_WISE for e in traced_equations(functions()[name], [jnp.full(SIZE, 0.5)])] == [True]
    and jax.eval_shape(functions()[name], jnp.full(SIZE, 0.5)).dtype == jnp.zeros(0).dtype
)


class TestAligned:
    """A product with an element-wise function of its matrix needs one number a weight element and hidden state."""

    @pytest.mark.parametrize("name", UNARY)
    def test_a_function_of_the_matrix(self, name: str) -> None:
        function = functions()[name]
        traced = jax.make_jaxpr(lambda x, w: x @ function(w))(jnp.ones(5), jnp.full((5, 4), 0.5))
        equations, _ = inner(traced)
        assert aligned_axes(equations, equations.invars[1]) == (1,)

    def test_names_that_were_missing_once(self) -> None:
        assert {f"jax.numpy.{name}" for name in ("arctan", "arcsin", "arccos", "arcsinh", "arctanh", "ceil")} <= set(
            UNARY
        )

    def test_a_barrier_keeps_its_operands_apart(self) -> None:
        def fun(x: jax.Array, w: jax.Array) -> jax.Array:
            _, same = jax.lax.optimization_barrier((x, w))
            return x @ same

        equations, _ = inner(jax.make_jaxpr(fun)(jnp.ones(5), jnp.ones((5, 4))))
        assert aligned_axes(equations, equations.invars[1]) == (1,)


class TestCalled:
    """A call gives its jaxpr, anything else None."""

    @pytest.mark.parametrize(
        "wrap",
        [jax.jit, jax.checkpoint, jax.custom_jvp, jax.custom_vjp, jax.custom_batching.custom_vmap, jax.lax.composite],
        ids=lambda wrap: wrap.__name__,
    )
    def test_a_call(self, wrap: Any) -> None:
        def double(x: jax.Array) -> jax.Array:
            return 2 * x

        function = wrap(double, name="own.double") if wrap is jax.lax.composite else wrap(double)
        if wrap is jax.custom_jvp:
            function.defjvp(lambda x, t: (double(*x), double(*t)))
        if wrap is jax.custom_batching.custom_vmap:
            function.def_vmap(lambda _, mapped, x: (double(x), mapped[0]))
        if wrap is jax.custom_vjp:
            function.defvjp(lambda x: (double(x), ()), lambda _, ct: (double(ct),))
        (eqn,) = inner(jax.make_jaxpr(function)(1.5))[0].eqns
        body = called(eqn)
        assert body is not None
        assert evaluate(body, 1.5) == [3.0]

    def test_a_loop_is_no_call(self) -> None:
        traced = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda _, a: a * x, x))(1.5)
        names = {eqn.primitive.name: called(eqn) for eqn in inner(traced)[0].eqns}
        assert names.keys() & LOOPS
        assert set(names.values()) == {None}
