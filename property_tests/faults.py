"""Faults that must be found: each is put into a copy of the package, where a named test must fail.

    python -m property_tests.faults [--audit]

prints a line for each fault and the score; anything below all of them is a failure. The tests must pass before: one
that fails anyway finds nothing. With `--audit`, the audit of each copy is compared with numbers too: nothing that
moves may be called independent, whatever is wrong with the package.
"""

import argparse
import concurrent.futures
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .catalogue import FAULTS, Fault

ROOT = Path(__file__).parents[1]
COPIED = ("pure_batching", "tests", "property_tests", "pyproject.toml")
PASSED, FAILED = 0, 1

# Compares the audit with numbers.
AUDIT = "tests/test_audit.py::TestNumbers"


class Verdict(NamedTuple):
    """Whether each of a fault's tests fails, and whether the audit calls nothing independent that moves."""

    is_killed: bool
    is_honest: bool


def tried(fault: Fault, *, asks_audit: bool = False) -> Verdict:
    """What a copy of the package shows that has the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        file = copy / "pure_batching" / fault.file
        file.write_text(with_fault(fault, file.read_text(encoding="utf-8")), encoding="utf-8")
        is_killed = all(_outcome(copy, test) == FAILED for test in (fault.test, fault.audit) if test)
        return Verdict(is_killed, not asks_audit or _outcome(copy, AUDIT) == PASSED)


def _outcome(copy: Path, test: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", test]
    if test.startswith("tests/"):
        command.append("--all")  # some of these have cases that are left out by default
    return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode


def with_fault(fault: Fault, text: str) -> str:
    """A file's text with the fault in it.

    Raises:
      ValueError: the piece does not stand there exactly once, so that the catalogue is out of date.
    """
    if text.count(fault.right) != 1:
        raise ValueError(
            f"{fault.name}: {fault.file} holds {text.count(fault.right)} times {fault.right!r}, expected 1"
        )
    return text.replace(fault.right, fault.wrong)


def main() -> int:
    """Print the table and the score; 0 if every fault was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audit", action="store_true", help="compare the audit of each copy with numbers")
    parser.add_argument("--share", default="0/1", help="of the faults: 1/3 is the second of three shares")
    options = parser.parse_args()
    asks_audit, (number, shares) = options.audit, map(int, options.share.split("/"))
    faults = FAULTS[number::shares]
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        verdicts = list(pool.map(functools.partial(tried, asks_audit=asks_audit), faults))
    asked = ["found", "nothing false from the audit"] if asks_audit else ["found"]
    table = Table("fault", "test", *asked)
    for fault, verdict in zip(faults, verdicts, strict=True):
        marks = ["yes" if holds else "NO" for _, holds in zip(asked, verdict, strict=False)]
        table.add_row(fault.name, escape(fault.test), *marks)
    console = Console(width=160)
    console.print(table)
    console.print(f"{sum(verdict.is_killed for verdict in verdicts)} of {len(verdicts)} faults found")
    return 0 if all(all(verdict) for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
