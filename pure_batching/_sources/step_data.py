"""BrainScale's wrappers around the data of a sequence."""

from typing import Any

import brainscale
import jax

from .._tree import Tree

_STEP_DATA = (brainscale.SingleStepData, brainscale.MultiStepData)


def unwrap_steps(tree: Tree) -> tuple[Tree, Tree]:
    """A tree without BrainScale's step wrappers, and a bool for each leaf: whether it changes from step to step."""

    def is_wrapped(node: Any) -> bool:
        return isinstance(node, _STEP_DATA)

    def data(node: Any) -> Tree:
        return node.data if is_wrapped(node) else node

    def changes(node: Any) -> Tree:
        return jax.tree.map(lambda _: not isinstance(node, brainscale.SingleStepData), data(node))

    return jax.tree.map(data, tree, is_leaf=is_wrapped), jax.tree.map(changes, tree, is_leaf=is_wrapped)
