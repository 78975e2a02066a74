"""The order of the modules: a reader meets each before what is built from it."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pure_batching
from pure_batching import testing

PACKAGE = Path(pure_batching.__file__).parent
ROOT = Path(__file__).parents[1]

# From the bottom up; a folder is one room, whose own files may not import each other in a circle.
ORDER = (
    *(
        "errors",
        "_wording",
        "_options",
        "_tree",
        "_keys",
        "_numerics",
        "_precision",
        "_conform",
        "_relation",
        "_program",
        "_reader",
        "_sources",
        "_algorithms",
        "rules",
    ),
    *(
        "_strategies",
        "_learning",
        "_capture",
        "_explain",
        "_cost",
        "_independence",
        "_batching",
        "_carries",
        "_slot_table",
        "_slot_carries",
        "_slot_arguments",
        "_slots",
        "_finite",
        "_saved",
        "_bridge",
        "testing",
    ),
    *("_tutorial", "__main__"),
)
FACADE = "__init__"

# Who may know BrainScale. The main job and the testing kit build its modules, as any user does.
READERS_OF_BRAINSCALE = {"_sources", "_bridge"}
USERS = {"_tutorial", "__main__"}

# Packages of modules, states and units.
BRAINS = {"brainstate", "brainscale", "brainpy", "braintools", "braintrace", "brainevent", "brainunit"}

# The one file besides that may know units.
OF_UNITS = "_tree"

# The one file that may know how JAX keeps its programs.
OF_JAX = "_reader.jaxprs"

PUBLIC = {
    *("capture", "capture_function", "Learner", "Carry", "read_states", "write_states", "from_native", "to_native"),
    *(
        "Algorithm",
        "ES_D_RTRL",
        "D_RTRL",
        "Hybrid",
        "RTRL",
        "EProp",
        "OTTT",
        "BPTT",
        "loop",
        "manual",
        "chunked",
        "sharded",
        "vmap",
        "PureBatchingError",
    ),
    *("sequence_grad", "Aux", "sample_norms", "clipped_grad", "audit", "Audit", "SampleCouplingError"),
    *("explain", "Explanation", "cost", "Cost", "online", "check_finite", "check_saved"),
    *("Slots", "SlotTable", "SlotAux"),
    *("stack", "unstack", "concat", "split", "gather", "scatter", "permute", "apart"),
}

# What the tests, the examples and the main job need, and nobody else.
EXTRAS = {"hypothesis", "pytest", "matplotlib", "rich", "optax", "braintrace"}

FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`_strategies/vmap.py` -> `_strategies.vmap`; a package goes by its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


def imports(path: Path) -> set[str]:
    """What a file imports when it runs: names of this package's modules and of others' top packages."""
    found: set[str] = set()
    for node in _running(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".", maxsplit=1)[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.update(_imported_from(node, path))
    return found


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, but those that type checkers alone see."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _running(node)


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
def test_brainscale_is_known_to_sources_and_the_bridge(path: Path) -> None:
    """The main job and the testing kit build its modules, as any user does."""
    allowed = room(name_of(path)) in READERS_OF_BRAINSCALE | USERS | {"testing"}
    units = {"brainunit"} if name_of(path) == OF_UNITS else set()
    assert allowed or imports(path) & BRAINS <= units


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_one_file_knows_how_jax_keeps_programs(path: Path) -> None:
    assert (name_of(path) == OF_JAX) == ("jax.extend.core" in re.sub(r'""".*?"""', "", path.read_text(), flags=re.S))


def test_importing_the_package_loads_no_extra() -> None:
    """BrainScale's own dependencies load some of them; what counts is what comes on top."""
    code = (
        "import sys, brainscale, brainstate, braintools, brainunit, chex, equinox, jax; before = set(sys.modules)\n"
        f"import pure_batching; print(*sorted(set({sorted(EXTRAS)}) & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=300
    )
    assert done.stdout.split() == []


def test_importing_the_package_does_not_import_brainscale() -> None:
    """It takes two seconds, and plain functions and modules of other packages do not need it."""
    code = "import sys, pure_batching; print(*{'brainscale', 'braintools', 'brainpy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=300
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_extras_are_for_the_main_job_and_for_testing(path: Path) -> None:
    allowed = EXTRAS if room(name_of(path)) in USERS else {"hypothesis"} if room(name_of(path)) == "testing" else set()
    assert imports(path) & EXTRAS <= allowed


def test_public_names_are_those_promised() -> None:
    names = {name: value for name, value in vars(pure_batching).items() if not name.startswith("_")}
    assert {name for name, value in names.items() if not inspect.ismodule(value)} == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_have_docstrings(name: str) -> None:
    assert (vars(pure_batching)[name].__doc__ or "").strip()


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "examples").glob("*.py"))], ids=lambda p: p.name)
def test_pages_use_public_names_alone(path: Path) -> None:
    used = set(re.findall(r"\bpb\.(\w+)", path.read_text(encoding="utf-8")))
    assert used
    assert used <= PUBLIC | {"errors"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_are_short_and_check_what_they_print(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text)))


def test_the_page_of_rules_shows_the_example() -> None:
    """The class on the page is the one that CI runs."""
    example = (ROOT / "examples/own_rule.py").read_text(encoding="utf-8")
    shown = example[example.index("class Traces") : example.index("def step(params")]
    page = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    assert shown.strip() in page
    lines = dict(re.findall(r"^params\.(\w+) .* own_rule\.py:(\d+) ", page, re.MULTILINE))
    assert sorted(lines) == ["out", "u", "w"]
    for name, line in lines.items():
        assert f'params["{name}"]' in example.splitlines()[int(line) - 1]


ARCHITECTURE = ROOT / "docs/architecture.md"


def test_the_page_of_architecture_shows_the_floors() -> None:
    """From the top down, as they lie on each other."""
    house = ARCHITECTURE.read_text(encoding="utf-8").split("## The house")[1].split("```")[1]
    shown = [re.findall(r"\w+(?=\.py|/)", line.split("  ")[0]) for line in house.splitlines()]
    assert [name for names in shown for name in names] == [*reversed(ORDER)]


def test_the_page_of_architecture_names_files_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)`", ARCHITECTURE.read_text(encoding="utf-8"))
    assert len(named) > 20
    known = [path.as_posix() for path in (*FILES, *ROOT.glob("*_tests/*.py"), *ROOT.glob("tests/*.py"))]
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in known)] == []


def links_of(page: Path) -> set[str]:
    """Where a page of the repository's root links to in the repository."""
    return set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_pages_of_the_root_link_to_what_is_there(name: str) -> None:
    """The site's own build looks after the pages of the site."""
    links = links_of(ROOT / name)
    assert links
    assert {link for link in links if not (ROOT / link).is_file()} == set()


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 8000


def test_the_readme_has_no_link_where_there_are_no_files_beside_it() -> None:
    """The wheel's description names the files that the README links to."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    described = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert described["fragments"] == [{"path": "README.md"}]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in described["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert "](" not in text
    assert {name for name in links_of(ROOT / "README.md") if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("module", [pure_batching, pure_batching.rules, testing], ids=lambda module: module.__name__)
def test_the_reference_has_every_public_name(module: ModuleType) -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    shown = re.findall(rf"^::: {module.__name__}\.(\w+)$", pages, re.MULTILINE)
    loaded_when_used = {"SessionMachine", "BatchMachine"} if module is testing else set()
    found = {name: getattr(module, name) for name in {*vars(module), *loaded_when_used}}
    public = {name for name, value in found.items() if not (name.startswith("_") or inspect.ismodule(value))}
    others = {"errors", "laws", "strategies"}, {*vars(pure_batching.errors), "Any", "TYPE_CHECKING"}
    assert sorted({*shown} - others[0]) == sorted(public - others[1])
    assert len(shown) == len(set(shown))


def test_the_version_is_that_of_the_citation_and_of_the_changes() -> None:
    version = pure_batching.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_the_wheel_is_typed() -> None:
    """It holds the whole folder, with the mark of a typed package in it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["pure_batching"]}
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("ending", ["-m pytest", "-m pure_batching"])
def test_ci_runs_the_commands_of_the_readme(ending: str) -> None:
    """There is one such line, it sets everything up by itself, and CI takes it from there."""
    assert f"$(readme_command '{ending}')" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (command,) = [line for line in lines if line.endswith(ending)]
    assert lines[lines.index(command) - 1] == "```sh"
    assert command.startswith("python3 -m venv .venv && ")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-parity.lock"])
def test_locks_hold_every_dependency(lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {re.split(r"[<>=]", dependency)[0] for dependency in project["dependencies"]}
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / lock).read_text(encoding="utf-8"), re.MULTILINE)
    assert wanted <= set(pinned)
