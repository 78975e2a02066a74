"""The partition of a function's params: what is trained, and what a module of equinox holds besides."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._tree import Tree, is_key, is_quantity, mantissa


class Partition(NamedTuple):
    """A tree taken apart as `equinox.partition(..., equinox.is_inexact_array)` does, inside each `equinox.Module`.

    Every leaf outside of a module is trained.

    Attributes:
      structure: of the whole tree, in which a quantity is one leaf.
      trained: the leaves that are trained, in order.
      rest: for each leaf of the whole, it as it was given; None where a trained one stands.
    """

    structure: Any
    trained: tuple[Any, ...]
    rest: tuple[Any, ...]

    @classmethod
    def of(cls, params: Tree) -> "Partition":
        """Take a tree apart. Arrays that are not trained are copied, since the caller may donate what was given."""
        leaves, structure = jax.tree.flatten(params, is_leaf=is_quantity)
        trained = _are_trained(params)
        return cls(
            structure,
            tuple(leaf for leaf, is_trained in zip(leaves, trained, strict=True) if is_trained),
            tuple(None if is_trained else _copied(leaf) for leaf, is_trained in zip(leaves, trained, strict=True)),
        )

    def given(self) -> Tree:
        """The tree of what is trained, with None in place of the rest."""
        trained = iter(self.trained)
        return jax.tree.unflatten(self.structure, [next(trained) if leaf is None else None for leaf in self.rest])

    def whole(self, trained: Sequence[Any]) -> Tree:
        """The whole tree, with other trained leaves."""
        left = iter(trained)
        return jax.tree.unflatten(self.structure, [next(left) if leaf is None else leaf for leaf in self.rest])

    def portable(self, trained: Sequence[Any]) -> Tree:
        """The whole tree for a pickle, of which `restored` makes what it was."""
        return self._replace(rest=tuple(map(_portable, self.rest))).whole(trained)


def restored(tree: Tree) -> Tree:
    """What `Partition.portable` was made of, but for its trained leaves, which are as they were passed."""
    return jax.tree.map(lambda leaf: leaf.value() if isinstance(leaf, _Portable) else leaf, tree)


class _Portable:
    """What is pickled in place of a leaf."""

    def __init__(self, make: Any, *arguments: Any) -> None:
        self.make, self.arguments = make, arguments

    def value(self) -> Any:
        return self.make(*self.arguments)


def _portable(leaf: Any) -> Any:
    """An array by its numbers, which keep 64 bits where JAX has none; a function by the name that its module gives it.

    pickle finds neither JAX's functions (`jax.nn.relu`) nor equinox's lambdas by itself.
    """
    if isinstance(leaf, jax.Array) and not is_key(leaf.dtype):
        return _Portable(jnp.asarray, np.asarray(leaf))
    module = getattr(leaf, "__module__", None)
    known = vars(sys.modules[module]) if module in sys.modules else {}
    names = [name for name, value in known.items() if value is leaf]
    return _Portable(_by_name, module, names[0]) if names else leaf


def _by_name(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _are_trained(params: Tree) -> list[bool]:
    """Of each leaf, whether it is trained."""
    parts = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, eqx.Module) or is_quantity(node))
    return [
        not isinstance(part, eqx.Module) or _is_float(leaf)
        for part in parts
        for leaf in jax.tree.leaves(part, is_leaf=is_quantity)
    ]


def _is_float(leaf: Any) -> bool:
    """Whether a leaf is an array of floats; equinox's own test knows no bfloat16 of numpy."""
    array = mantissa(leaf)
    return isinstance(array, (jax.Array, np.ndarray, np.generic)) and bool(jnp.issubdtype(array.dtype, jnp.inexact))


def _copied(leaf: Any) -> Any:
    return jax.tree.map(lambda x: x.copy() if isinstance(x, (jax.Array, np.ndarray)) else x, leaf)
