"""BrainScale's wrappers around the data of a sequence."""

from typing import Any

import jax

from .._tree import Tree
from .loaded import is_of_brainscale


def unwrap_steps(tree: Tree) -> tuple[Tree, Tree]:
    """A tree without BrainScale's step wrappers, and a bool for each leaf: whether it changes from step to step."""

    def is_wrapped(node: Any) -> bool:
        return is_of_brainscale(node, "SingleStepData", "MultiStepData")

    def data(node: Any) -> Tree:
        return node.data if is_wrapped(node) else node

    def changes(node: Any) -> Tree:
        return jax.tree.map(lambda _: not is_of_brainscale(node, "SingleStepData"), data(node))

    return jax.tree.map(data, tree, is_leaf=is_wrapped), jax.tree.map(changes, tree, is_leaf=is_wrapped)
