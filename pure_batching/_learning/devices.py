"""The devices on which the arguments of a call lie.

A strategy that has devices of its own gets what lies elsewhere copied to them. Every other strategy runs where its
arguments lie, which is then the same for all that were put on devices; what was put on none goes along.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax

from .._strategies.base import Strategy
from .._tree import Tree, is_placed, named_leaves
from .._wording import listed
from ..errors import DeviceError


def settled(strategy: Strategy, names: Sequence[str], args: tuple[Tree, ...], axes: Any) -> tuple[Tree, ...]:
    """The arguments where the strategy can run them. Traced arrays are left to JAX, which alone knows where they lie.

    Args:
      strategy: what runs them.
      names: of the arguments, for an error.
      args: trees of arrays.
      axes: where the samples lie in each of them.

    Raises:
      DeviceError: the strategy has no devices, and two arguments were put on different ones.
    """
    if strategy.own_mesh is not None:
        return strategy.placed(args, axes)
    homes = [_devices(leaf) for leaf in jax.tree.leaves(args)]
    put = [home for home in homes if home is not None]
    if any(home != put[0] for home in put):
        raise _apart(names, args)
    return args


def _devices(leaf: Any) -> Any:
    """The devices that an array was put on; None for an array that JAX may take along to others."""
    return leaf.sharding.device_set if is_placed(leaf) else None


def _apart(names: Sequence[str], args: tuple[Tree, ...]) -> DeviceError:
    leaves = [one for name, arg in zip(names, args, strict=True) for one in named_leaves(arg, name)]
    put = [(_as_given(name), home) for name, tree in leaves for home in map(_devices, jax.tree.leaves(tree)) if home]
    name, home = put[0]
    other, elsewhere = next(one for one in put if one[1] != home)
    return DeviceError(
        other,
        got=f"an array on {_text(elsewhere)}",
        expected=f"one on {_text(home)}, where {name} lies",
        repair="Put both on the same devices by jax.device_put. A learner of pb.sharded does so by itself.",
    )


def _as_given(name: str) -> str:
    """The name of a leaf as a caller knows it, who gives inputs, targets and flags one by one."""
    return re.sub(r"^steps\.(\w+)(\.changing|\.constant)?", r"\1", name)


def _text(devices: Any) -> str:
    """The numbers of devices: `cpu:0, cpu:1`."""
    return listed([f"{device.platform}:{device.id}" for device in sorted(devices, key=lambda device: device.id)])
