"""Compiled BrainScale algorithms <-> carries."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ._algorithms._input_output_trace import InputOutputTrace
from ._algorithms._parameter_trace import ParameterTrace, divided
from ._algorithms.base import Trace
from ._conform import conform
from ._learning.carry import Carry
from ._learning.learner import Learner
from ._relation import Relation
from ._sources.blueprint import states_of
from ._sources.loaded import is_of_brainscale
from ._sources.tracing import state_name
from ._tree import Tree, like, moved, spec_of, spec_text
from ._wording import count, listed
from .errors import CarryError, NativeError

if TYPE_CHECKING:
    import brainscale


def from_native(learner: Learner, algorithm: "brainscale.ETraceVjpAlgorithm") -> Carry:
    """Make the carry that continues a training begun in BrainScale: states, traces and running index.

    Args:
      learner: of one sample, or batched, as the algorithm is.
      algorithm: compiled, in single-sample, manual (`Batching()`) or vmapped use, of the kind that the learner has.

    Returns:
      the carry after the algorithm's last step.

    Raises:
      NativeError: not compiled, of another kind, decay, module or number of samples, of a rule other than ES_D_RTRL and
        D_RTRL, with random keys of a batch, which BrainScale does not keep for each sample, or D_RTRL with a weight
        whose elements reach several outputs (convolutions, say), over which BrainScale adds up its trace.
    """
    native = _Native.of(learner, algorithm)
    values = {path: state.value for path, state in native.states.items()}
    fresh = learner.init()
    front = native.to_front(values)
    carry = fresh._replace(
        hidden={path: front[path] for path in fresh.hidden},
        other={path: front[path] for path in fresh.other},
        keys={path: values[path] for path in fresh.keys},
        shared={path: _first(values[path], spec) for path, spec in learner.program.states.shared.items()},
        trace=native.read_trace(fresh.trace),
        update_count=jnp.broadcast_to(jnp.asarray(algorithm.running_index.value, jnp.int32), fresh.update_count.shape),
    )
    return conform(carry, learner.carry_spec(), "native")


def to_native(learner: Learner, carry: Carry, algorithm: "brainscale.ETraceVjpAlgorithm") -> None:
    """Write a carry into a compiled BrainScale algorithm, which then goes on where the carry stands.

    Args:
      learner: the carry's.
      carry: what is written: states, traces and running index.
      algorithm: as in `from_native`.

    Raises:
      NativeError: as in `from_native`, or samples that made different numbers of steps, which BrainScale counts once.
      CarryError: the carry belongs to another learner. Nothing is written where an error is raised.
    """
    native, carry = _Native.of(learner, algorithm), _together(learner, learner.check_carry(carry))
    values = {**native.from_front({**carry.hidden, **carry.other}), **carry.keys, **carry.shared}
    writes = [(native.states[path], path, value) for path, value in values.items()]
    writes += [(state, name, value) for name, state, value in native.trace_writes(carry.trace)]
    writes += [(algorithm.running_index, "running_index", native.one_count(carry.update_count))]
    fitted = [(state, _fitted(value, state.value, name)) for state, name, value in writes]
    for state, value in fitted:
        state.value = value


def _together(learner: Learner, carry: Carry) -> Carry:
    """A carry whose samples share what BrainScale keeps once."""
    apart = [path for path in learner.program.states.shared if path in carry.other]
    if apart:
        raise CarryError(
            "carry",
            got=f"samples with a {listed(apart)} each",
            expected="one for all samples, as BrainScale keeps it",
            repair="A mask, a reset or pb.apart moved the samples apart; write a carry from before that.",
        )
    return carry


def _check_decay(learner: Learner, algorithm: Any) -> None:
    """A trace that decays otherwise is another rule's."""
    ours, theirs = (getattr(one, "decay", None) for one in (learner.algorithm, algorithm))
    if ours is not None and theirs is not None and not np.isclose(ours, theirs):
        raise NativeError(
            "algorithm",
            got=f"traces that decay by {theirs:g}",
            expected=f"{ours:g}, as the learner's",
            repair="Give both the same decay_or_rank.",
        )


class _Native(NamedTuple):
    """A compiled algorithm seen through a learner's names."""

    learner: Learner
    algorithm: Any
    states: dict[str, brainstate.State]
    relations: tuple[Any, ...]
    name_of: dict[Any, str]

    @classmethod
    def of(cls, learner: Learner, algorithm: Any) -> "_Native":
        _check_kind(learner, algorithm)
        _check_decay(learner, algorithm)
        names = {id(state): path for path, state in states_of(algorithm.model4compile).items()}
        name_of = {
            path: state_name(names.get(id(state), ""), state) for path, state in algorithm.path_to_states.items()
        }
        states = {name_of[path]: state for path, state in algorithm.path_to_states.items()}
        eqns = algorithm.graph.module_info.jaxpr.eqns
        order = {var: place for place, eqn in enumerate(eqns) for var in eqn.outvars}
        relations = tuple(sorted(algorithm.graph.hidden_param_op_relations, key=lambda relation: order[relation.y]))
        _check_module(learner, states, [name_of[relation.path] for relation in relations])
        native = cls(learner, algorithm, states, relations, name_of)
        _check_samples(native)
        return native

    @property
    def is_manual(self) -> bool:
        return self.algorithm.mode.has(brainstate.mixin.Batching)

    def to_front(self, values: dict[str, Tree]) -> dict[str, Tree]:
        """The states of samples, the batch axis in front."""
        axes = self.learner.source.batch_axes()
        own = {path: values[path] for path in axes}
        return moved(own, axes, to_module=False) if self.is_manual else own

    def from_front(self, values: dict[str, Tree]) -> dict[str, Tree]:
        """The inverse of `to_front`."""
        return moved(values, self.learner.source.batch_axes(), to_module=True) if self.is_manual else values

    def read_trace(self, fresh: Trace) -> Trace:
        """The algorithm's traces under the learner's names."""
        if isinstance(fresh, InputOutputTrace) and hasattr(self.algorithm, "etrace_dfs"):
            dfs = {name: state.value[..., list(columns)] for name, state, columns in self._matched("etrace_dfs")}
            return InputOutputTrace({name: state.value for name, state in self._xs()}, dfs)
        if isinstance(fresh, ParameterTrace) and hasattr(self.algorithm, "etrace_bwg"):
            _check_aligned(self.learner.program.relations)
            weights = {
                name: dict(zip(fresh.weights[name], _columns_of(state.value, columns), strict=True))
                for name, state, columns in self._matched("etrace_bwg")
            }
            return ParameterTrace(weights, jax.tree.map(jnp.ones_like, fresh.scales))
        raise _other_algorithm(self.learner, self.algorithm)

    def trace_writes(self, trace: Trace) -> list[tuple[str, brainstate.State, Tree]]:
        """Which native state gets which part of a trace."""
        self.read_trace(trace)
        if isinstance(trace, InputOutputTrace):
            writes = [(name, state, trace.xs[name]) for name, state in self._xs()]
            dfs = self._matched("etrace_dfs")
            return writes + [(name, state, trace.dfs[name][..., np.argsort(columns)]) for name, state, columns in dfs]
        return [
            (name, state, like(state.value, _columns_of(list(divided(trace)[name].values()), np.argsort(columns))))
            for name, state, columns in self._matched("etrace_bwg")
        ]

    def one_count(self, update_count: jax.Array) -> jax.Array:
        """The number of steps that all samples made."""
        counts = np.unique(np.asarray(update_count))
        if len(counts) != 1:
            raise NativeError(
                "carry.update_count",
                got=f"samples after {', '.join(map(str, counts))} steps",
                expected="one number of steps",
                repair="Write samples of equal length; BrainScale counts the steps of a batch once.",
            )
        return jnp.asarray(counts[0])

    def _xs(self) -> list[tuple[str, brainstate.State]]:
        pairs = zip(self.learner.program.relations, self.relations, strict=True)
        return [(ours.x.name, self.algorithm.etrace_xs[id(theirs.x)]) for ours, theirs in pairs if ours.x is not None]

    def _matched(self, traces: str) -> list[tuple[str, brainstate.State, tuple[int, ...]]]:
        """Name, state and column order of each trace of a link; BrainScale makes them in the order of its relations."""
        order = [
            (id(r), id(group)) for r in self.algorithm.graph.hidden_param_op_relations for group in r.hidden_groups
        ]
        state_of = dict(zip(order, getattr(self.algorithm, traces).values(), strict=True))
        found = []
        for ours, theirs in zip(self.learner.program.relations, self.relations, strict=True):
            groups = {self._name_of(group): group for group in theirs.hidden_groups}
            for link in ours.links:
                group = groups[link.group.name]
                found.append((link.name, state_of[id(theirs), id(group)], self._columns(group)))
        return found

    def _name_of(self, group: Any) -> str:
        """The name that a learner gives to a hidden group."""
        return ", ".join(sorted(self.name_of[path] for path in group.hidden_paths))

    def _columns(self, group: Any) -> tuple[int, ...]:
        """Where BrainScale, whose order of states differs in each process, keeps the columns of our sorted states."""
        columns, start = {}, 0
        for path, state in zip(group.hidden_paths, group.hidden_states, strict=True):
            columns[self.name_of[path]] = range(start, start + state.num_state)
            start += state.num_state
        return tuple(column for path in sorted(columns) for column in columns[path])


def _columns_of(tree: Tree, columns: Any) -> list[jax.Array]:
    """The arrays of a trace with the states of its group in another order."""
    return [array[..., list(columns)] for array in jax.tree.leaves(tree)]


def _first(value: Tree, spec: Tree) -> Tree:
    """A state that all samples share, where a native vmap keeps it once for each."""
    return jax.tree.map(lambda x, s: x if jnp.ndim(x) == len(s.shape) else x[0], value, spec)


def _fitted(value: Tree, old: Tree, name: str) -> Tree:
    """A value in the shape, dtype and unit that a native state has; what samples share may be there once for each."""
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(old), strict=True)
    leaves = [new if jnp.ndim(new) == jnp.ndim(leaf) else jnp.broadcast_to(new, leaf.shape) for new, leaf in pairs]
    return conform(like(value, leaves), spec_of(old), name)


def _check_kind(learner: Learner, algorithm: Any) -> None:
    if not is_of_brainscale(algorithm, "ETraceVjpAlgorithm") or not algorithm.is_compiled:
        raise NativeError(
            "algorithm",
            got=type(algorithm).__name__,
            expected="a compiled brainscale algorithm",
            repair="Call algorithm.compile_graph(*inputs) first.",
        )
    if learner.batch_size is not None and learner.program.states.keys:
        raise NativeError(
            "algorithm",
            got=f"a batch with the random key {', '.join(learner.program.states.keys)!r}",
            expected="a module without random numbers, or one sample",
            repair="BrainScale keeps no key for each sample; start from learner.init(key).",
        )


def _check_module(learner: Learner, states: dict[str, brainstate.State], weights: list[str]) -> None:
    ours = [relation.weight for relation in learner.program.relations]
    paths = {path for field in learner.program.states for path in field}
    if weights != ours or not paths <= set(states):
        raise NativeError(
            "algorithm",
            got=f"a module with the traced weights {weights} and the states {sorted(states)}",
            expected=f"the traced weights {ours} and the states {sorted(paths)}",
            repair="Compile the algorithm on the module that the learner was captured from.",
        )


def _check_samples(native: _Native) -> None:
    """Both of one sample, or both of a batch of the same size."""
    specs = native.learner.program.states.hidden
    states = native.to_front({path: state.value for path, state in native.states.items()})
    for path, spec in specs.items():
        own, leaf = (jax.tree.leaves(tree)[0] for tree in (spec, states[path]))
        lead = jnp.shape(leaf)[: max(0, jnp.ndim(leaf) - len(own.shape))]
        if lead != native.learner.lead:
            raise NativeError(
                "algorithm",
                got=f"{_samples(lead)}, by its state {path!r}",
                expected=f"{_samples(native.learner.lead)}, as the learner",
                repair="Compile the algorithm for the learner's samples, or take a learner of the algorithm's.",
            )


def _samples(lead: tuple[int, ...]) -> str:
    return count(lead[0], "sample") + " in a batch" if lead else "one sample without a batch axis"


def _check_aligned(relations: Sequence[Relation]) -> None:
    """BrainScale's D_RTRL keeps one number for each element of a weight, the sum over all that the element reaches."""
    spread = [(relation, leaf) for relation in relations for leaf in relation.leaves if relation.spread(leaf)]
    if not spread:
        return
    relation, leaf = spread[0]
    raise NativeError(
        f"algorithm: {relation.weight}[{leaf.name!r}]",
        got=f"a trace with one number for each element of {spec_text(leaf.spec)}",
        expected=f"one for each of these and each element of {spec_text(relation.y)} that it reaches",
        repair="BrainScale's D_RTRL adds them up, which cannot be undone: start from learner.init(), or use ES_D_RTRL.",
    )


def _other_algorithm(learner: Learner, algorithm: Any) -> NativeError:
    return NativeError(
        "algorithm",
        got=type(algorithm).__name__,
        expected=f"the native counterpart of {type(learner.algorithm).__name__}",
        repair="Use the learner with the algorithm that the training began with.",
    )
