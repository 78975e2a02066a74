"""Draws the pictures of the page of examples anew: `python docs/_pictures.py [NAME ...]`, all of them without a name.

An example that has a picture writes it to `build/`. It runs here, and the picture is copied to `docs/pictures/`.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def drawing(root: Path = ROOT) -> list[str]:
    """The names of the examples that draw a picture."""
    examples = sorted((root / "examples").glob("*.py"))
    return [path.stem for path in examples if f'"build/{path.stem}.png"' in path.read_text(encoding="utf-8")]


def draw(name: str, root: Path = ROOT) -> None:
    """Run an example without a display, and take its picture.

    Raises:
      CalledProcessError: the example fails, and the picture stays as it was.
      FileNotFoundError: it draws nothing, likewise.
    """
    picture = root / f"build/{name}.png"
    picture.unlink(missing_ok=True)
    command = [sys.executable, f"examples/{name}.py"]
    subprocess.run(command, check=True, cwd=root, env=os.environ | {"MPLBACKEND": "Agg"})
    shutil.copy(picture, root / "docs/pictures")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(drawing())}")
    for name in parser.parse_args(arguments).names or drawing():
        draw(name)


if __name__ == "__main__":
    main()
