"""`manual`: the module's own arithmetic on arrays with a batch axis."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from .._independence.values import Along, Value
from .._independence.verdicts import Verdict, leaves_of, lost, verdicts
from .._learning.execution import Execution
from .._learning.learner import Learner
from .._options import check_flag
from .._program import Params, Perturbation, Program, States, Step
from .._tree import Tree, moved, with_lead
from .._wording import listed
from ..errors import RandomnessError, SampleCouplingError, StrategyError
from .base import check_unbatched
from .vmap import each_by_vmap, execute_by_vmap, vmap

_NAME = "pb.manual"
_DOUBLE = ("float64", "int64", "uint64", "complex128")


def manual(learner: Learner, batch_size: int, *, allow_coupling: bool = False) -> Learner:
    """A batch by tracing the module again, on `(B, ...)` arrays; its meaning is `pb.loop`.

    Args:
      learner: a learner of one sample.
      batch_size: `B`.
      allow_coupling: accept a module whose own code lets samples reach each other, as batch normalisation does. The
        result is no longer that of `pb.loop`, and what is computed sample by sample (`reduction="none"` for weights
        without a trace or by backpropagation, and norms) is that of each sample alone; a learner captured with an
        `axis_name` has neither limit. A state that the module keeps once for the batch is still `[B, ...]` in
        the carry: the module is given that of sample 0, and every sample gets the new one.

    Returns:
      a learner whose inputs, outputs and carry lead with the axis `B`.

    Raises:
      StrategyError: the learner has a batch already, or the module's own code does not carry a batch axis; the text
        names the state or output that came out wrong.
      SampleCouplingError: the module's own code couples the samples; the text names the leaf, the operation and its
        source line. `pb.audit` shows all of them. With an `axis_name`, samples may be coupled, but as in `pb.vmap`: the
        module's own code has to reduce its batch axis wherever it reduces the named one, as batch normalisation does.
      RandomnessError: the module draws random numbers inside its step: one `(B, M)` draw from one key cannot equal a
        key for each sample.
      BatchSizeError: not a positive integer.
      OptionError: an `allow_coupling` that is no flag.
    """
    size = check_unbatched(learner, batch_size, "manual")
    check_flag("allow_coupling", allow_coupling)
    _refuse_random(learner.program)
    batched, once = _traced(learner, size)
    if not allow_coupling:
        # One sample has no neighbour; what holds at every batch size is seen with two.
        checked = (batched, once) if size > 1 else _traced(learner, 2)
        if learner.program.axis is None:
            _refuse_coupling(leaf_verdicts(*checked))
        else:
            _refuse_other_numbers(checked[0], learner)
    return Learner(batched)


def leaf_verdicts(
    execution: Execution, once: frozenset[str], step: Callable[..., Tree] | None = None, *own: Tree
) -> dict[str, Verdict]:
    """Whether the samples are independent, for each leaf that a batched step computes, by name.

    Args:
      execution: the step of a batch of at least two samples.
      once: the states that the module keeps once for the whole batch.
      step: what is followed, by default the module's step, `execution.execute`.
      own: the specifications of the step's further arguments, `[B, ...]`.
    """
    with precision_of(execution.program):
        return _settled(execution, once, step or execution.execute, own)


def _settled(
    execution: Execution, once: frozenset[str], step: Callable[..., Tree], own: tuple[Tree, ...]
) -> dict[str, Verdict]:
    """What holds at every step: what reads a state that is kept once depends on all that reached it a step before."""
    program, lead = execution.program, execution.lead
    states = with_lead(program.states, lead)._replace(shared=program.states.shared)
    perturbation = jax.eval_shape(execution.zero_perturbation)
    arguments = (program.params, states, with_lead(program.inputs, lead), perturbation)
    common: dict[str, Value] = dict.fromkeys(once)
    while True:
        places = [*_places(arguments, common), *(Along(0) for _ in jax.tree.leaves(own))]
        found = verdicts(step, (*arguments, *own), places)
        after = {path: common[path] or _once_after(path, found) for path in once}
        if after == common:
            return found
        common = after


def precision_of(program: Program) -> AbstractContextManager[Any]:
    """A program in double precision is traced in it, whatever is in force now."""
    leaves = jax.tree.leaves((program.params, program.states, program.inputs))
    is_double = any(str(leaf.dtype) in _DOUBLE for leaf in leaves)
    return jax.enable_x64(new_val=True) if is_double else nullcontext()


def _places(arguments: tuple[Params, States, tuple[Tree, ...], Perturbation], once: Mapping[str, Value]) -> list[Value]:
    """Where the samples lie in each array of the arguments."""

    def each(tree: Tree, value: Value) -> list[Value]:
        return [value] * len(jax.tree.leaves(tree))

    params, states, inputs, perturbation = arguments
    other = [place for path in sorted(states.other) for place in each(states.other[path], once.get(path, Along(0)))]
    return [
        *each(params, None),
        *each(states.hidden, Along(0)),
        *other,
        *each(states.keys, Along(0)),
        *each(states.shared, None),
        *each((inputs, perturbation), Along(0)),
    ]


def _once_after(path: str, found: Mapping[str, Verdict]) -> Value:
    """What a state that is kept once is known to be after a step: the same for all samples, unless they reached it."""
    own = [verdict for name, verdict in found.items() if name.startswith(f"other[{path!r}]")]
    return next((lost(verdict) for verdict in own if verdict.kind != "independent"), None)


def kept_once_by(execution: Execution) -> frozenset[str]:
    """The states of a sample that the step of a batch keeps once."""
    program = execution.program
    return kept_once(program, program.retrace(2, program)) if execution.name == _NAME else frozenset()


def kept_once(single: Program, batched: Program) -> frozenset[str]:
    """The states of a sample that the module keeps once for a whole batch."""

    def shapes(tree: Tree) -> list[tuple[int, ...]]:
        return [leaf.shape for leaf in jax.tree.leaves(tree)]

    own = single.states.other
    return frozenset(path for path in own if shapes(own[path]) == shapes(batched.states.other[path]))


def _traced(learner: Learner, size: int) -> tuple[Execution, frozenset[str]]:
    """The step of a batch, and the states that it keeps once."""
    batched = learner.program.retrace(size, learner.program)
    _check_same_relations(learner.program, batched)
    single = learner.program.among(size)
    execute = _batch_in_front(batched, single, size)
    execution = Execution(_NAME, single, learner.algorithm, size, execute, each_by_vmap(single, size))
    return execution, kept_once(single, batched)


def _refuse_other_numbers(batched: Execution, learner: Learner) -> None:
    """Samples that are meant to reach each other have to do so as along the axis that was named."""
    with precision_of(learner.program):
        ours, theirs = _two_steps(batched), _two_steps(vmap(learner, batched.lead[0]).execution)
    for (name, one), (_, other) in zip(ours, theirs, strict=True):
        if not _is_close(one, other):
            raise SampleCouplingError(
                f"pb.manual: {name}",
                got=f"other numbers than pb.vmap gives along the axis {learner.program.axis_name!r}",
                expected="the same",
                repair="Reduce the module's own batch axis wherever it reduces the named one, or use pb.vmap.",
            )


def _two_steps(execution: Execution) -> list[tuple[str, Tree]]:
    """What a step computes, by name, and the next: of samples that begin alike, with numbers between zero and one."""
    program, rng = execution.program, np.random.default_rng(0)

    def drawn(spec: jax.ShapeDtypeStruct) -> jax.Array:
        is_number = jnp.issubdtype(spec.dtype, jnp.inexact)
        return jnp.asarray(rng.random(spec.shape) if is_number else np.zeros(spec.shape), spec.dtype)

    params, one = jax.tree.map(drawn, (program.params, program.states))
    alike = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*execution.lead, *leaf.shape)), one)
    states, found = alike._replace(shared=one.shared), []
    for _ in range(2):
        inputs = jax.tree.map(drawn, with_lead(program.inputs, execution.lead))
        done = jax.jit(execution.execute)(params, states, inputs, execution.zero_perturbation())
        states = done.states
        found += leaves_of(done)
    return found


def _is_close(one: Tree, other: Tree) -> bool:
    """Up to rounding in single precision."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max(initial=0), equal_nan=True) for a, b in pairs)


def _refuse_coupling(found: Mapping[str, Verdict]) -> None:
    coupled = {name: verdict for name, verdict in found.items() if verdict.kind == "coupled"}
    if not coupled:
        return
    (name, verdict), *others = coupled.items()
    also = f" (also in {listed([other for other, _ in others])})" if others else ""
    raise SampleCouplingError(
        f"pb.manual: {name}",
        got=f"samples coupled by {verdict.cause}{also}",
        expected="samples that do not reach each other",
        repair="Use pb.vmap, which runs the step of one sample, or pass allow_coupling=True to accept it.",
    )


def _batch_in_front(program: Program, single: Program, batch_size: int) -> Callable[..., Step]:
    """`program.execute` with the batch axis in front of every leaf, wherever the module keeps it."""
    axes, once = single.batch_axes(), kept_once(single, program)
    one_by_one = execute_by_vmap(single, batch_size)

    def execute(params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation) -> Step:
        if single.states.shared and not states.shared:  # moved apart: the module has one of them for all samples
            return one_by_one(params, states, inputs, perturbation)
        own, common = _parted(states.other, once)
        first = jax.tree.map(lambda leaf: leaf[0], common)
        inside = states._replace(other={**moved(own, axes, to_module=True), **first})
        done = program.execute(params, inside, inputs, perturbation)
        own, common = _parted(done.states.other, once)
        every = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch_size, *leaf.shape)), common)
        outside = done.states._replace(other={**moved(own, axes, to_module=False), **every})
        jacobians = done.jacobians._replace(xs=_for_each_sample(done.jacobians.xs, single, batch_size))
        chex.assert_tree_shape_prefix((done.output, outside.hidden, outside.other, jacobians), (batch_size,))
        return Step(done.output, outside, jacobians)

    return execute


def _parted(other: Mapping[str, Tree], once: frozenset[str]) -> tuple[dict[str, Tree], dict[str, Tree]]:
    """The states that each sample has, and those that are kept once."""
    own = {path: value for path, value in other.items() if path not in once}
    return own, {path: value for path, value in other.items() if path in once}


def _for_each_sample(xs: dict[str, jax.Array], single: Program, batch_size: int) -> dict[str, jax.Array]:
    """A weight's input that the module computes once for all samples stands for each of them."""
    rank = {name: len(x.spec.shape) for name, x in single.weight_inputs().items()}
    return {name: jnp.broadcast_to(x, (batch_size, *x.shape)) if x.ndim == rank[name] else x for name, x in xs.items()}


def _refuse_random(program: Program) -> None:
    if program.states.keys:
        raise RandomnessError(
            "pb.manual",
            got=f"a module that draws from the random key {', '.join(program.states.keys)!r} inside its step",
            expected="a step without random numbers",
            repair="Use pb.vmap, which gives each sample a key of its own.",
        )


def _check_same_relations(single: Program, batched: Program) -> None:
    names = [[relation.name for relation in program.relations] for program in (single, batched)]
    if names[0] != names[1]:
        raise StrategyError(
            "pb.manual",
            got=f"the traced weights {names[1]} with a batch axis",
            expected=f"{names[0]}, as for one sample",
            repair="The module takes another way with a batch axis; use pb.vmap.",
        )
