"""Runs the Python blocks of the pages: `python docs/_blocks.py [PAGE ...] [--share 0/1] [--jobs 2]`.

The blocks of a page are one program, which runs in a process of its own. What a statement prints is compared with the
comment behind its `print(...)`, or with the comment lines right below it; `...` stands for anything. A block that is
no program, such as the code of another library, is marked as `py`, not as `python`. A block marked as `console` is a
command, `$ python ...`, and what it prints. JAX has two devices where a page makes a mesh of them, and one elsewhere.
"""

import argparse
import ast
import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import time
import tokenize
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

FENCED = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^```console\n\$ python (.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class PrintError(AssertionError):
    """A statement or a command prints something else than the page says."""


class Statement(NamedTuple):
    """A statement at the top of a program, and what the page says that it prints; None where it says nothing."""

    node: ast.stmt
    says: str | None


class Command(NamedTuple):
    """A command on a page: its line, the arguments of Python, and what the page says that it prints."""

    line: int
    arguments: list[str]
    says: str

    def printed(self) -> str:
        """What it prints, run in the root of the repository."""
        command = [sys.executable, *self.arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


def commands(page: Path) -> list[Command]:
    """The commands of a page."""
    text = page.read_text(encoding="utf-8")
    blocks = COMMAND.finditer(text)
    return [Command(text.count("\n", 0, one.start(1)) + 1, shlex.split(one[1]), one[2]) for one in blocks]


def program(page: Path) -> str:
    """The blocks of a page, each on the lines where it stands; empty for a page without any."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * (text.count("\n") + 1)
    for block in FENCED.finditer(text):
        first = text.count("\n", 0, block.start(1))
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return "\n".join(lines).strip("\n") and "\n".join(lines)


def statements(code: str) -> Iterator[Statement]:
    """The statements of a program with what the comments say that they print."""
    comments = _comments(code)
    lines = code.splitlines()
    for node in ast.parse(code).body:
        last = node.end_lineno or node.lineno
        inside = [line for line in range(node.lineno, last + 1) if lines[line - 1].strip().startswith("print(")]
        behind = [comments[line] for line in inside if line in comments]
        below = []
        while last + 1 in comments and lines[last].startswith("#"):
            last += 1
            below.append(comments[last])
        says = "\n".join([*behind, *below])
        yield Statement(node, says if says and "print(" in ast.unparse(node) else None)


def _comments(code: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    return {token.start[0]: token.string[1:].strip() for token in tokens if token.type == tokenize.COMMENT}


def run_page(page: Path) -> None:
    """Run the program of a page in this process, and then its commands.

    Raises:
      PrintError: something else is printed than the page says; and whatever the page itself raises.
      CalledProcessError: a command fails.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    for node, says in statements(program(page)):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(ast.Module([node], []), str(page), "exec"), names)
        if says is not None:
            _compare(f"{page}:{node.end_lineno}", f"{says}\n", printed.getvalue())
    for command in commands(page):
        _compare(f"{page}:{command.line}", command.says, command.printed())


def _compare(place: str, says: str, got: str) -> None:
    if not doctest.OutputChecker().check_output(says, got, COMPARED):
        raise PrintError(f"{place}: the page says\n{says}but this was printed:\n{got}")


def _in_a_process(page: Path) -> tuple[Path, float, subprocess.CompletedProcess[str]]:
    began = time.monotonic()
    # One device, as most readers have, unless the page spreads samples over several.
    devices = 2 if "jax.make_mesh(" in program(page) else 1
    environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"} | os.environ
    command = [sys.executable, __file__, "--here", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    return page, time.monotonic() - began, done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run pages, each in a process; print how long each took, and what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, default=PAGES, help="all by default")
    parser.add_argument("--share", default="0/1", help="of the pages: 1/3 is the second of three shares")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--here", action="store_true", help="run the pages in this process")
    given = parser.parse_args(arguments)
    if given.here:
        for page in given.pages:
            run_page(page)
        return 0
    failed, (number, shares) = 0, map(int, given.share.split("/"))
    with ThreadPoolExecutor(given.jobs) as pool:
        pages = [page.resolve() for page in given.pages if program(page) or commands(page)]
        for page, seconds, done in pool.map(_in_a_process, pages[number::shares]):
            failed += done.returncode != 0
            sys.stdout.write(f"{'FAILED' if done.returncode else 'ran'} {page.relative_to(ROOT)} in {seconds:.0f} s\n")
            sys.stdout.write(done.stderr if done.returncode else "")
            sys.stdout.flush()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
