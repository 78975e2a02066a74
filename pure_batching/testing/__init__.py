"""The laws of interchangeable strategies, for a user's own modules; needs the `testing` extra.

`assert_interchangeable` checks all of them. `laws` holds each as a function of a `Case`, to be used one by one under
pytest or Hypothesis, and `strategies` draws modules, algorithms, sequences, carries and batches for Hypothesis.
"""

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
