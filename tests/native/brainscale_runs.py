"""BrainScale itself, in its three ways: one sample, a manual batch, a mapped batch."""

import functools
from collections.abc import Callable
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp

import pure_batching as pb
from pure_batching._sources.paths import path_of
from pure_batching.testing._native_run import (
    Make as Make,
    Native as Native,
    Samples as Samples,
    native,
    one_by_one as each_alone,
)

from ..bench import SAMPLES, STEPS, Bench, Result
from ..trees import Tree, joined_carries, sample


def es_d_rtrl(net: Any, **settings: Any) -> Any:
    """BrainScale's counterpart of `pb.ES_D_RTRL(0.9)`."""
    return brainscale.ES_D_RTRL(net, decay_or_rank=0.9, **settings)


def d_rtrl(net: Any, **settings: Any) -> Any:
    """BrainScale's counterpart of `pb.D_RTRL()`."""
    return brainscale.D_RTRL(net, **settings)


def hybrid(net: Any, **settings: Any) -> Any:
    """BrainScale's counterpart of `pb.Hybrid(0.9)`."""
    return brainscale.HybridDimVjpAlgorithm(net, decay_or_rank=0.9, **settings)


@functools.cache
def one_sample(made: Bench, make: Make) -> Native:
    """One sample; made once, and restarted by whoever runs it."""
    return native(made.subject, make)


def manual(made: Bench, make: Make, samples: int = SAMPLES) -> Native:
    """A batch by `mode=Batching()`, which hands `(B, ...)` arrays to the module."""
    model, net = made.model, made.model.build(made.seed)
    with brainstate.environ.context(**model.settings):
        brainstate.nn.init_all_states(net, batch_size=samples)
        algorithm = make(net, mode=brainstate.mixin.Batching())
        algorithm.compile_graph(*model.inputs(made.seed, samples))
    return Native.of(net, algorithm, model.loss, model.settings, is_batched=True)


def mapped(made: Bench, make: Make, samples: int = SAMPLES) -> Native:
    """A batch by `vmap_new_states` and `brainstate.nn.Vmap`."""
    model, net = made.model, made.model.build(made.seed)
    algorithm = make(net)

    @brainstate.transform.vmap_new_states(state_tag="new", axis_size=samples)
    def start() -> None:
        brainstate.nn.init_all_states(net)
        algorithm.compile_graph(*model.inputs(made.seed))

    with brainstate.environ.context(**model.settings):
        start()
    call = brainstate.nn.Vmap(algorithm, vmap_states="new")
    return Native.of(net, algorithm, model.loss, model.settings, call, is_batched=True)


BATCHED = {"manual": manual, "vmap": mapped}
"""BrainScale's modes by the name of the strategy that they correspond to."""


def one_by_one(made: Bench, make: Make, read: Callable[[Bench, Native], Any]) -> Samples:
    """The bench's own data and fresh states, one sample at a time; `read` looks at each sample where it ended."""
    runs, hidden = one_sample(made, make), made.start("vmap").hidden
    starts = [sample(hidden, i) for i in range(SAMPLES)]
    return each_alone(runs, starts, made.data(STEPS, SAMPLES), lambda: read(made, runs))


@functools.cache
def by_input_output(made: Bench) -> Result:
    """BrainScale's ES_D_RTRL, and where each sample ended."""
    run = one_by_one(made, es_d_rtrl, carry_of)
    return Result(run.gradients, pb.Aux(joined_carries(run.ends), run.losses, run.outputs))


@functools.cache
def by_parameter(made: Bench) -> Samples:
    """BrainScale's D_RTRL; the ends are hidden states and traces."""
    return one_by_one(made, d_rtrl, lambda made, runs: (hidden_states(made, runs), parameter_traces(runs.algorithm)))


def carry_of(made: Bench, runs: Native) -> pb.Carry:
    """What `pb.from_native` reads."""
    return pb.from_native(made.learner, runs.algorithm)


def hidden_states(made: Bench, runs: Native) -> dict[str, Tree]:
    """The hidden states by path."""
    values = pb.read_states(runs.net)
    return {path: values[path] for path in made.start("vmap").hidden}


def parameter_traces(algorithm: Any) -> dict[str, dict[str, jax.Array]]:
    """D_RTRL's traces `[*w.shape, ns]` by weight and hidden states, leaf by leaf; the states sorted by path."""
    relations = algorithm.graph.hidden_param_op_relations
    order = [(relation, group) for relation in relations for group in relation.hidden_groups]
    traces = {}
    for (relation, group), state in zip(order, algorithm.etrace_bwg.values(), strict=True):
        names = [path_of(algorithm.model4compile, path) for path in group.hidden_paths]
        counts = [hidden.num_state for hidden in group.hidden_states]
        columns = [(name, k) for name, count in zip(names, counts, strict=True) for k in range(count)]
        sorting = sorted(range(len(columns)), key=columns.__getitem__)
        leaves = {
            jax.tree_util.keystr(path[:1]): u.get_mantissa(leaf)[..., jnp.array(sorting)]
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.value, is_leaf=u.math.is_quantity)
        }
        traces[f"{path_of(algorithm.model4compile, relation.path)} -> {', '.join(sorted(names))}"] = leaves
    return traces
