"""BrainScale itself, in its three ways: one sample, a manual batch, a mapped batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp

import pure_batching as pb

from ..bench import SAMPLES, STEPS, Bench, Data, Result, bench
from ..models import MODELS, Model
from ..trees import Tree, joined, joined_carries, sample

Make = Callable[..., Any]


def es_d_rtrl(net: Any, **settings: Any) -> Any:
    """BrainScale's counterpart of `pb.ES_D_RTRL(0.9)`."""
    return brainscale.ES_D_RTRL(net, decay_or_rank=0.9, **settings)


def d_rtrl(net: Any, **settings: Any) -> Any:
    """BrainScale's counterpart of `pb.D_RTRL()`."""
    return brainscale.D_RTRL(net, **settings)


@dataclasses.dataclass(frozen=True, eq=False)
class Native:
    """A compiled BrainScale algorithm on a model of the registry.

    Attributes:
      model: the registry's entry.
      seed: what its weights are drawn from.
      net: the module, with the same weights as the bench's.
      algorithm: compiled.
      call: what runs a step: the algorithm, or its map over samples.
      is_batched: whether inputs lead with samples.
    """

    model: Model
    seed: int
    net: Any
    algorithm: Any
    call: Callable[..., Tree]
    is_batched: bool

    def __post_init__(self) -> None:
        assert self.start, "nothing to restart"

    @functools.cached_property
    def start(self) -> list[tuple[Any, Tree]]:
        """Every state that a step may change, and its value before the first step."""
        weights = set(map(id, self.net.states(brainstate.ParamState).values()))
        states = {id(state): state for state in self.algorithm.states().values() if id(state) not in weights}
        return [(state, state.value) for state in states.values()]

    def restart(self) -> None:
        """The states before the first step."""
        for state, value in self.start:
            state.value = value

    def run(self, data: Data) -> tuple[Tree, jax.Array, Tree]:
        """Gradients summed over steps and samples, losses and outputs of `[T, ...]` data, from where the states are."""
        with brainstate.environ.context(**self.model.settings):
            gradients, (losses, outputs) = self._compiled(data)
        return {".".join(map(str, path)): value for path, value in gradients.items()}, losses, outputs

    @functools.cached_property
    def _compiled(self) -> Callable[[Data], Any]:
        return brainstate.transform.jit(self._sequence)

    def _sequence(self, data: Data) -> Any:
        weights = self.net.states(brainstate.ParamState)
        loss = jax.vmap(self.model.loss) if self.is_batched else self.model.loss

        def step(total: Tree, given: Data) -> Any:
            def value() -> Any:
                output = self.call(*given[0])
                losses = loss(output, given[1])
                return losses.sum(), (losses, output)

            gradient, (losses, output) = brainstate.transform.grad(value, weights, has_aux=True)()
            return _added(total, gradient), (losses, output)

        zeros = jax.tree.map(u.math.zeros_like, weights.to_dict_values(), is_leaf=u.math.is_quantity)
        return brainstate.transform.scan(step, zeros, data)


def _added(one: Tree, other: Tree) -> Tree:
    return jax.tree.map(lambda x, y: x + y, one, other, is_leaf=u.math.is_quantity)


def one_sample(name: str, seed: int, make: Make) -> Native:
    """One sample."""
    model = MODELS[name]
    net = model.build(seed)
    with brainstate.environ.context(**model.settings):
        brainstate.nn.init_all_states(net)
        algorithm = make(net)
        algorithm.compile_graph(*model.inputs(seed))
    return Native(model, seed, net, algorithm, algorithm, is_batched=False)


def manual(name: str, seed: int, make: Make, samples: int = SAMPLES) -> Native:
    """A batch by `mode=Batching()`, which hands `(B, ...)` arrays to the module."""
    model = MODELS[name]
    net = model.build(seed)
    with brainstate.environ.context(**model.settings):
        brainstate.nn.init_all_states(net, batch_size=samples)
        algorithm = make(net, mode=brainstate.mixin.Batching())
        algorithm.compile_graph(*model.inputs(seed, samples))
    return Native(model, seed, net, algorithm, algorithm, is_batched=True)


def mapped(name: str, seed: int, make: Make, samples: int = SAMPLES) -> Native:
    """A batch by `vmap_new_states` and `brainstate.nn.Vmap`."""
    model = MODELS[name]
    net = model.build(seed)
    algorithm = make(net)

    @brainstate.transform.vmap_new_states(state_tag="new", axis_size=samples)
    def start() -> None:
        brainstate.nn.init_all_states(net)
        algorithm.compile_graph(*model.inputs(seed))

    with brainstate.environ.context(**model.settings):
        start()
    return Native(model, seed, net, algorithm, brainstate.nn.Vmap(algorithm, vmap_states="new"), is_batched=True)


BATCHED = {"manual": manual, "vmap": mapped}
"""BrainScale's modes by the name of the strategy that they correspond to."""


class Samples(NamedTuple):
    """What BrainScale gives one sample at a time.

    Attributes:
      gradients: of each sample, `[B, *param.shape]`.
      losses, outputs: `[T, B, ...]`.
      ends: what was read of each sample after the last step.
    """

    gradients: Tree
    losses: jax.Array
    outputs: Tree
    ends: list[Any]


def one_by_one(bench: Bench, make: Make, read: Callable[[Native], Any]) -> Samples:
    """The bench's own data, one sample at a time; `read` looks at each sample where it ended."""
    hidden, data = bench.start("loop").hidden, bench.data(STEPS, SAMPLES)
    native, parts, ends = one_sample(bench.model.name, bench.seed, make), [], []
    for i in range(SAMPLES):
        native.restart()
        pb.write_states(native.net, sample(hidden, i))
        parts.append(native.run(sample(data, i, axis=1)))
        ends.append(read(native))
    losses, outputs = (joined([part[k] for part in parts], axis=1) for k in (1, 2))
    return Samples(joined([part[0] for part in parts]), losses, outputs, ends)


@functools.cache
def by_input_output(bench: Bench) -> Result:
    """BrainScale's ES_D_RTRL; the carry is what `pb.from_native` reads."""
    run = one_by_one(bench, es_d_rtrl, lambda native: pb.from_native(bench.learner, native.algorithm))
    return Result(run.gradients, pb.Aux(joined_carries(run.ends), run.losses, run.outputs))


@functools.cache
def by_parameter(bench: Bench) -> Samples:
    """BrainScale's D_RTRL; the ends are hidden states and traces."""
    return one_by_one(bench, d_rtrl, lambda native: (hidden_states(native), parameter_traces(native.algorithm)))


def hidden_states(native: Native) -> dict[str, Tree]:
    """The hidden states by path."""
    values = pb.read_states(native.net)
    return {path: values[path] for path in bench(native.model.name, native.seed).learner.init().hidden}


def parameter_traces(algorithm: Any) -> dict[str, dict[str, jax.Array]]:
    """D_RTRL's traces `[*w.shape, ns]` by weight and hidden states, leaf by leaf; the states sorted by path."""
    relations = algorithm.graph.hidden_param_op_relations
    order = [(relation, group) for relation in relations for group in relation.hidden_groups]
    traces = {}
    for (relation, group), state in zip(order, algorithm.etrace_bwg.values(), strict=True):
        names = [".".join(map(str, path)) for path in group.hidden_paths]
        counts = [hidden.num_state for hidden in group.hidden_states]
        columns = [(name, k) for name, count in zip(names, counts, strict=True) for k in range(count)]
        sorting = sorted(range(len(columns)), key=columns.__getitem__)
        leaves = {
            jax.tree_util.keystr(path[:1]): u.get_mantissa(leaf)[..., jnp.array(sorting)]
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.value, is_leaf=u.math.is_quantity)
        }
        traces[f"{'.'.join(map(str, relation.path))} -> {', '.join(sorted(names))}"] = leaves
    return traces


def divided(trace: Any) -> Any:
    """D_RTRL's trace with the division done that waits in its scales, for one sample or a batch."""

    def one(eps: jax.Array, scale: jax.Array) -> jax.Array:
        return eps / scale.reshape(scale.shape + (1,) * (eps.ndim - scale.ndim))

    return trace._replace(
        weights=jax.tree.map(one, trace.weights, trace.scales), scales=jax.tree.map(jnp.ones_like, trace.scales)
    )
