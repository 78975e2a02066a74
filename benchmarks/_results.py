"""Results as JSON: what was measured, on which machine, and what moved since a baseline."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
from _bars import Bar
from _measuring import Measured

PACKAGES = ("brainstate", "brainscale", "braintrace")


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran.

    Attributes:
      processor: its name, that of the accelerator where there is one.
      cores: of the processor.
      versions: of Python, JAX and the packages that are compared.
    """

    processor: str
    cores: int
    versions: dict[str, str]

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return f"{self.processor}, {self.cores} cores; {versions}"


class BarResult(NamedTuple):
    """A bar with its number; without a goal it only shows the number."""

    text: str
    measured: float
    goal: str
    holds: bool

    @property
    def verdict(self) -> str:
        """Whether it holds, in a word."""
        return ("yes" if self.holds else "NO") if self.goal else ""


@dataclass(frozen=True)
class SectionResult:
    """Cases that were measured in turn.

    Attributes:
      name, title: of the section.
      axis: the letter of the size by which cases of one series differ, or nothing.
      cases: by name.
      ideal: by size, the work of a size relative to that of the smallest one.
      bars: that were asked for.
    """

    name: str
    title: str
    axis: str
    cases: dict[str, Measured]
    ideal: dict[str, float]
    bars: list[BarResult]


@dataclass(frozen=True)
class Results:
    """All of a benchmark."""

    benchmark: str
    command: str
    rounds: int
    machine: Machine
    sections: list[SectionResult]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = asdict(self)
        for kept, section in zip(tree["sections"], self.sections, strict=True):
            kept["cases"] = {name: one._asdict() for name, one in section.cases.items()}
            kept["bars"] = [bar._asdict() for bar in section.bars]
        path.write_text(json.dumps(tree, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Results":
        """The inverse of `save`."""
        tree = json.loads(path.read_text())
        tree["machine"] = Machine(**tree["machine"])
        tree["sections"] = [_section(one) for one in tree["sections"]]
        return cls(**tree)


def _section(tree: dict[str, Any]) -> SectionResult:
    tree["cases"] = {name: Measured(**one) for name, one in tree["cases"].items()}
    tree["bars"] = [BarResult(**one) for one in tree["bars"]]
    return SectionResult(**tree)


class Move(NamedTuple):
    """A case now and then, medians in seconds."""

    case: str
    before: float
    now: float
    is_apart: bool


def moves(before: Results, now: Results) -> Iterator[Move]:
    """The cases that both have; those whose quartiles do not overlap are apart."""
    then = {(section.name, name): one for section in before.sections for name, one in section.cases.items()}
    for section in now.sections:
        for name, one in section.cases.items():
            old = then.get((section.name, name))
            if old is not None:
                is_apart = one.low > old.high or one.high < old.low
                yield Move(f"{section.name}: {name}", old.median, one.median, is_apart)


def with_numbers(bars: Sequence[Bar], cases: dict[str, Measured]) -> list[BarResult]:
    """The bars whose cases ran, with what was measured."""
    here = [(bar, bar.value(cases)) for bar in bars if all(name in cases for name in bar.cases)]
    return [BarResult(bar.text, value, bar.goal, bar.holds(value)) for bar, value in here]


def this_machine() -> Machine:
    """The machine of this process."""
    installed = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    versions = {"Python": platform.python_version(), "jax": jax.__version__}
    versions |= {name: installed[name] for name in PACKAGES if name in installed}
    return Machine(_processor(), os.cpu_count() or 1, versions)


def _processor() -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
