"""What the site is given besides its pages: the files of the repository's root, and the source of every example."""

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Pages whose text stands in the root of the repository, where people look for it.
OF_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def _errors() -> set[str]:
    """The names of the package's errors, wherever it is installed; it is not imported."""
    (folder,) = importlib.util.find_spec("pure_batching").submodule_search_locations
    tree = ast.parse((Path(folder) / "errors.py").read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


ERRORS = _errors()


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page."""
    name = page.file.src_uri
    if name in OF_ROOT:
        return (ROOT / OF_ROOT[name]).read_text(encoding="utf-8").replace("](docs/", "](")
    if name == "examples.md":
        examples = sorted((ROOT / "examples").glob("*.py"))
        return "\n".join([markdown, *map(_line, examples), *map(_section, examples)])
    return markdown


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """The content of a page: in the reference, the errors that a function raises lead to what is said of each."""
    return _RAISED.sub(_linked, html) if page.file.src_uri.startswith("api/") else html


# The type of an error, or of several, as the reference names it where it has no link yet.
_RAISED = re.compile(r"(?<=<code>)\(?\w+Error(?:, \w+Error)*\)?(?=</code>)")


def _linked(raised: re.Match[str]) -> str:
    return re.sub(r"\w+", lambda name: _link(name[0]), raised[0].strip("()"))


def _link(name: str) -> str:
    return f'<a href="errors.html#pure_batching.errors.{name}">{name}</a>' if name in ERRORS else name


def _about(path: Path) -> str:
    """What an example says of itself."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def _line(path: Path) -> str:
    """A line of the list of examples."""
    return f"- [{path.stem}](#{path.stem}): {_about(path).splitlines()[0]}"


def _picture(path: Path) -> str:
    name = f"pictures/{path.stem}.png"
    if not (ROOT / "docs" / name).is_file():
        return ""
    return f"\n![What the example draws]({name})\n\n`python examples/{path.name}` draws it.\n"


def _section(path: Path) -> str:
    """A heading, what the example says of itself, its picture where there is one, and its code."""
    code = path.read_text(encoding="utf-8")
    after = ast.parse(code).body[0].end_lineno or 0
    rest = "\n".join(code.splitlines()[after:]).strip()
    return f"\n## {path.stem}\n\n{_about(path)}\n{_picture(path)}\n```python\n{rest}\n```\n"
