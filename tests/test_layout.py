"""The order of the modules: a reader meets each before what is built from it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pure_batching

PACKAGE = Path(pure_batching.__file__).parent

# From the bottom up; a folder is one room, whose own files may not import each other in a circle.
ORDER = (
    *("_errors", "_tree", "_jaxpr", "_alignment", "_sparse", "_program", "_assembly", "_blueprint", "_capture"),
    *("_algorithms", "_timed", "_execution", "_window", "_step", "_learner", "_native", "_data", "_strategies"),
    *("_sequence", "_batch", "_audit", "testing", "_tutorial", "__main__"),
)
FACADE = "__init__"

# Who may know BrainScale. The main job trains with it, as any user does.
READERS_OF_BRAINSCALE = {"_capture", "_native"}
USERS = {"_tutorial", "__main__"}

# What runs inside a step; it knows JAX and the package's own data alone.
PURE = {"_jaxpr", "_program", "_assembly", "_execution", "_window", "_step", "_algorithms", "_strategies"}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`_strategies/vmap.py` -> `_strategies.vmap`; a package goes by its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def imports(path: Path) -> set[str]:
    """What a file imports, wherever it does so: names of this package's modules and of others' top packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".", maxsplit=1)[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(_imported_from(node, path))
    return found


def _imported_from(node: ast.ImportFrom, path: Path) -> set[str]:
    if node.level == 0:
        return {(node.module or "").split(".", maxsplit=1)[0]}
    folder = path.relative_to(PACKAGE).parts[: -node.level]
    base = [*folder, *(node.module.split(".") if node.module else ())]
    names = [".".join([*base, alias.name]) for alias in node.names]
    known = {name_of(file) for file in FILES}
    return {name if name in known else ".".join(base) for name in names}


def own(path: Path) -> set[str]:
    """The modules of this package that a file imports, and that are not the facade."""
    known = {name_of(file) for file in FILES}
    return {name for name in imports(path) if name in known}


def test_every_module_has_a_place() -> None:
    assert {room(name_of(path)) for path in FILES} - {FACADE} <= set(ORDER)


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path) != FACADE], ids=name_of)
def test_imports_point_upward(path: Path) -> None:
    place = ORDER.index(room(name_of(path)))
    later = {name for name in own(path) if room(name) == FACADE or ORDER.index(room(name)) > place}
    assert not later, f"{name_of(path)} imports {sorted(later)}, which come later"


def test_no_circles_within_a_room() -> None:
    waiting = {name_of(path): own(path) - {name_of(path)} for path in FILES if name_of(path) != FACADE}
    while free := {name for name, needs in waiting.items() if not needs & set(waiting)}:
        waiting = {name: needs for name, needs in waiting.items() if name not in free}
    assert not waiting


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_brainscale_is_read_in_two_places(path: Path) -> None:
    allowed = room(name_of(path)) in READERS_OF_BRAINSCALE | USERS
    assert allowed or "brainscale" not in imports(path)


@pytest.mark.parametrize("path", [path for path in FILES if room(name_of(path)) in PURE], ids=name_of)
def test_steps_know_jax_alone(path: Path) -> None:
    assert not imports(path) & {"brainscale", "brainstate", "brainpy"}


def test_the_package_needs_no_test_library() -> None:
    code = "import sys, pure_batching; print(*sorted({'hypothesis', 'pytest'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=300
    )
    assert done.stdout.split() == []
