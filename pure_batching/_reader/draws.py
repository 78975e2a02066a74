"""What a flat step draws at random: the values that its equations make of random keys.

The equations of keys are those that read one or make one. What they make and others read is a draw: the bits behind a
normal number, or the whole result of a sampler that loops over keys. So is a key that a step gives out.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._tree import is_key
from ..errors import RandomnessError
from .jaxprs import Jaxpr, JaxprEqn, Var, inner
from .lines import place
from .pieces import reads, spec_of_var, tainted_by
from .step import TracedStep

# What to do about any draw that is refused.
ELSE = "Use pb.vmap, which runs the step of one sample."


class Draws(NamedTuple):
    """The draws of a step.

    Attributes:
      values: the variables that are drawn, in the order of the step.
      makers: the equation that makes each of them.
      eqns: the positions of all equations of keys.
      keys: the variables of the random keys after the step, in the order of paths.
    """

    values: tuple[Var, ...]
    makers: Mapping[Var, JaxprEqn]
    eqns: frozenset[int]
    keys: tuple[Var, ...]

    def told(self, var: Var) -> str:
        """A draw as an error tells of it."""
        return f"a draw of shape {shape_of(var)}{at(self.makers[var])}"


def shape_of(var: Any) -> tuple[int, ...]:
    """The shape of a variable or literal."""
    return tuple(spec_of_var(var).shape)


def at(eqn: JaxprEqn) -> str:
    """The source line of an equation behind a word; "" where it is not known."""
    line = place(eqn)
    return f" at {line}" if line else ""


def found_draws(step: TracedStep, own: Collection[str]) -> Draws:
    """The draws from the step's keys, and from keys that the step itself makes of constants.

    Keys that are made of what belongs to one sample, an input say, are left out where no key of the step is behind
    them: with a batch axis the step makes one of each sample by itself.

    Args:
      step: flat, of one sample or of a batch.
      own: the paths of the states that belong to one sample.
    """
    jaxpr, _ = inner(step.jaxpr)
    before, after = step.variables(jaxpr)
    carried = [var for path in step.of_kind("key") for var in before[path]]
    left = tuple(var for path in step.of_kind("key") for var in after[path])
    drawn = tainted_by(jaxpr.eqns, carried)
    sampled = tainted_by(jaxpr.eqns, variables_of(step, own))
    keys = _with_what_makes_them(jaxpr, {*carried, *left, *_typed_keys(jaxpr, drawn, sampled)}, drawn)
    made = {i: eqn for i, eqn in enumerate(jaxpr.eqns) if reads(eqn, keys) or not keys.isdisjoint(eqn.outvars)}
    used = {var for i, eqn in enumerate(jaxpr.eqns) if i not in made for var in eqn.invars if isinstance(var, Var)}
    used |= _shown(step, jaxpr, after)
    makers = {var: eqn for eqn in made.values() for var in eqn.outvars if var in used}
    return Draws(tuple(makers), makers, frozenset(made), left)


def check_same_keys(batch: TracedStep, single: TracedStep) -> None:
    """Raise RandomnessError where a step with a batch axis reads other random keys."""
    ours, theirs = batch.of_kind("key"), single.of_kind("key")
    if ours != theirs:
        raise RandomnessError(
            "pb.manual",
            got=f"a step that draws from the random keys {ours} with a batch axis",
            expected=f"{theirs}, as for one sample",
            repair=f"Draw in the same way with a batch axis. {ELSE}",
        )


def check_same_draws(ours: Draws, theirs: Draws, size: int) -> None:
    """Raise RandomnessError unless the k-th draw of a batch can stand for the k-th draw of a sample.

    Args:
      ours: the draws of a batch.
      theirs: those of one sample.
      size: the number of samples.
    """
    if len(ours.values) != len(theirs.values):
        raise RandomnessError(
            "pb.manual",
            got=f"{len(ours.values)} draws of random numbers with a batch axis",
            expected=f"{len(theirs.values)}, as for one sample",
            repair=f"Draw in the same way with a batch axis. {ELSE}",
        )
    for batched, single in zip(ours.values, theirs.values, strict=True):
        allowed = [(size, *shape_of(single)), shape_of(single)]
        if shape_of(batched) not in allowed or spec_of_var(batched).dtype != spec_of_var(single).dtype:
            raise RandomnessError(
                "pb.manual",
                got=f"{ours.told(batched)} with a batch axis",
                expected=f"the shape {allowed[0]}, or that of one sample, {allowed[1]}",
                repair=f"Draw an array for each sample, the batch axis in front. {ELSE}",
            )


def check_free(single: TracedStep, draws: Draws, own: Collection[str]) -> None:
    """Raise RandomnessError for a draw that depends on a sample's own states or on a weight.

    What is drawn may depend on keys, on inputs, and on states that are the same for all samples.

    Args:
      single: the step of one sample, flat.
      draws: of that step.
      own: the paths of the states that belong to one sample.
    """
    jaxpr, _ = inner(single.jaxpr)
    before, _ = single.variables(jaxpr)
    for path in (*own, *single.of_kind("param")):
        reached = tainted_by(jaxpr.eqns, before[path])
        if bound := [var for var in draws.values if var in reached]:
            got = f"{draws.told(bound[0])} that depends on {path!r}"
        elif any(var in reached for var in draws.keys):
            got = f"a random key that depends on {path!r}"
        else:
            continue
        raise RandomnessError(
            "pb.manual",
            got=got,
            expected="draws of random keys and inputs alone",
            repair=f"Draw first and scale afterwards, outside of loops that carry the state. {ELSE}",
        )


def variables_of(step: TracedStep, paths: Collection[str]) -> list[Var]:
    """The variables of a flat step's inputs, and of its states at some paths."""
    jaxpr, _ = inner(step.jaxpr)
    before, _ = step.variables(jaxpr)
    inputs = jaxpr.invars[: len(jax.tree.leaves(step.inputs))]
    return [*inputs, *(var for path in paths for var in before[path])]


def _shown(step: TracedStep, jaxpr: Jaxpr, after: Mapping[str, Sequence[Any]]) -> set[Any]:
    """The variables of the output, and of the states that are no keys, after the step."""
    results = jaxpr.outvars[: len(jax.tree.leaves(step.output))]
    others = [var for path, kind in step.kinds.items() if kind != "key" and path in after for var in after[path]]
    return {var for var in (*results, *others) if isinstance(var, Var)}


def _typed_keys(jaxpr: Jaxpr, drawn: set[Any], sampled: set[Any]) -> set[Var]:
    made = [*jaxpr.constvars, *jaxpr.invars, *(var for eqn in jaxpr.eqns for var in eqn.outvars)]
    return {var for var in made if is_key(spec_of_var(var).dtype) and (var in drawn or var not in sampled)}


def _with_what_makes_them(jaxpr: Jaxpr, keys: set[Any], drawn: set[Any]) -> set[Any]:
    """The keys, and what leads to them from the step's own: the numbers of a key in a raw form.

    What else an equation reads that makes a key is none, as the state that a loop over keys is given.
    """
    found = set(keys)
    for eqn in reversed(jaxpr.eqns):
        if not found.isdisjoint(eqn.outvars):
            found.update(var for var in eqn.invars if isinstance(var, Var) and var in drawn and _may_be_key(var))
    return found


def _may_be_key(var: Var) -> bool:
    """Whether a variable has the type of a key, or that of a key's numbers."""
    dtype = spec_of_var(var).dtype
    return is_key(dtype) or dtype == jnp.uint32
