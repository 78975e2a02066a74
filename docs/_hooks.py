"""What the site is given besides its pages: the source of every example."""

import ast
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Add every file of `examples/` to the page of examples."""
    if page.file.src_uri != "examples.md":
        return markdown
    return "\n".join([markdown, *(_section(path) for path in sorted(EXAMPLES.glob("*.py")))])


def _section(path: Path) -> str:
    """A heading, what the example says of itself, and its code."""
    code = path.read_text(encoding="utf-8")
    tree = ast.parse(code)
    after = tree.body[0].end_lineno or 0
    rest = "\n".join(code.splitlines()[after:]).strip()
    return f"\n## {path.stem}\n\n{ast.get_docstring(tree)}\n\n```python\n{rest}\n```\n"
