"""What a law is, and what it means to violate one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .._tree import Tree
from ..errors import StructureError
from ._case import Case
from ._compare import WHOLE, Difference, Part, first_difference
from ._stand_alone import stand_alone


class LawViolation(AssertionError):  # noqa: N818 - what is violated is a law; the error is its text
    """A law does not hold.

    Attributes:
      law: its name.
      strategy: under which strategy.
      difference: the leaf, the step and the sample, what was got and what was expected.
      notes: what else is known, such as the smallest case that fails.
      flags: the mask and the resets that it was found under.
      case: on which it was found; of `assert_interchangeable`, the smallest one that fails.
    """

    def __init__(
        self,
        law: str,
        strategy: str,
        difference: Difference,
        notes: tuple[str, ...] = (),
        flags: Mapping[str, Any] = WHOLE.flags,
        case: Case | None = None,
    ) -> None:
        super().__init__("\n".join([f"{law} does not hold under {strategy}: {difference}", *notes]))
        self.law, self.strategy, self.difference, self.notes, self.flags = law, strategy, difference, notes, flags
        self.case = case

    def with_note(self, note: str) -> "LawViolation":
        """The same violation with one more line."""
        return LawViolation(self.law, self.strategy, self.difference, (*self.notes, note), self.flags, self.case)

    def as_test(self) -> str:
        """A test that shows the same violation and needs nothing else, as the text of a file.

            try:
                assert_interchangeable(make_net, algorithm, inputs, targets, loss)
            except LawViolation as violation:
                pathlib.Path("test_found.py").write_text(violation.as_test())
                raise

        It holds the data of `case`, number by number, its algorithm, strategies, settings and random key, and imports
        the function that makes the module and the loss by their names. Where something has no name to be imported by,
        as a lambda or what a script defines, `fill_in(...)` stands in its place, and the comment at the top lists it.

        Raises:
          StructureError: a violation that no law raised.
        """
        if self.case is None:
            raise StructureError(
                "LawViolation.as_test",
                got="a violation without a case",
                expected="one that a law has raised",
                repair="Check the law on a case: laws.locality(case), say.",
            )
        return stand_alone(self.law, self.case, str(self))


@dataclasses.dataclass(frozen=True)
class Law:
    """A law: call it with a case.

    Attributes:
      name: of the law.
      statement: what it says.
      check: raises LawViolation.
      excuse: why it does not concern a case; None where it does.
    """

    name: str
    statement: str
    check: Callable[[Case], None]
    excuse: Callable[[Case], str | None]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.statement)

    def __call__(self, case: Case) -> None:
        """Raise LawViolation unless the law holds; do nothing where it does not concern the case."""
        if self.excuse(case) is None:
            self.check(case)


class Started(NamedTuple):
    carry: Any


def law(*excuses: Callable[[Case], str | None]) -> Callable[[Callable[[Case], None]], Law]:
    def excuse(case: Case) -> str | None:
        return next((reason for given in excuses if (reason := given(case)) is not None), None)

    def make(check: Callable[[Case], None]) -> Law:
        return Law(check.__name__, (check.__doc__ or "").strip(), _naming_its_case(check), excuse)

    return make


def _naming_its_case(check: Callable[[Case], None]) -> Callable[[Case], None]:
    @functools.wraps(check)
    def checked(case: Case) -> None:
        try:
            check(case)
        except LawViolation as violation:
            violation.case = case
            raise

    return checked


def kind_of(path: str) -> str:
    """What is compared, by path."""
    if path.startswith(".gradients"):
        return "gradient"
    return "trace" if path.startswith(".carry.trace") else "forward"


def assert_same(
    law: str, strategy: str, got: Tree, expected: Tree, kind: Callable[[str], str] = kind_of, part: Part = WHOLE
) -> None:
    difference = first_difference(got, expected, kind)
    if difference is not None:
        raise LawViolation(law, strategy, difference.within(part), flags=part.flags)


def bit_for_bit(_: str) -> str:
    return "nothing"


def exactly(path: str) -> str:
    return "exact" if path.startswith(".gradients") else "forward"


def natively(_: str) -> str:
    return "native"
