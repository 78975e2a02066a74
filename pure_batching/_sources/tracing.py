"""A brainstate module -> the jaxpr of its step, with the duty of each state."""

from collections.abc import Mapping
from typing import Any

import brainstate
import jax

from .._reader.step import Kind, TracedStep
from .._tree import Tree, path_name, spec_of, zeros_of
from .blueprint import states_of
from .brainscale_marks import BrainScaleMarks, apply_weight_functions_once

RANDOM = "random"


def traced_step(module: brainstate.nn.Module, inputs: tuple[Tree, ...], axis_name: str | None) -> TracedStep:
    """The step of a module, which is changed by this and must therefore be a copy.

    Args:
      module: its `update(*inputs)` is one step; its states are initialised.
      inputs: the specifications of the arguments.
      axis_name: the named axis along which the module reaches other samples, None where there is none.
    """
    apply_weight_functions_once(module)
    stateful = brainstate.transform.StatefulFunction(module.__call__, return_only_write=False)
    with jax.disable_jit(disable=False):  # without its calls a step shows no marks
        stateful.make_jaxpr(*zeros_of(inputs))
    cache = stateful.get_arg_cache_key(*zeros_of(inputs))
    output, _ = stateful.get_out_shapes_by_cache(cache)
    states = _named(stateful.get_states_by_cache(cache), states_of(module))
    return TracedStep(
        jaxpr=stateful.get_jaxpr_by_cache(cache),
        inputs=inputs,
        output=spec_of(output),
        states={path: spec_of(state.value) for path, state in states.items()},
        kinds={path: _kind(state) for path, state in states.items()},
        widths={path: _width(state) for path, state in states.items() if isinstance(state, brainstate.HiddenState)},
        marks=BrainScaleMarks(states),
        axis_name=axis_name,
    )


def _named(states: Any, own: Mapping[str, brainstate.State]) -> dict[str, brainstate.State]:
    """The states that a step reads or writes, by path; one from outside of the module gets a number."""
    path_of = {id(state): path for path, state in own.items()}
    outside = [state for state in states if id(state) not in path_of and state is not brainstate.random.DEFAULT]
    path_of.update((id(state), f"_unknown_path_{i}") for i, state in enumerate(outside))
    return {state_name((path_of.get(id(state), ""),), state): state for state in states}


def state_name(path: tuple[Any, ...], state: brainstate.State) -> str:
    """A state's path, or "random" for the global generator, which has none."""
    return RANDOM if state is brainstate.random.DEFAULT else path_name(path)


def _kind(state: brainstate.State) -> Kind:
    if isinstance(state, brainstate.ParamState):
        return "param"
    if isinstance(state, brainstate.HiddenState):
        return "hidden"
    return "key" if isinstance(state, brainstate.random.RandomState) else "other"


def _width(state: brainstate.HiddenState) -> int:
    return state.num_state if isinstance(state, brainstate.HiddenGroupState) else 0
