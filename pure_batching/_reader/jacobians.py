"""The derivatives of one step, from the parts that were cut out of it and the values that it left."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from .._program import Jacobians
from .._relation import Group, Link
from .loops import holds
from .pieces import Arrays, Slice

_WITHOUT_JVP = frozenset(["custom_vjp_call", "custom_vjp_call_jaxpr"])


class Parts(NamedTuple):
    """The parts of a step whose derivatives traces are made of.

    Attributes:
      xs: the position of each weight's input in the step's temporaries, by the name of the first relation that reads
        it, and the specification of its trace.
      to_hidden: from a weight's output to the new states of a group.
      transitions: from the old states of a group to its new ones.
      within: from the perturbations of a group to its new states, for groups whose states feed each other.
    """

    xs: dict[str, tuple[int, jax.ShapeDtypeStruct]]
    to_hidden: tuple[tuple[Link, Slice], ...]
    transitions: tuple[tuple[Group, Slice], ...]
    within: tuple[tuple[Group, Slice], ...]


def jacobians(parts: Parts, temporaries: Arrays) -> Jacobians:
    """The derivatives of a step at the values of its temporaries."""
    return Jacobians(
        xs={name: temporaries[i].astype(spec.dtype) for name, (i, spec) in parts.xs.items()},
        dfs={link.df: _df(link, piece, temporaries) for link, piece in parts.to_hidden},
        diagonals={group.name: _diagonal(group, piece, temporaries) for group, piece in parts.transitions},
        within={group.name: _diagonal(group, piece, temporaries) for group, piece in parts.within},
    )


def specs_of(parts: Parts) -> Jacobians:
    """The specifications of what `jacobians` returns."""
    return Jacobians(
        xs={name: cast("Any", x) for name, (_, x) in parts.xs.items()},
        dfs={link.df: _spec(link.shape, link.group) for link, _ in parts.to_hidden},
        diagonals={group.name: _spec_of_diagonal(group) for group, _ in parts.transitions},
        within={group.name: _spec_of_diagonal(group) for group, _ in parts.within},
    )


def _spec(shape: tuple[int, ...], group: Group) -> Any:
    return jax.ShapeDtypeStruct(shape, group.dtype)


def _spec_of_diagonal(group: Group) -> Any:
    return _spec((*group.shape, group.num_states), group)


def _df(link: Link, piece: Slice, temporaries: Arrays) -> jax.Array:
    """`dh/dy`: times a vector of ones, which is exact where `y -> h` is element-wise, or element by element of `y`."""
    fun, (y,) = piece.at(temporaries)

    def states(value: jax.Array) -> jax.Array:
        return link.group.join(fun(value))

    if link.places is not None:
        return _of_each_element(states, y)
    forward = _forward_by_transposition if holds(piece.jaxpr.jaxpr, _WITHOUT_JVP) else _forward
    return forward(states, y)


def _forward(fun: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
    return jax.jvp(fun, (y,), (jnp.ones_like(y),))[1]


def _forward_by_transposition(fun: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
    """The same where JAX has a reverse derivative alone, as of a `custom_vjp`: the transpose of the pullback."""
    h, pullback = jax.vjp(fun, y)
    (forward,) = jax.linear_transpose(lambda cotangent: pullback(cotangent)[0], h)(jnp.ones_like(y))
    return forward


def _of_each_element(states: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
    """`dh/dy` of the one hidden element that each element of `y` reaches, `[..., *y.shape, ns]`."""
    new, pullback = jax.vjp(states, y)
    rows = _rows(new)
    return jax.vmap(lambda row: pullback(row)[0], in_axes=-2, out_axes=-1)(rows).astype(new.dtype)


def _rows(new: jax.Array) -> jax.Array:
    """For each state of a group, ones at its elements: `[..., *varshape, i, ns]`."""
    ns = new.shape[-1]
    return jnp.broadcast_to(jnp.eye(ns, dtype=new.dtype), (*new.shape, ns))


def _diagonal(group: Group, piece: Slice, temporaries: Arrays) -> jax.Array:
    """`dnew[i]/dold[j]`, `[..., *varshape, i, j]`: products with ones, exact where elements do not mix."""
    fun, before = piece.at(temporaries)
    after, pullback = jax.vjp(lambda *old: group.join(fun(*old)), *before)
    return jax.vmap(lambda row: group.join(pullback(row)), in_axes=-2, out_axes=-2)(_rows(after))
