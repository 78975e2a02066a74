"""The path of a state: the attributes, keys and indices that lead to it, in the same words in every process."""

import re
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

# A key of a dictionary that stands in a path as it is. Any other, such as the text of an object with its address in
# memory, is told by its place in the dictionary.
_NAME = re.compile(r"[^.<>{}()\n]{1,40}")


def path_of(module: Any, keys: Iterable[Hashable]) -> str:
    """`("syn", "comm", "weight_op")` -> `"syn.comm.weight_op"`.

    Args:
      module: where the path begins.
      keys: the attributes, keys of dictionaries and indices that lead to the state.
    """
    names, node = [], module
    for key in keys:
        names.append(_name(node, key))
        node = _child(node, key)
    return ".".join(names)


def _name(node: Any, key: Hashable) -> str:
    if not isinstance(node, Mapping) or _NAME.fullmatch(str(key)):
        return str(key)
    return str(next(place for place, other in enumerate(node) if other == key or str(other) == str(key)))


def _child(node: Any, key: Any) -> Any:
    if isinstance(node, Mapping):
        return next((value for other, value in node.items() if other == key or str(other) == str(key)), None)
    if isinstance(node, (list, tuple)) and str(key).isdigit():
        return node[int(key)]
    return getattr(node, str(key), None)
