"""A batch that is shared out: some samples run at once, others later or elsewhere.

Every driver is a function whose arguments and results have the samples along known axes. So a strategy that shares a
batch out needs to know these axes alone: it calls the function for each share, and puts the results together.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._program import Params, Perturbation, Program, States, Step
from .._sources.base import Source
from .._tree import Tree
from .base import SUMMED, MapSamples, RunOf, SampleAxes, Strategy


@dataclasses.dataclass(frozen=True)
class Sharing(Strategy):
    """A strategy that shares a batch out, each share to another strategy.

    Attributes:
      size: `B`.
      inner: the strategy of one share.
    """

    size: int
    inner: Strategy

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.size

    @property
    def within(self) -> Strategy:
        """The strategy of samples that run at once."""
        return self.inner.within

    @property
    def runs_own_batch(self) -> bool:
        """Whether the source's own code sees the samples of a share together."""
        return self.inner.runs_own_batch

    @abc.abstractmethod
    def in_shares(self, run: RunOf, axes: SampleAxes) -> Callable[..., Any]:
        """See `Strategy.in_shares`."""

    def program(self, source: Source) -> Program:
        """The step of one of the samples of a share."""
        return self.inner.program(source)

    def execute(
        self, source: Source, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation
    ) -> Step:
        """See `Strategy.execute`."""

        def run(strategy: Strategy) -> Callable[..., Step]:
            return lambda *args: strategy.execute(source, *args)

        own: Any = States(0, 0, 0, None)  # type: ignore[arg-type]
        made: Any = Step(0, own, 0)  # type: ignore[arg-type]
        return self.in_shares(run, SampleAxes((None, own, 0, 0), made))(params, states, inputs, perturbation)

    def each(self, source: Source) -> MapSamples:
        """See `Strategy.each`."""

        def each(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
            def mapped(shared: Any, *own: Any) -> Any:
                axes = (in_axes,) * len(own) if isinstance(in_axes, int) else in_axes

                def run(strategy: Strategy) -> Callable[..., Any]:
                    return strategy.each(source)(fun, axes, out_axes)

                return self.in_shares(run, SampleAxes((None, *axes), out_axes))(shared, *own)

            return mapped

        return each

    def kept_once(self, source: Source) -> frozenset[str]:
        """Those of the inner strategy."""
        return self.inner.kept_once(source)


def axes_of_leaves(axes: Any, tree: Tree) -> list[Any]:
    """The axis of each leaf of a tree, from a prefix of the tree."""

    def spread(axis: Any, part: Tree) -> list[Any]:
        return [axis] * len(jax.tree.leaves(part))

    if tree is None:  # an argument that was not given
        return []
    parts = jax.tree.map(spread, axes, tree, is_leaf=lambda axis: axis is None)
    return [axis for part in jax.tree.leaves(parts, is_leaf=lambda one: isinstance(one, list)) for axis in part]


def axes_of_arguments(axes: Sequence[Any], args: Sequence[Tree]) -> list[Any]:
    """The axis of each leaf of some arguments, of which some are None."""
    return [axis for of_one, arg in zip(axes, args, strict=True) for axis in axes_of_leaves(of_one, arg)]


def with_sums(found: Tree, axes: Sequence[Any], add_up: Callable[[list[jax.Array]], list[jax.Array]]) -> Tree:
    """The result of all shares, whose sums `add_up` makes of those of the shares.

    It gets all of them at once and in one type of numbers, the widest among them, since XLA sums arrays over devices
    together only where their types agree. A number of samples beside float32 is exact up to 2**24.

    Args:
      found: of one share, or of several beside each other.
      axes: where the samples lie in each leaf.
      add_up: adds up over the shares.
    """
    leaves, structure = jax.tree.flatten(found)
    totals = iter(_in_one_type([leaf for leaf, axis in zip(leaves, axes, strict=True) if axis == SUMMED], add_up))
    whole = [next(totals) if axis == SUMMED else leaf for leaf, axis in zip(leaves, axes, strict=True)]
    return jax.tree.unflatten(structure, whole)


def _in_one_type(leaves: list[jax.Array], add_up: Callable[[list[jax.Array]], list[jax.Array]]) -> list[jax.Array]:
    """The sums in the types of the leaves; that of real numbers beside complex ones is real."""
    if not leaves:
        return []
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.result_type(*(leaf.dtype for leaf in leaves))
    totals = add_up([leaf.astype(wide) for leaf in leaves])
    pairs = zip(leaves, totals, strict=True)
    return [(total if jnp.iscomplexobj(leaf) else total.real).astype(leaf.dtype) for leaf, total in pairs]
