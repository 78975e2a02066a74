"""RTRL: the exact derivative of every state of a sample with respect to every weight."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._options import is_count
from .._precision import common_float
from .._program import Jacobians, Params, Program, Signal, States, Use
from .._relation import Relation
from .._tree import Tree, nbytes
from ..errors import AlgorithmError
from ._hyperparameters import dtype_field
from .base import Algorithm, Credit, Derivatives, Parts

# By path of the weight, for each of its arrays `[n, *array.shape]`, with `n` numbers in the states of a sample.
Influence = dict[str, tuple[jax.Array, ...]]

_ALL = "all states"


class RTRL(Algorithm):
    """Real-time recurrent learning.

        P[t]    = J[t] P[t-1] + dh[t]/dw
        grad[t] = dloss[t]/dw + dloss[t]/dh[t-1] P[t-1]

    with `h` all `n` numbers of the states of a sample, `J = dh[t]/dh[t-1]` whole, and the derivatives of one step on
    the right. The gradient is exact: it equals backpropagation through the whole sequence at every window, and across a
    cut. That takes `n` numbers for each number of the weights, and `n` times the work of a step: it is the ground truth
    for small models.

    `sequence_grad` propagates back through each window, and `P` serves the steps before it.

    Source: Williams and Zipser, "A Learning Algorithm for Continually Running Fully Recurrent Neural Networks" (1989),
    doi:10.1162/neco.1989.1.2.270.

    Attributes:
      max_bytes: the largest trace of one sample, in bytes.
      trace_dtype: the float type in which a carry keeps the trace; None for that in which it is computed.

    Raises:
      AlgorithmError: a `max_bytes` that is no positive integer; a `trace_dtype` that is no float type; at capture, a
        larger trace, a complex state, or samples that reach each other along a named axis.
    """

    max_bytes: int = eqx.field(static=True, default=2**30)
    trace_dtype: Any = dtype_field()

    def __check_init__(self) -> None:
        if not is_count(self.max_bytes):
            raise AlgorithmError(
                "max_bytes", got=repr(self.max_bytes), expected="an integer >= 1", repair="Give a number of bytes."
            )

    @property
    def credit(self) -> Credit:
        """By backpropagation inside a window, and by the exact trace for the steps before it."""
        return "window"

    @property
    def depends_on_window(self) -> bool:
        """No: the gradient is exact at every window."""
        return False

    @property
    def is_complete(self) -> bool:
        """Yes."""
        return True

    @property
    def derivatives(self) -> Derivatives:
        """`J` as the one diagonal and `dh/dw` as `dfs`, by weight."""
        return _whole

    def check(self, program: Program) -> None:
        """Refuse what has no exact trace of this size."""
        if program.axis_name is not None:
            raise AlgorithmError(
                "RTRL",
                got=f"samples that reach each other along the axis {program.axis_name!r}",
                expected="samples that are independent",
                repair="Capture without axis_name, or use another rule.",
            )
        followed = jax.tree.leaves(_followed(program.states)[0])
        if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in followed):
            raise AlgorithmError(
                "RTRL", got="a complex state", expected="real states", repair="Keep its two parts as two states."
            )
        size = nbytes(jax.eval_shape(lambda: self.init(program)))
        if size > self.max_bytes:
            raise AlgorithmError(
                "RTRL",
                got=f"a trace of {size:,} bytes for one sample",
                expected=f"at most {self.max_bytes:,}",
                repair="Use D_RTRL or ES_D_RTRL, or allow more by max_bytes.",
            )

    def init(self, program: Program) -> Influence:
        """Zeros."""
        count, dtype = _count(program.states), _dtype(program.states)
        return {
            path: tuple(jnp.zeros((count, *leaf.shape), dtype) for leaf in jax.tree.leaves(param))
            for path, param in program.params.items()
        }

    def step(
        self,
        program: Program,
        params: Params,
        trace: Influence,
        jacobians: Jacobians,
        signal: Signal,
        count: jax.Array,
    ) -> tuple[Influence, tuple[()]]:
        """`P[t]`."""
        del program, params, signal, count
        whole = jacobians.diagonals[_ALL]
        return jax.tree.map(lambda p, now: jnp.tensordot(whole, p, 1) + now, trace, jacobians.dfs), ()

    def gradient_of_trace(
        self, program: Program, params: Params, trace: Influence, signal: Signal, count: jax.Array
    ) -> Parts:
        """`dloss/dh P`."""
        del params, trace, count
        return Parts((), {}, _back(program, signal))

    def trace_product(self, program: Program, params: Params, trace: Influence, of_trace: jax.Array) -> Params:
        """`dloss/dh P` of each weight."""
        del program

        def product(path: str) -> Tree:
            arrays = [jnp.tensordot(of_trace.astype(p.dtype), p, 1) for p in trace[path]]
            return jax.tree.unflatten(jax.tree.structure(params[path]), arrays)

        return {path: product(path) for path in params}

    def traces_of(self, relation: Relation, trace: Influence) -> dict[str, jax.Array]:
        """The trace of each array of the weight, with all numbers of the states in front."""
        return _by_leaf(trace, relation.weight)

    def learns(self, program: Program, use: Use, trace: Influence) -> tuple[Use, dict[str, jax.Array]]:
        """By a trace, wherever the weight is used."""
        groups = tuple(group.name for group in program.groups)
        return use._replace(way="trace", groups=groups, reason=""), _by_leaf(trace, use.weight)


def _by_leaf(trace: Influence, weight: str) -> dict[str, jax.Array]:
    arrays = trace[weight]
    return {"weight" if len(arrays) == 1 else f"weight {place}": array for place, array in enumerate(arrays)}


def _whole(
    program: Program, params: Params, states: States, inputs: tuple[Tree, ...], jacobians: Jacobians
) -> Jacobians:
    """`J`, `[n, n]`, and `dh/dw` of one step, by one pullback for each number of the new states."""
    del jacobians
    dtype = _dtype(states)
    followed, rest = _followed(states)
    old, unravel = ravel_pytree(followed)

    def new(old: jax.Array, params: Params) -> jax.Array:
        hidden, other = eqx.combine(unravel(old), rest)
        before = states._replace(hidden=hidden, other=other)
        done = program.execute(params, before, inputs, program.zero_perturbation())
        return ravel_pytree(_followed(done.states)[0])[0]

    held = jax.tree.map(jax.lax.stop_gradient, (old, params))
    after, pullback = jax.vjp(new, *held)
    of_old, of_params = jax.vmap(pullback)(jnp.eye(after.size, dtype=after.dtype))
    dfs: Any = {path: tuple(x.astype(dtype) for x in jax.tree.leaves(of)) for path, of in of_params.items()}
    return Jacobians({}, dfs, {_ALL: of_old.astype(dtype)}, {})


def _followed(states: States) -> tuple[Tree, Tree]:
    """The numbers with a fraction among the states of a sample, and everything else."""
    return eqx.partition((states.hidden, states.other), _is_inexact)


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def _count(states: States) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(_followed(states)[0]))


def _dtype(states: States) -> Any:
    return common_float(leaf.dtype for leaf in jax.tree.leaves(_followed(states)[0]))


def _back(program: Program, signal: Signal) -> jax.Array:
    """`dloss/dh` of all numbers of the states, `[n]`, in their order."""
    parts = [
        (path, part)
        for group in program.groups
        for path, part in zip(group.paths, group.part(signal.new[group.name]), strict=True)
    ]
    hidden = dict(parts)
    ordered = [hidden[path] for path in sorted(hidden)]
    return ravel_pytree((ordered, signal.other))[0]
