"""The laws of interchangeable strategies, for a user's own modules; needs the `testing` extra.

`assert_interchangeable` checks all of them, and `LawViolation.as_test()` is a test of what it found. `laws` holds each
as a function of a `Case`, to be used one by one under pytest or Hypothesis. What follows is for Hypothesis, which is
loaded with it: `strategies` draws modules, algorithms, sequences, carries and batches; the state machines
`SessionMachine` and `BatchMachine` compare whatever happens to sessions and to batches with samples that live alone.
"""

from typing import TYPE_CHECKING, Any

from . import laws as laws
from ._alive import (
    DeadComparisonError as DeadComparisonError,
    assert_alive as assert_alive,
    assert_differ as assert_differ,
)
from ._case import (
    STRATEGIES as STRATEGIES,
    Case as Case,
    Data as Data,
    Function as Function,
    Request as Request,
    Result as Result,
    Runner as Runner,
    Subject as Subject,
)
from ._interchangeable import Report as Report, assert_interchangeable as assert_interchangeable
from ._margins import ROUNDINGS as ROUNDINGS, smallest_margin as smallest_margin
from ._tolerances import tolerance as tolerance
from .laws import Law as Law, LawViolation as LawViolation

if TYPE_CHECKING:
    from .batches import BatchMachine as BatchMachine
    from .sessions import SessionMachine as SessionMachine


def __getattr__(name: str) -> Any:
    """The state machines, which are loaded where they are used, since they need Hypothesis."""
    if name == "SessionMachine":
        from .sessions import SessionMachine  # noqa: PLC0415

        return SessionMachine
    if name == "BatchMachine":
        from .batches import BatchMachine  # noqa: PLC0415

        return BatchMachine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
