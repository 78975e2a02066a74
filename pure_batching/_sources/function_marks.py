"""The weights of a plain function: each is traced where it first meets the data."""

from collections.abc import Collection

import jax

from .._reader.jaxprs import ClosedJaxpr, JaxprEqn
from .._reader.marking import ADDITIVE, MIXING, NAMES
from .._reader.marks import Marks
from .._reader.primitives import name_of


class FunctionMarks(Marks):
    """The marks that `_reader.marking` gives a plain function.

    Args:
      untraced: the paths of the weights that the user wants no trace of.
    """

    def __init__(self, untraced: Collection[str]) -> None:
        self._untraced = frozenset(untraced)

    def is_shared(self, path: str) -> bool:
        """Yes: what is made of several weights may meet the data."""
        del path
        return True

    def is_use(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is a call that holds a use."""
        return name_of(eqn) in NAMES

    def is_followed(self, eqn: JaxprEqn) -> bool:
        """Whether a use is element-wise in its data."""
        return self.is_use(eqn) and name_of(eqn) != MIXING

    def is_additive(self, eqn: JaxprEqn) -> bool:
        """Whether a use is a sum."""
        return name_of(eqn) == ADDITIVE

    def why_untraced(self, path: str) -> str:
        """The user's own wish."""
        return "trace= asks for no trace of it" if path in self._untraced else ""

    def gradient(self, path: str) -> str:
        """The smaller trace."""
        del path
        return "adaptive"

    def derivative(self, path: str, x: jax.ShapeDtypeStruct | None, y: jax.ShapeDtypeStruct) -> ClosedJaxpr | None:
        """None: the equations are differentiated."""
        del path, x, y
