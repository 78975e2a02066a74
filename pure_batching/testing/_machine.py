"""What the state machines have in common: a model, data for it, and the comparison with a sample alone."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine

from .._tree import Tree
from ._case import Data, Subject
from ._compare import first_difference, numbers

seeds = st.integers(0, 2**16)


class ModelMachine(RuleBasedStateMachine):
    """A state machine for a model.

    Attributes:
      subject: the model, its algorithm, its loss and the strategies that take turns.
      is_exact: whether a sample must be what it is alone bit for bit; otherwise rounding may differ.
      done: counts what happened, in all runs of a class together: that something was seen can then be asserted.
    """

    subject: Subject
    is_exact: bool = False
    done: Counter[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.done = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.learner, self.params = self.subject.learner, self.subject.params

    def data(self, seed: int, steps: int, samples: int) -> Data:
        """Inputs and targets of the model, `[T, B, ...]`, drawn from a seed; a subclass defines it.

        Args:
          seed: what they are drawn from.
          steps: `T`.
          samples: `B`.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method data(seed, steps, samples) -> testing.Data")

    def same(self, got: Tree, want: Tree, what: str) -> None:
        """Raise AssertionError where two trees differ by more than rounding, or at all where `is_exact`."""
        self.agree(got, want, what, "nothing" if self.is_exact else "gradient")

    def agree(self, got: Tree, want: Tree, what: str, kind: str = "gradient") -> None:
        """Raise AssertionError where two trees differ by more than the tolerance of a kind."""
        difference = first_difference(plain(got), plain(want), lambda _: kind)
        self.holds(difference is None, f"{what}: {str(difference).removeprefix(': ')}")

    @staticmethod
    def holds(condition: bool, otherwise: str) -> None:  # noqa: FBT001 - one condition, one text
        """Raise AssertionError where something does not hold."""
        if not condition:
            raise AssertionError(otherwise)

    def count_alive(self, name: str, gradients: Tree) -> None:
        """Count something that has a gradient, and whether all of it is finite and not zero."""
        self.done[name] += 1
        self.done["alive"] += all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(plain(gradients)))


def plain(tree: Tree) -> Tree:
    """Arrays of numpy; random keys as their data."""
    return jax.tree.map(numbers, tree)


def row(tree: Tree, k: int) -> Tree:
    """Sample `k` of a tree that leads with samples."""
    return jax.tree.map(lambda leaf: leaf[k], tree)


def is_sound(tree: Tree) -> bool:
    """Whether every number is finite."""
    floats = [leaf for leaf in jax.tree.leaves(plain(tree)) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return all(bool(np.isfinite(leaf).all()) for leaf in floats)
