"""What a traced module must be like before it becomes a program."""

import jax
import jax.numpy as jnp

from .._program import Program
from .._tree import named_leaves
from ..errors import CaptureError, StrategyError
from .assembly import Compiled, FoundGroup
from .pieces import spec_of_var


def check_unchanged(compiled: Compiled, module: str) -> None:
    """A state must come out of a step as it went in, or no scan could carry it."""
    _, outs = compiled.state_vars()
    for path in compiled.order:
        for (name, spec), var in zip(named_leaves(compiled.specs[path], path), outs[path], strict=True):
            if spec_of_var(var).shape != tuple(jax.tree.leaves(spec)[0].shape):
                raise CaptureError(
                    f"{module}: {name}",
                    got=f"shape {spec_of_var(var).shape} after one step",
                    expected=f"{tuple(jax.tree.leaves(spec)[0].shape)}, the shape before",
                    repair="Initialise the state for one sample with the shape that update() gives it.",
                )


def check_dtypes(compiled: Compiled, module: str) -> None:
    """Raise CaptureError for a hidden state that is not made of real numbers.

    A trace is linear in `dh/dw`, and its largest entry is found by its order. A complex state would need the conjugates
    that `jax.grad` takes, and magnitudes.
    """
    states = [(path, var) for group in compiled.groups for path, var in zip(group.paths, group.outvars, strict=True)]
    for path, var in states:
        dtype = spec_of_var(var).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise CaptureError(
                f"{module}: {path}",
                got=f"a hidden state of dtype {dtype}",
                expected="real numbers, which have a derivative",
                repair="Keep the real and the imaginary part as two states, as brainscale.nn.LRUCell does."
                if jnp.issubdtype(dtype, jnp.complexfloating)
                else "Keep it in a brainstate.ShortTermState, or leave it out (ref_var=False in brainpy.state).",
            )


def check_reach(compiled: Compiled, module: str) -> None:
    """What a weight makes has the shape of the hidden states that it reaches, or is broadcast to it."""
    shapes = {group.name: _shape_of_one(group) for group in compiled.groups}
    for relation in compiled.relations:
        for name, _ in relation.links:
            if not _is_broadcast(spec_of_var(relation.y).shape, shapes[name]):
                raise CaptureError(
                    f"{module}: {relation.weight}",
                    got=f"an output of shape {spec_of_var(relation.y).shape} in front of {name}",
                    expected=f"one that broadcasts to {shapes[name]}, the shape of the hidden state",
                    repair="Give the hidden state the shape of the weight's output, axes of length one included.",
                )


def _shape_of_one(group: FoundGroup) -> tuple[int, ...]:
    """Of one state of a group; several in one array lie along its last axis."""
    shape = tuple(spec_of_var(group.outvars[0]).shape)
    return shape[:-1] if group.widths[0] else shape


def _is_broadcast(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return jnp.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def check_batched(compiled: Compiled, single: Program, batch_size: int, module: str) -> None:
    """Every output and state must come out with the batch axis where it is expected."""
    _, outs = compiled.state_vars()
    found = [(f"output{name}", tuple(spec.shape)) for name, spec in named_leaves(compiled.output, "")]
    wanted = [(batch_size, *spec.shape) for spec in jax.tree.leaves(single.output)]
    for path in compiled.order:
        found += [(path, spec_of_var(var).shape) for var in outs[path]]
        wanted += [tuple(spec.shape) for spec in jax.tree.leaves(compiled.specs[path])]
    for (name, got), want in zip(found, wanted, strict=True):
        if got != want:
            raise StrategyError(
                f"{module}: {name}",
                got=f"shape {got} when traced with {batch_size} samples",
                expected=f"{want}",
                repair="The module's own code does not carry a batch axis here; use pb.vmap.",
            )
