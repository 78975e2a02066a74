"""What a traced step must be like before it becomes a program, and a batched program beside that of one sample."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._keys import MAPPABLE, is_mappable
from .._program import Program
from .._tree import Tree, is_key, named_leaves
from ..errors import CaptureError, StrategyError
from .jaxprs import Jaxpr, JaxprEqn, Literal, inner
from .lines import place
from .loops import bodies, way_to
from .pieces import spec_of_var
from .step import TracedStep


def check_step(traced: TracedStep, name: str) -> None:
    """Raise CaptureError for a step that could not be carried on, or that writes a trainable value.

    Args:
      traced: the step.
      name: of what was captured.
    """
    _check_keys(inner(traced.jaxpr)[0], name)
    for leaf, path, spec, before, after in _rows(traced):
        if spec_of_var(after).shape != tuple(spec.shape):
            raise CaptureError(
                f"{name}: {leaf}",
                got=f"shape {spec_of_var(after).shape} after one step",
                expected=f"{tuple(spec.shape)}, the shape before",
                repair="Initialise the state for one sample with the shape that update() gives it.",
            )
        if traced.kinds[path] == "hidden":
            _check_dtype(spec_of_var(after).dtype, f"{name}: {leaf}")
        if not _is_same_type(spec_of_var(after).dtype, spec.dtype):
            raise CaptureError(
                f"{name}: {leaf}",
                got=f"{spec_of_var(after).dtype} after one step",
                expected=f"{spec.dtype}, the dtype before",
                repair="Initialise the state with the dtype that update() gives it, or convert the result in update().",
            )
        if traced.kinds[path] == "param" and before is not after:
            raise CaptureError(
                f"{name}: {leaf}",
                got="a trainable value that the step writes",
                expected="one that it only reads",
                repair="Keep what changes from step to step in a HiddenState or a ShortTermState.",
            )


def _check_keys(jaxpr: Jaxpr, name: str) -> None:
    """Raise CaptureError for random keys of which a batch does not draw what each sample draws alone."""
    given = [var for var in (*jaxpr.invars, *jaxpr.constvars) if _is_unmappable(var)]
    made = way_to(jaxpr, lambda eqn: eqn.primitive.name == "rng_bit_generator" or any(map(_is_unmappable, eqn.outvars)))
    if not given and not made:
        return
    line = place(made[0]) if made else ""
    raise CaptureError(
        name,
        got=f"random keys of another implementation{f' at {line}' if line else ''}",
        expected=f"keys of {MAPPABLE}: of others, JAX draws for all samples of a batch from the key of the first",
        repair=f"Make them by jax.random.key(seed, impl={MAPPABLE!r}), or leave out impl=.",
    )


def _is_unmappable(var: Any) -> bool:
    dtype = spec_of_var(var).dtype
    return is_key(dtype) and not is_mappable(dtype)


def _rows(traced: TracedStep) -> list[tuple[str, str, Any, Any, Any]]:
    """For each array of each state: its name, path and specification, and its variables before and after the step."""
    before, after = traced.variables(inner(traced.jaxpr)[0])
    return [
        (name, path, _array(leaf), old, new)
        for path, spec in traced.states.items()
        for (name, leaf), old, new in zip(named_leaves(spec, path), before[path], after[path], strict=True)
    ]


def _array(leaf: Tree) -> Any:
    (array,) = jax.tree.leaves(leaf)
    return array


def _is_same_type(after: Any, before: Any) -> bool:
    """Whether a state keeps its dtype; a counter may come back with 64 bits, which JAX gives it with x64."""
    return after == before or all(jnp.issubdtype(dtype, jnp.integer) for dtype in (after, before))


def _check_dtype(dtype: Any, where: str) -> None:
    """Raise CaptureError for a hidden state without a derivative, or with one that no learning rule is written for."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        repair = "Keep its real and its imaginary part as two hidden states, as brainscale.nn.LRUCell does."
    elif not jnp.issubdtype(dtype, jnp.floating):
        repair = "Keep it in a brainstate.ShortTermState, or leave it out (ref_var=False in brainpy.state)."
    else:
        return
    raise CaptureError(where, got=f"a hidden state of dtype {dtype}", expected="real numbers", repair=repair)


def check_batched(traced: TracedStep, single: Program, batch_size: int, name: str) -> None:
    """Raise StrategyError unless every output and state comes out with the batch axis where it is expected."""
    found = [(f"output{leaf}", tuple(spec.shape)) for leaf, spec in named_leaves(traced.output, "")]
    wanted = [(batch_size, *spec.shape) for spec in jax.tree.leaves(single.output)]
    found += [(path, tuple(spec_of_var(after).shape)) for _, path, _, _, after in _rows(traced)]
    wanted += [tuple(spec.shape) for _, _, spec, _, _ in _rows(traced)]
    for (leaf, got), want in zip(found, wanted, strict=True):
        if got != want:
            raise StrategyError(
                f"{name}: {leaf}",
                got=f"shape {got} when traced with {batch_size} samples",
                expected=f"{want}",
                repair="The module's own code does not carry a batch axis here; use pb.vmap.",
            )


def check_numbers(one: TracedStep, other: TracedStep, batch_size: int, name: str) -> None:
    """Raise StrategyError where the step of a batch holds a number that is made of its number of samples.

    `x / x.shape[0]` divides by the number of features in the step of one sample, and by that of samples here.

    Args:
      one: the step of a batch.
      other: that of a batch with one sample more.
      batch_size: of the first.
      name: of what was captured.
    """
    (jaxpr, consts), (larger_jaxpr, larger_consts) = inner(one.jaxpr), inner(other.jaxpr)
    known = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= zip(larger_jaxpr.constvars, larger_consts, strict=True)
    found = _differing(jaxpr, larger_jaxpr, known)
    if found is None:
        return
    eqn, number, larger = found
    line = place(eqn)
    raise StrategyError(
        name,
        got=f"a number made of the number of samples{f' at {line}' if line else ''}: {number:g} for {batch_size}, "
        f"{larger:g} for {batch_size + 1}",
        expected="the numbers that the step of one sample has",
        repair="Take a size from an axis that one sample has too, such as x.shape[-1], or use pb.vmap.",
    )


def _differing(one: Jaxpr, other: Jaxpr, consts: Mapping[Any, Any]) -> tuple[JaxprEqn, float, float] | None:
    """The first equation with another number in one program than in the other, as far as they have the same ones."""
    for eqn, twin in zip(one.eqns, other.eqns, strict=False):
        if eqn.primitive is not twin.primitive:
            return None
        for atoms in zip(eqn.invars, twin.invars, strict=False):
            number, larger = (_number(atom, consts) for atom in atoms)
            if number is not None and larger is not None and not np.array_equal(number, larger, equal_nan=True):
                return eqn, number, larger
        inside = (_differing(*both, consts) for both in zip(bodies(eqn), bodies(twin), strict=False))
        found = next((pair for pair in inside if pair is not None), None)
        if found is not None:
            return found
    return None


def _number(atom: Any, consts: Mapping[Any, Any]) -> float | None:
    """A number with a fraction that an equation reads; None for anything else, such as a size that an index has."""
    value = atom.val if isinstance(atom, Literal) else consts.get(atom)
    if value is None or jnp.shape(value) or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return None
    return float(value)
