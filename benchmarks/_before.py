"""This library as it was at an earlier commit, beside the one of today in one process."""

import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

# Before the default rule of D_RTRL got a schedule of its own.
COMMIT = "73d5911"

_ROOT = Path(__file__).parents[1]


def earlier(commit: str = COMMIT) -> ModuleType | None:
    """The package of a commit under a name of its own; None where the clone does not have the commit."""
    name = f"pure_batching_{commit}"
    if name not in sys.modules:
        folder = _checked_out(commit)
        if folder is None:
            return None
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def _checked_out(commit: str) -> Path | None:
    """The folder of the package under `build/`."""
    folder = _ROOT / "build" / "before" / commit
    if not folder.exists():
        done = subprocess.run(["git", "archive", commit, "pure_batching"], cwd=_ROOT, capture_output=True, check=False)
        if done.returncode:
            return None
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
            files.extractall(folder, filter="data")
    return folder / "pure_batching"
