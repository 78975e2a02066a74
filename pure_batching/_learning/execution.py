"""What a learner carries, and how its program and algorithm are run for one sample or for a batch."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import brainunit as u
import jax
import jax.numpy as jnp

from .._algorithms.base import Algorithm, Trace
from .._conform import check_numbers
from .._program import Params, Perturbation, Program, States, Step
from .._tree import Tree, described, named_leaves, spec_text, with_lead
from ..errors import ShapeError, StructureError


class Carry(NamedTuple):
    """What one step hands to the next.

    Every leaf but those of `shared` has a leading axis `[B, ...]` in a batch.

    Attributes:
      hidden: the hidden states by path, in their units.
      other: other states of a sample (short-term states, statistics, delay buffers) by path.
      keys: random keys by path.
      shared: states that are the same for every sample (write pointers, counters) by path; a mask or a reset, which
        moves samples apart, gives each sample its own in `other`.
      trace: the algorithm's eligibility traces.
      update_count: how many updates were made, `[]` or `[B]` int32: steps, or windows with BPTT
        and with `vjp="multi-step"`.
    """

    hidden: Mapping[str, Tree]
    other: Mapping[str, Tree]
    keys: Mapping[str, jax.Array]
    shared: Mapping[str, Tree]
    trace: Trace
    update_count: jax.Array

    def __repr__(self) -> str:
        """What each field holds, without its numbers."""
        return f"Carry({', '.join(f'{name}={spec_text(field)}' for name, field in self._asdict().items())})"

    @property
    def states(self) -> States:
        """The module's part of the carry."""
        return States(self.hidden, self.other, self.keys, self.shared)


def apart(carry: Carry) -> Carry:
    """The carry with a copy of what its samples share for each of them, so that they may come to differ in it.

    A mask or a reset does this by itself. Do it to carries that made different numbers of steps, before `stack`,
    `concat` or `scatter` puts them together.

    Raises:
      StructureError: no carry.
      ShapeError: an array that does not lead with the samples.
    """
    lead = check_whole("carry", carry)
    own = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*lead, *leaf.shape)), carry.shared)
    return carry._replace(other={**carry.other, **own}, shared={})


def check_whole(name: str, carry: object) -> tuple[int, ...]:
    """`(B,)`, or `()` for one sample; an error for what is no carry, and for arrays that do not lead with the samples.

    Units, dtypes and features are for a learner, or another carry, to say.
    """
    if not isinstance(carry, Carry):
        raise StructureError(name, got=type(carry).__name__, expected="a Carry", repair=_OF_A_LEARNER)
    check_numbers(carry, name)
    for field, tree in carry.states._asdict().items():
        if not isinstance(tree, Mapping):
            raise StructureError(
                f"{name}.{field}", got=type(tree).__name__, expected="{path: value}", repair=_OF_A_LEARNER
            )
    lead = _lead(f"{name}.update_count", carry.update_count)
    for leaf, value in named_leaves(carry._replace(shared={}), name):
        shape = jnp.shape(u.get_mantissa(value))
        if shape[: len(lead)] != lead:
            raise ShapeError(leaf, got=f"shape {shape}", expected=f"(B={lead[0]}, ...)", repair=_OF_A_LEARNER)
    return lead


_OF_A_LEARNER = "Pass learner.init() or aux.carry."


def _lead(name: str, update_count: Any) -> tuple[int, ...]:
    """The axes in front, by the leaf that has no others."""
    leaves = jax.tree.leaves(update_count)
    is_array = len(leaves) == 1 and leaves[0] is update_count
    if not is_array or jnp.ndim(update_count) > 1 or not jnp.issubdtype(jnp.result_type(update_count), jnp.integer):
        raise StructureError(
            name,
            got=described(update_count),
            expected="int32[], or int32[B] of a batch",
            repair=_OF_A_LEARNER,
        )
    return jnp.shape(update_count)


class Each(Protocol):
    """Makes `fun(shared, *own)` of one sample a function of all samples.

    The axes say where the samples lie in each of `own` and in the result, as in `jax.vmap`.
    """

    def __call__(self, fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]: ...


def _alone(fun: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0) -> Callable[..., Any]:
    """One sample has no axis to map over."""
    del in_axes, out_axes
    return fun


class Execution(NamedTuple):
    """A program and an algorithm, and how they are run.

    Attributes:
      name: the strategy's name.
      program: the step of one sample.
      algorithm: the learning rule.
      batch_size: `B`, None for one sample.
      execute: `Program.execute` for all samples.
      each: how a function of one sample is run for all of them.
    """

    name: str
    program: Program
    algorithm: Algorithm
    batch_size: int | None
    execute: Callable[[Params, States, tuple[Tree, ...], Perturbation], Step]
    each: Each

    @classmethod
    def of_one_sample(cls, program: Program, algorithm: Algorithm) -> "Execution":
        """The program as it is."""
        return cls("one sample", program, algorithm, None, program.execute, _alone)

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes in front of every leaf that belongs to a sample."""
        return () if self.batch_size is None else (self.batch_size,)

    def fresh(self, key: jax.Array) -> Carry:
        """The carry before the first step; sample `i` gets `jax.random.fold_in(key, i)`."""
        if self.batch_size is None:
            return self._fresh_sample(key)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(self.batch_size))
        return jax.vmap(self._fresh_sample)(keys)._replace(shared=self._fresh_sample(key).shared)

    def begin(self, carry: Carry | None, *, are_apart: bool) -> tuple[Carry, Carry]:
        """Where a sequence begins, and the carry of a fresh start.

        Args:
          carry: None for a fresh start.
          are_apart: whether samples may come to differ in what they share.
        """
        fresh = self.fresh(jax.random.key(0))
        start = fresh if carry is None else carry
        return (apart(start), apart(fresh)) if are_apart else (start, fresh)

    def carry_spec(self, *, is_apart: bool = False) -> Carry:
        """Shapes and dtypes of a carry, of samples that share what they can or were moved apart."""
        trace = jax.eval_shape(lambda: self.algorithm.init(self.program))
        count: Any = jax.ShapeDtypeStruct((), jnp.int32)
        own = Carry(*self.program.states, trace=trace, update_count=count)
        together = with_lead(own, self.lead)._replace(shared=self.program.states.shared)
        return jax.eval_shape(apart, together) if is_apart else together

    def zero_perturbation(self) -> Perturbation:
        """A perturbation that changes nothing."""
        zeros = self.program.zero_perturbation()
        return {path: jnp.zeros((*self.lead, *zero.shape), zero.dtype) for path, zero in zeros.items()}

    def _fresh_sample(self, key: jax.Array) -> Carry:
        states = self.program.initial(key)
        return Carry(*states, trace=self.algorithm.init(self.program), update_count=jnp.zeros((), jnp.int32))
