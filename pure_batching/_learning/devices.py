"""The devices on which the arguments of a call lie.

A strategy that has devices of its own gets what lies elsewhere copied to them. Every other strategy runs where its
arguments lie, which is then the same for all that were put on devices; what was put on none goes along.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from .._strategies.base import Strategy
from .._tree import Tree, is_key, is_placed, named_leaves
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
    put = [leaf for leaf in jax.tree.leaves(args) if is_placed(leaf)]
    if any(map(_may_be_mistyped, put)):
        args = jax.tree.map(_retyped, args)
    if strategy.own_mesh is not None:
        return strategy.placed(args, axes)
    if any(leaf.sharding.device_set != put[0].sharding.device_set for leaf in put):
        raise _apart(names, args)
    return args


def _may_be_mistyped(leaf: jax.Array) -> bool:
    """Whether the type of an array on one device may name a mesh that it left.

    `jax.device_put(array, device)` forgets to change it; that of random keys does not show.
    """
    is_named = is_key(leaf.dtype) or not jax.typeof(leaf).sharding.mesh.empty
    return is_named and isinstance(leaf.sharding, SingleDeviceSharding)


def _retyped(leaf: Any) -> Any:
    return leaf.addressable_data(0) if is_placed(leaf) and _may_be_mistyped(leaf) else leaf


def _devices(leaf: Any) -> Any:
    """The devices that an array was put on; None for one that was put on none."""
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
