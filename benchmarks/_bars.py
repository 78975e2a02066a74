"""Bars: what a ratio, a difference or a memory must not pass."""

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass

from _measuring import Measured

Results = Mapping[str, Measured]


@dataclass(frozen=True)
class Bar(abc.ABC):
    """A number made of the results of some cases, and its goal.

    Attributes:
      at_most, at_least: the goal; an infinite one, and zero, stand for none.
    """

    at_most: float = math.inf
    at_least: float = 0.0

    @property
    @abc.abstractmethod
    def cases(self) -> tuple[str, ...]:
        """The cases that it reads."""

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """What is measured."""

    @abc.abstractmethod
    def value(self, results: Results) -> float:
        """The measured number."""

    @property
    def goal(self) -> str:
        """The goal in words; nothing where a number is shown without one."""
        if self.at_least:
            return f">= {self.at_least:g}" if math.isinf(self.at_most) else f"{self.at_least:g} to {self.at_most:g}"
        return "" if math.isinf(self.at_most) else f"<= {self.at_most:g}"

    def holds(self, value: float) -> bool:
        """Whether a number keeps to the goal."""
        return self.at_least <= value <= self.at_most


@dataclass(frozen=True, kw_only=True)
class Ratio(Bar):
    """A ratio of medians.

    Attributes:
      case: above the line.
      against: below the line; of several, the fastest.
      factor: of the ratio, such as that of the lengths where times of a step are compared.
      name: of the ratio; by default the two sides of the line.
    """

    case: str
    against: tuple[str, ...]
    factor: float = 1.0
    name: str = ""

    @property
    def cases(self) -> tuple[str, ...]:
        """Both sides."""
        return (self.case, *self.against)

    @property
    def text(self) -> str:
        """Both sides of the line."""
        below = self.against[0] if len(self.against) == 1 else f"the best of {'; '.join(self.against)}"
        return self.name or f"{self.case} / {below}"

    def value(self, results: Results) -> float:
        """The ratio."""
        return self.factor * results[self.case].median / min(results[name].median for name in self.against)


@dataclass(frozen=True, kw_only=True)
class Overhead(Bar):
    """How many microseconds one case takes longer than another."""

    case: str
    against: str

    @property
    def cases(self) -> tuple[str, ...]:
        """Both."""
        return (self.case, self.against)

    @property
    def text(self) -> str:
        """Both, and the unit."""
        return f"{self.case} - {self.against}, us"

    def value(self, results: Results) -> float:
        """The difference of medians."""
        return 1e6 * (results[self.case].median - results[self.against].median)


@dataclass(frozen=True, kw_only=True)
class Memory(Bar):
    """What a compiled program holds, over a budget in bytes."""

    case: str
    budget: int

    @property
    def cases(self) -> tuple[str, ...]:
        """The one case."""
        return (self.case,)

    @property
    def text(self) -> str:
        """The case, and its budget."""
        return f"{self.case}: compiled temp memory / {self.budget / 2**20:g} MiB"

    def value(self, results: Results) -> float:
        """The ratio."""
        held = results[self.case].temp_bytes
        return math.nan if held is None else held / self.budget


def ratio(case: str, *against: str, at_most: float = math.inf, at_least: float = 0.0, name: str = "") -> Ratio:
    """The ratio of a case to another one, or to the fastest of several."""
    return Ratio(case=case, against=against, at_most=at_most, at_least=at_least, name=name)


def alike(case: str, against: str) -> Ratio:
    """Two cases that must cost the same."""
    return ratio(case, against, at_most=1.05, at_least=0.95)
