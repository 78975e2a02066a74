"""What the reader asks a source about the weights of its step."""

import abc

import jax

from .jaxprs import ClosedJaxpr, JaxprEqn


class Marks(abc.ABC):
    """Which equations of a step use a weight in a way that a trace can follow, as a package marks them."""

    @abc.abstractmethod
    def is_shared(self, path: str) -> bool:
        """Whether a use of a weight may read others too, and its result may be split or arranged in another way."""

    @abc.abstractmethod
    def is_additive(self, eqn: JaxprEqn) -> bool:
        """Whether the derivative of a use with respect to the weight does not depend on its input."""

    @abc.abstractmethod
    def is_use(self, eqn: JaxprEqn) -> bool:
        """Whether an equation is a marked use of a weight."""

    @abc.abstractmethod
    def is_followed(self, eqn: JaxprEqn) -> bool:
        """Whether what comes before a marked use reaches hidden states through it, as through any other equation."""

    @abc.abstractmethod
    def why_untraced(self, path: str) -> str:
        """Why no use of a weight may have a trace; "" where one may."""

    @abc.abstractmethod
    def gradient(self, path: str) -> str:
        """What a weight asks of a hybrid algorithm: `"full"`, `"approx"` or `"adaptive"`."""

    @abc.abstractmethod
    def derivative(self, path: str, x: jax.ShapeDtypeStruct | None, y: jax.ShapeDtypeStruct) -> ClosedJaxpr | None:
        """A weight's own `(x, dy, *arrays of w) -> dw`; None where the operation's equations are differentiated."""
