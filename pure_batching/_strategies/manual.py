"""`Manual`: the source's own arithmetic on arrays with a batch axis."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from .._program import Params, Perturbation, Program, States, Step
from .._sources.base import Source
from .._tree import Tree, moved
from ..errors import StrategyError
from .alone import execute_alone
from .base import MapSamples, Strategy
from .vmap import each_by_vmap, execute_by_vmap, mappable


@dataclasses.dataclass(frozen=True)
class Manual(Strategy):
    """The step that was traced again on `(B, ...)` arrays.

    The source keeps the batch axis of some states elsewhere than in front (a delay's buffer), and keeps some states
    once for the whole batch (running statistics); in the carry, every leaf of a sample leads with the batch axis.

    Attributes:
      size: `B`.
    """

    size: int

    name = "pb.manual"

    @property
    def runs_own_batch(self) -> bool:
        """The source's own code runs all samples."""
        return True

    @property
    def batch_size(self) -> int:
        """`B`."""
        return self.size

    def program(self, source: Source) -> Program:
        """The step of one of `B` samples; the step of the batch is traced too.

        Raises:
          RandomnessError: a draw of the step cannot be made with each sample's own key.
          StrategyError: the source's own code does not carry a batch axis, or takes another way with one.
        """
        single = source.one_of(self.size)
        batched = source.batched(self.size)
        _check_same_relations(single, batched)
        _check_samples_lead(single, batched, self.size)
        return single

    def execute(
        self, source: Source, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation
    ) -> Step:
        """See `Strategy.execute`."""
        single, batched = source.one_of(self.size), source.batched(self.size)
        if (single.states.shared and not states.shared) or _is_once_for_all(batched, single, perturbation):
            # A mask or a reset moved the samples apart: each has its own write pointer, say, and the source has room
            # for one pointer only. Or the source makes one product for all samples, of an element-wise weight, of
            # which each sample needs its own derivative.
            return execute_by_vmap(mappable(single, self.name), self.size)(params, states, inputs, perturbation)
        axes, once = source.batch_axes(), self.kept_once(source)
        own, common = _parted(states.other, once)
        first = jax.tree.map(lambda leaf: leaf[0], common)
        inside = states._replace(other={**moved(own, axes, to_module=True), **first})
        products = {name: x.reshape(batched.past.products[name].shape) for name, x in perturbation.products.items()}
        done = execute_alone(batched)(params, inside, inputs, perturbation._replace(products=products))
        own, common = _parted(done.states.other, once)
        every = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.size, *leaf.shape)), common)
        outside = done.states._replace(other={**moved(own, axes, to_module=False), **every})
        jacobians = done.jacobians._replace(
            xs=_for_each_sample(done.jacobians.xs, single.derivatives.xs, self.size),
            dfs=_for_each_sample(done.jacobians.dfs, single.derivatives.dfs, self.size),
        )
        chex.assert_tree_shape_prefix((done.output, outside.hidden, outside.other, jacobians), (self.size,))
        return Step(done.output, outside, jacobians)

    def each(self, source: Source) -> MapSamples:
        """See `Strategy.each`; what is no step of the source is mapped by `jax.vmap`."""
        return each_by_vmap(source.axis_name, self.size)

    def kept_once(self, source: Source) -> frozenset[str]:
        """The states whose shape the batch axis does not change."""
        own, others = source.one_of(self.size).states.other, source.batched(self.size).states.other
        return frozenset(path for path in own if _shapes(own[path]) == _shapes(others[path]))


def _is_once_for_all(batched: Program, single: Program, perturbation: Perturbation) -> bool:
    """Whether a perturbed product has no batch axis."""
    own = single.past.products
    return any(batched.past.products[name].shape == own[name].shape for name in perturbation.products)


def _shapes(tree: Tree) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def _parted(other: Mapping[str, Tree], once: frozenset[str]) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """The states that each sample has, and the states that are kept once."""
    own = {path: value for path, value in other.items() if path not in once}
    return own, {path: value for path, value in other.items() if path in once}


def _for_each_sample(arrays: dict[str, jax.Array], specs: Mapping[str, Any], batch_size: int) -> dict[str, jax.Array]:
    """The inputs of weights, or derivatives by their outputs, with the samples in an axis of their own.

    What the source computes once for all samples is repeated for each. One sample may have an axis of size one where a
    batch has the samples, as before a convolution.
    """

    def own(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if array.shape == shape:
            return jnp.broadcast_to(array, (batch_size, *shape))
        return array.reshape(batch_size, *shape)

    return {name: own(array, specs[name].shape) for name, array in arrays.items()}


def _check_same_relations(single: Program, batched: Program) -> None:
    names = [[relation.name for relation in program.relations] for program in (single, batched)]
    if names[0] != names[1]:
        raise StrategyError(
            "pb.manual",
            got=f"the traced weights {names[1]} with a batch axis",
            expected=f"{names[0]}, as for one sample",
            repair="The module takes another way with a batch axis; use pb.vmap.",
        )


def _check_samples_lead(single: Program, batched: Program, batch_size: int) -> None:
    """The samples may lie behind the features of a product that `jax.vmap` or an einsum makes inside the step."""
    own, found = single.derivatives.dfs, batched.derivatives.dfs
    if turned := [name for name in own if not _leads(found[name].shape, own[name].shape, batch_size)]:
        raise StrategyError(
            "pb.manual",
            got=f"a product of {turned[0]!r} of shape {found[turned[0]].shape[:-1]} with a batch axis",
            expected=f"{(batch_size, *own[turned[0]].shape[:-1])}, in which the samples lead",
            repair="jax.vmap of a cell, or an einsum that puts the weight's axes first, leaves the samples behind. "
            "Use pb.vmap.",
        )


def _leads(shape: tuple[int, ...], of_one: tuple[int, ...], batch_size: int) -> bool:
    """Whether the samples lie in front of the axes of one sample's array, or in place of its first one of size one."""
    return shape == (batch_size, *of_one) or (of_one[0] == 1 and shape == (batch_size, *of_one[1:]))
