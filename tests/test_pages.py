"""The programs of the pages: what a page says is printed is what is printed."""

import ast
import contextlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


blocks, hooks, pictures = load("_blocks"), load("_hooks"), load("_pictures")


def page(folder: Path, *programs: str) -> Path:
    path = folder / "page.md"
    path.write_text("# A page\n\n" + "\n".join(f"Words.\n\n```python\n{code}\n```\n" for code in programs))
    return path


@pytest.mark.parametrize(
    "code",
    [
        "print(1 + 1)  # 2",
        "print(1 + 1)\n# 2",
        "for i in range(2):\n    print(i)\n# 0\n# 1",
        "for i in range(2):\n    print('several words')\n# several ...",
        "print('a   b')  # a b",
        "print(1)\n\n# A comment that is no output.",
        "x = 2  # no output",
    ],
)
def test_a_true_page_runs(code: str, tmp_path: Path) -> None:
    blocks.run_page(page(tmp_path, code))


@pytest.mark.parametrize(
    "code",
    [
        "print(1 + 1)  # 3",
        "print(1 + 1)\n# 3",
        "for i in range(2):\n    print(i)\n# 0",
        "try:\n    raise ValueError('one')\nexcept ValueError as error:\n    print(error)\n# other",
        "if False:\n    print(1)\n# 1",
    ],
)
def test_a_page_that_says_something_else_is_found(code: str, tmp_path: Path) -> None:
    with pytest.raises(blocks.PrintError, match="the page says"):
        blocks.run_page(page(tmp_path, code))


def test_blocks_are_one_program_and_errors_name_the_line_of_the_page(tmp_path: Path) -> None:
    made = page(tmp_path, "x = 1", "y = x", "y / 0")
    with pytest.raises(ZeroDivisionError) as caught:
        blocks.run_page(made)
    assert caught.traceback[-1].lineno + 1 == made.read_text().splitlines().index("y / 0") + 1
    assert str(caught.traceback[-1].path).endswith("page.md")


def test_other_code_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```py\n1 / 0\n```\n\n```sh\nfalse\n```\n")
    assert blocks.program(path) == ""


@pytest.mark.parametrize("says", ["7\n", "a\n...\n"])
def test_a_command_is_run_and_what_it_prints_is_compared(says: str, tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"# A page\n\n```console\n$ python -c 'print(\"a\", 7)'\na 7\n{says}```\n")
    (command,) = blocks.commands(path)
    assert command == (4, ["-c", 'print("a", 7)'], f"a 7\n{says}")
    with pytest.raises(blocks.PrintError, match=r"page\.md:4: the page says\na 7\n[7a]\n(?s:.*)was printed:\na 7"):
        blocks.run_page(path)
    path.write_text(path.read_text().replace(f"a 7\n{says}", "a ...\n"))
    blocks.run_page(path)


def test_a_command_that_fails_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("```console\n$ python -c 'print(7); raise SystemExit(3)'\n7\n```\n")
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        blocks.run_page(path)


@pytest.mark.parametrize(("kind", "failures"), [("console", 1), ("sh", 0)])
def test_a_page_of_commands_alone_is_looked_at(
    kind: str, failures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{kind}\n$ python -c '7'\nwhat is not printed\n```\n")
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    assert blocks.main([str(page), "--jobs", "1"]) == failures


@pytest.mark.parametrize(("spread", "devices"), [("jax.make_mesh((2,), 'b')", 2), ("jax.vmap", 1)])
def test_a_page_that_spreads_samples_has_two_devices(
    spread: str, devices: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import os\n\nprint(os.environ['XLA_FLAGS'])  # --xla_force_host_platform_device_count={devices}\n"
    made = page(tmp_path, f"{code}\n\ndef unused():\n    {spread}")
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert blocks.main([str(made), "--jobs", "1"]) == 0


def test_every_page_is_looked_at() -> None:
    assert {path.name for path in blocks.PAGES} > {"README.md", "CONTRIBUTING.md", "start.md", "masks.md", "index.md"}


def of_site(name: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=name))


def test_the_reference_links_the_errors_of_this_package() -> None:
    """Those that have no link yet, one by one; others' errors stay as they are."""
    html = "<code>(ShapeError, UnitError)</code> <code>KeyError</code> <code>pb.ShapeError</code>"
    link = '<a href="errors.html#pure_batching.errors.{0}">{0}</a>'.format
    linked = html.replace("(ShapeError, UnitError)", f"{link('ShapeError')}, {link('UnitError')}")
    assert hooks.on_page_content(html, page=of_site("api/capture.md")) == linked
    assert hooks.on_page_content(html, page=of_site("start.md")) == html


def test_the_page_of_examples_lists_and_shows_each() -> None:
    page = hooks.on_page_markdown("# Examples", page=of_site("examples.md"))
    for example in (ROOT / "examples").glob("*.py"):
        assert page.count(f"- [{example.stem}](#{example.stem}): ") == page.count(f"\n## {example.stem}\n") == 1
        assert example.read_text(encoding="utf-8").splitlines()[-1] in page
    assert sorted(re.findall(r"\]\(pictures/(\w+)\.png\)", page)) == pictures.drawing()


def test_pictures_are_those_that_the_examples_draw() -> None:
    drawing = ["decay_sweep", "evidence", "sessions", "vowels"]
    assert pictures.drawing() == drawing
    assert [name for name in drawing if not (ROOT / f"docs/pictures/{name}.png").is_file()] == []
    (said,) = re.findall(
        r"^(`.*`) draw a picture", (ROOT / "docs/examples.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert re.findall(r"\w+(?=`)", said) == drawing


DRAWS = """
import os, pathlib
assert os.environ["MPLBACKEND"] == "Agg"
pathlib.Path("build").mkdir(exist_ok=True)
pathlib.Path("build/one.png").write_text("new")
"""


@pytest.mark.parametrize(("code", "shown"), [(DRAWS, "new"), (f"{DRAWS}\nraise SystemExit(1)", "old")])
def test_a_picture_is_taken_from_an_example_that_succeeds(code: str, shown: str, tmp_path: Path) -> None:
    for folder in ("examples", "docs/pictures", "build"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "examples/one.py").write_text(code)
    (tmp_path / "examples/other.py").write_text("1 / 0")
    picture = tmp_path / "docs/pictures/one.png"
    picture.write_text("old")
    assert pictures.drawing(tmp_path) == ["one"]
    with contextlib.nullcontext() if shown == "new" else pytest.raises(subprocess.CalledProcessError):
        pictures.draw("one", tmp_path)
    assert picture.read_text() == shown


def test_a_picture_of_an_earlier_run_is_not_taken(tmp_path: Path) -> None:
    for folder in ("examples", "docs/pictures", "build"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "examples/one.py").write_text("pass")
    (tmp_path / "build/one.png").write_text("old")
    with pytest.raises(FileNotFoundError):
        pictures.draw("one", tmp_path)


# Those that the package does not ask for by itself, but one that it asks for does: brainscale needs brainpy.
DEPENDENCIES = {"brainpy", "pure_batching", *sys.stdlib_module_names}


def imported(code: str) -> set[str]:
    """The packages that a program imports."""
    nodes = [*ast.walk(ast.parse(code))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", blocks.PAGES, ids=lambda path: path.stem)
def test_a_page_says_how_to_install_what_it_imports(path: Path) -> None:
    """Unless the package itself brings it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = DEPENDENCIES | {re.split(r"[<>=]", dependency)[0] for dependency in project["dependencies"]}
    commands = " ".join(re.findall(r"pip install (.*)", path.read_text(encoding="utf-8")))
    assert {name for name in imported(blocks.program(path)) - brought if name not in commands} == set()


def test_pages_of_the_root_lead_to_pages_of_the_site() -> None:
    for name, source in hooks.OF_ROOT.items():
        page = hooks.on_page_markdown("", page=of_site(name))
        assert "](docs/" in (ROOT / source).read_text(encoding="utf-8") or name == "changelog.md"
        assert "](docs/" not in page
        assert page.startswith("# ")
