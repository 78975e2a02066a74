"""The few commands of a contributor's day: `.venv/bin/nox -l` lists them. They run in the environment of nox itself."""

import datetime
import sys
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["style", "quick"]

# The default cases are dealt out to ten days.
SHARE = ("--share", f"{datetime.date.today().toordinal() % 10}/10")


@nox.session
def quick(session: nox.Session) -> None:
    """A share of the default cases of every test file, another one each day."""
    session.run(sys.executable, "-m", "pytest", *SHARE, *session.posargs)


@nox.session
def style(session: nox.Session) -> None:
    """Ruff and pyright."""
    session.run(sys.executable, "-m", "ruff", "check", ".")
    session.run(sys.executable, "-m", "ruff", "format", "--check", ".")
    session.run(sys.executable, "-m", "pyright", "--pythonpath", sys.executable)


@nox.session
def pages(session: nox.Session) -> None:
    """The Python blocks of all pages, or of those that are named."""
    session.run(sys.executable, "docs/_blocks.py", *session.posargs)


@nox.session
def site(session: nox.Session) -> None:
    """The site, with every warning as an error."""
    session.run(sys.executable, "-m", "mkdocs", "build", "--strict", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel in an environment of its own: the quick suite and the README, outside the tree."""
    with tempfile.TemporaryDirectory() as folder:
        session.run(
            "bash", "-c", f"source .ci/outside.sh && outside '{sys.executable}' '{folder}' -c requirements.lock"
        )
        python = Path(folder) / "venv/bin/python"
        with session.chdir(Path(folder) / "tree"):
            session.run(str(python), "-m", "pytest", *SHARE, *session.posargs)
            session.run(str(python), "docs/_blocks.py", "README.md")
