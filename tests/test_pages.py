"""The programs of the pages: what a page says is printed is what is printed."""

import importlib.util
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


blocks, hooks = load("_blocks"), load("_hooks")


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
    for picture in ("vowels", "sessions", "decay_sweep"):
        assert f"](pictures/{picture}.png)" in page


def test_pages_of_the_root_lead_to_pages_of_the_site() -> None:
    for name, source in hooks.OF_ROOT.items():
        page = hooks.on_page_markdown("", page=of_site(name))
        assert "](docs/" in (ROOT / source).read_text(encoding="utf-8") or name == "changelog.md"
        assert "](docs/" not in page
        assert page.startswith("# ")
