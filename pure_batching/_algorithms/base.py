"""Algorithm: a learning rule as hyperparameters and pure functions of one sample, and the products of its gradient."""

import abc
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp

from .._precision import cast_like, in_float
from .._program import Jacobians, Params, Program, Signal, States, Use
from .._reader.operations import call
from .._relation import Relation
from .._tree import Tree

Trace = Any
Record = Any
Credit = Literal["trace", "window"]

RULES = ("brainscale", "published")
VJPS = ("single-step", "multi-step")


class Factors(NamedTuple):
    """A gradient as outer products: the sum over relations of `xy_to_dw(x, dy, w)`.

    Attributes:
      xs: `[..., *x.shape]` by the name of the weight's input.
      dys: `[..., *y.shape]` by the name of the relation: one for all leaves of the weight, or one for each leaf.
    """

    xs: dict[str, jax.Array]
    dys: dict[str, tuple[jax.Array, ...]]


class Parts(NamedTuple):
    """A gradient in parts, of which the caller makes sums over steps and samples.

    Attributes:
      factors: outer products, `[K, ...]` of a window, to be contracted for all steps and samples at once.
      dense: a part that is no outer product, by path of the weight; empty where there is none.
      of_trace: what `Algorithm.trace_product` multiplies the trace with; empty where it has no part.
    """

    factors: tuple[Factors, ...]
    dense: Params
    of_trace: Any = ()


# `(program, params, states, inputs, jacobians) -> jacobians` of one sample and one step.
Derivatives = Callable[[Program, Params, States, tuple[Tree, ...], Jacobians], Jacobians]


class Algorithm(eqx.Module):
    """An online-learning rule.

    In a window of `K` steps, `step` is called at each step, inside a scan. After it, `window_trace` and
    `window_gradient` are called once each. All methods work on one sample; a strategy maps them over a batch.

    A rule has to define `init`, `step` and `traces_of`. What the other methods do here is right for a rule whose credit
    goes by the trace alone and whose record of a step is a tuple of `Factors`.
    """

    @property
    def credit(self) -> Credit:
        """How credit goes back through time.

        "trace": by the eligibility trace alone. "window": by backpropagation inside each window, and by the trace for
        the steps before the window.
        """
        return "trace"

    @property
    def depends_on_window(self) -> bool:
        """Whether the gradient of a sequence depends on the length of the windows, where credit ends."""
        return self.credit == "window"

    @property
    def recomputes(self) -> bool:
        """With credit "window", whether a step is computed again on the way back instead of kept (`jax.checkpoint`)."""
        return False

    @property
    def is_complete(self) -> bool:
        """Whether the gradient of a step has the parts that reach the output past the new hidden states.

        The program of such a rule has a trace of a weight only where each hidden element is made of one element of the
        weight's output. That of another rule has BrainScale's traces of a module, which take mixed elements for others.
        """
        return False

    @property
    def trace_dtype(self) -> Any:
        """The float type in which a carry keeps the traces; None for that in which the rule computes them."""
        return None

    @property
    def derivatives(self) -> Derivatives | None:
        """How the derivatives of a step are made that `step` is given; None for those of the program as they are."""
        return None

    def check(self, program: Program) -> None:
        """Raise AlgorithmError for a program of one sample that the rule cannot follow."""
        del program

    @abc.abstractmethod
    def init(self, program: Program) -> Trace:
        """The trace before the first step."""

    @abc.abstractmethod
    def step(
        self, program: Program, params: Params, trace: Trace, jacobians: Jacobians, signal: Signal, count: jax.Array
    ) -> tuple[Trace, Record]:
        """Advance the trace one step; return it and the record that the end of the window will need.

        Args:
          program: the program of one sample.
          params: trainable values by path.
          trace: the trace before the step.
          jacobians: the derivatives of the step.
          signal: `dloss/dh` of each group, and what reaches the output past the new hidden states where the rule is
            complete. The record may depend on it, the trace must not.
          count: the number of updates before this one, `[]`.
        """

    def window_trace(
        self, program: Program, params: Params, trace_before: Trace, trace_after: Trace, records: Record
    ) -> Trace:
        """The trace after a window: that of its last step.

        Args:
          program: the program of one sample.
          params: trainable values by path.
          trace_before: the trace before the window; None where the window is a fresh start.
          trace_after: the trace that the last `step` returned.
          records: the records of the steps, `[K, ...]`.
        """
        del program, params, trace_before, records
        return trace_after

    def window_gradient(self, program: Program, params: Params, trace_before: Trace, records: Record) -> Parts:
        """The gradient of a window: its records, as factors. The arguments are those of `window_trace`."""
        del program, params, trace_before
        return Parts(records, {})

    def trace_product(self, program: Program, params: Params, trace: Trace, of_trace: Any) -> Params:
        """The part of a gradient that is a product with the trace itself, by path of the weight.

        The trace of one sample may be as large as a weight; the products of all samples are never held side by side.

        Args:
          program: the program of one sample.
          params: trainable values by path.
          trace: that from which `window_gradient` or `gradient_of_trace` was made.
          of_trace: the field of the `Parts` that the method returned.
        """
        raise NotImplementedError

    def gradient_of_trace(
        self, program: Program, params: Params, trace: Trace, signal: Signal, count: jax.Array
    ) -> Parts:
        """The gradient of a trace under a signal `dloss/dh`, with the factors of one step; for credit "window" alone.

        Args:
          program: the program of one sample.
          params: trainable values by path.
          trace: the trace of the hidden states that the signal belongs to.
          signal: `dloss/dh` of each group.
          count: the number of updates that made the trace, `[]`.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def traces_of(self, relation: Relation, trace: Trace) -> dict[str, Any]:
        """The traces of one use of a weight, by what each is of.

        Args:
          relation: the use.
          trace: of all uses: arrays, or their specifications.
        """

    def learns(self, program: Program, use: Use, trace: Trace) -> tuple[Use, dict[str, Any]]:
        """How a weight learns where a step reads it, and the traces of that use.

        Args:
          program: the program of one sample.
          use: what the program says of it.
          trace: of all uses: arrays, or their specifications.
        """
        relation = next((one for one in program.relations if one.name == use.relation), None)
        return use, {} if relation is None else self.traces_of(relation, trace)


def kept(algorithm: Algorithm, trace: Trace) -> Trace:
    """A trace in the float type in which a carry keeps it."""
    dtype = algorithm.trace_dtype

    def cast(array: jax.Array) -> jax.Array:
        return array.astype(in_float(array.dtype, dtype)) if jnp.issubdtype(array.dtype, jnp.inexact) else array

    return trace if dtype is None else jax.tree.map(cast, trace)


def computed(algorithm: Algorithm, program: Program, trace: Trace) -> Trace:
    """The inverse of `kept`: a trace in the type in which the rule computes it; None, for none, stays None."""
    if trace is None or algorithm.trace_dtype is None:
        return trace
    return cast_like(trace, jax.eval_shape(lambda: algorithm.init(program)))


def credit_of(vjp: str) -> Credit:
    """The credit mode of a rule with this `vjp`."""
    return "window" if vjp == "multi-step" else "trace"


def over_states(values: jax.Array, states: jax.Array) -> jax.Array:
    """The sum of products over the last axis, term by term: XLA reads a whole trace at half the speed to reduce it."""
    return reduce(jnp.add, (values[..., s] * states[..., s] for s in range(states.shape[-1])))


def apply_matrix(matrix: jax.Array, states: jax.Array) -> jax.Array:
    """`[..., ns, ns] [..., ns] -> [..., ns]`, element by element.

    Term by term: with one state XLA then sees the same index on both sides, and can write a trace in place.
    """
    return reduce(jnp.add, (matrix[..., s] * states[..., s, None] for s in range(states.shape[-1])))


def apply_transposed(matrix: jax.Array, states: jax.Array) -> jax.Array:
    """`apply_matrix` with the transposed matrices."""
    return reduce(jnp.add, (matrix[..., s, :] * states[..., s, None] for s in range(states.shape[-1])))


def contract(program: Program, params: Params, parts: tuple[Factors, ...]) -> Params:
    """The gradient of the traced weights, summed over the leading axis of the factors in one contraction.

    Args:
      program: the program of one sample.
      params: trainable values by path.
      parts: factors `[N, ...]`.

    Returns:
      by path of the traced weights, in the weight's units.
    """
    gradients: Params = {}
    for factors in parts:
        if factors.dys:
            chex.assert_equal_shape_prefix(jax.tree.leaves(factors), 1)
        for relation in program.relations:
            if relation.name in factors.dys:
                x = None if relation.x is None else factors.xs[relation.x.name]
                gradient = _weight_gradient(relation, params, x, factors.dys[relation.name])
                gradients = add_gradients({relation.weight: gradient}, gradients)
    return gradients


def add_gradients(*parts: Params) -> Params:
    """The sum of partial gradients, each of some of the weights."""
    total: Params = {}
    for part in parts:
        for path, value in part.items():
            total[path] = jax.tree.map(jnp.add, total[path], value) if path in total else value
    return total


def _weight_gradient(relation: Relation, params: Params, x: jax.Array | None, dys: tuple[jax.Array, ...]) -> Any:
    """The pullback of the operation mapped over `N`: for a product with a matrix, one product of matrices."""
    leaves, treedef = arrays_of(relation, params), jax.tree.structure(params[relation.weight])
    held = held_arrays(relation, params)
    _, pullback = jax.vjp(lambda *values: map_operation(relation, x, (*values, *held), dys[0].shape[0]), *leaves)
    if len(dys) == 1:
        return jax.tree.unflatten(treedef, pullback(dys[0]))
    return jax.tree.unflatten(treedef, [pullback(dy)[i] for i, dy in enumerate(dys)])


def arrays_of(relation: Relation, params: Params) -> list[jax.Array]:
    """The arrays of a relation's weight, in the dtype of traces."""
    pairs = zip(jax.tree.leaves(params[relation.weight]), relation.leaves, strict=True)
    return [array.astype(leaf.spec.dtype) for array, leaf in pairs]


def held_arrays(relation: Relation, params: Params) -> list[jax.Array]:
    """The arrays of the other weights that the operation reads, in the dtype of traces."""
    dtype = relation.leaves[0].spec.dtype
    arrays = jax.tree.leaves([params[path] for path in relation.held])
    return [array.astype(in_float(array.dtype, dtype)) for array in arrays]


def map_operation(relation: Relation, x: jax.Array | None, arrays: Any, size: int) -> jax.Array:
    """The operation on `size` inputs `[size, *x.shape]` with the same weights."""
    axes = (None if x is None else 0, *(None for _ in arrays))
    return jax.vmap(partial(call, relation.op), in_axes=axes, axis_size=size)(x, *arrays)
