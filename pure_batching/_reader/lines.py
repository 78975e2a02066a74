"""The source line of an equation in the user's own code."""

import functools
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from jax.extend.source_info_util import summarize

from .jaxprs import JaxprEqn

_OWN = Path(__file__).parents[1]

# Lines of tools are left out; lines of the libraries of layers are told beside the user's own.
_TOOLS = ("jax", "jaxlib", "brainunit", "saiunit", "equinox", "chex", "numpy")
_LAYERS = ("brainstate", "brainscale", "brainpy", "brainpy_state", "braintools", "braintrace", "brainevent")

_FRAME = re.compile(r"(?P<file>.*?):(?P<line>\d+)(?::\d+)? \((?P<function>.*)\)")


class Frame(NamedTuple):
    """One line of a traceback."""

    file: str
    line: str
    function: str


def place(eqn: JaxprEqn) -> str:
    """Write the line of the user's code that made an equation, such as `net.py:33 (Net.update)`.

    Where the user's code calls a layer of a library, the layer's own line comes first. "" where no line is known.
    """
    lines = summarize(eqn.source_info, num_frames=200).splitlines()
    found = [match for line in reversed(lines) if (match := _FRAME.fullmatch(line))]
    frames = [Frame(match["file"], match["line"], match["function"]) for match in found]
    own = next((i for i, frame in enumerate(frames) if _is_in(frame.file, str(_OWN))), len(frames))
    inside = [frame for frame in frames[:own] if not _folder_of(frame.file, _TOOLS)]
    start = next((i for i, frame in enumerate(inside) if not is_of_library(frame.file)), len(inside))
    layer, user = _of_layer(inside[:start]), next(iter(inside[start:]), None)
    return ", called at ".join(_text(frame) for frame in (layer, user) if frame is not None)


def _of_layer(frames: list[Frame]) -> Frame | None:
    """Find the line in the innermost `update` of a layer, or else the innermost line."""
    updates = [frame for frame in frames if frame.function.endswith(".update")]
    return next(iter(updates or frames), None)


def is_of_library(file: str) -> bool:
    """Whether a file belongs to JAX, BrainScale or what they are built on."""
    return _folder_of(file, (*_TOOLS, *_LAYERS)) is not None


def function_file(jaxpr: Any) -> str:
    """The file of the function that a jaxpr was traced from, "" where it is not known."""
    return getattr(getattr(jaxpr, "debug_info", None), "func_filename", None) or ""


def _text(frame: Frame) -> str:
    folder = _folder_of(frame.file, _LAYERS)
    file = Path(frame.file).name if folder is None else Path(frame.file).relative_to(Path(folder).parent).as_posix()
    return f"{file}:{frame.line} ({frame.function.rsplit('<locals>.', maxsplit=1)[-1]})"


@functools.cache
def _folder_of(file: str, packages: tuple[str, ...]) -> str | None:
    folders = (_folder(name) for name in packages if name in sys.modules)
    return next((folder for folder in folders if folder is not None and _is_in(file, folder)), None)


@functools.cache
def _folder(package: str) -> str | None:
    file = getattr(sys.modules[package], "__file__", None)
    return None if file is None else str(Path(file).parent)


def _is_in(file: str, folder: str) -> bool:
    return Path(folder) in Path(file).parents
