"""What the site is given besides its pages: the files of the repository's root, and the source of every example."""

import ast
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Pages whose text stands in the root of the repository, where people look for it.
OF_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The text of a page."""
    name = page.file.src_uri
    if name in OF_ROOT:
        return (ROOT / OF_ROOT[name]).read_text(encoding="utf-8").replace("](docs/", "](")
    if name == "examples.md":
        return "\n".join([markdown, *map(_section, sorted((ROOT / "examples").glob("*.py")))])
    return markdown


def _section(path: Path) -> str:
    """A heading, what the example says of itself, and its code."""
    code = path.read_text(encoding="utf-8")
    tree = ast.parse(code)
    after = tree.body[0].end_lineno or 0
    rest = "\n".join(code.splitlines()[after:]).strip()
    return f"\n## {path.stem}\n\n{ast.get_docstring(tree)}\n\n```python\n{rest}\n```\n"
