"""A brainstate module -> the jaxpr of its step, with the duty of each state."""

from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from .._reader.jaxprs import inner
from .._reader.step import Kind, TracedStep
from .._tree import Tree, like, spec_of, spec_text, zeros_of
from ..errors import CaptureError
from .blueprint import is_generator, states_of
from .brainscale_marks import BrainScaleMarks, apply_weight_functions_once
from .braintrace_marks import with_braintrace

# No attribute has this name.
RANDOM = "brainstate.random.DEFAULT"


def traced_step(
    module: brainstate.nn.Module, inputs: tuple[Tree, ...], axis_name: str | None, *, is_strict: bool
) -> TracedStep:
    """The step of a module, which is changed by this and must therefore be a copy.

    Args:
      module: its `update(*inputs)` is one step; its states are initialised.
      inputs: the specifications of the arguments.
      axis_name: the named axis along which the module reaches other samples, None where there is none.
      is_strict: see `TracedStep`.
    """
    apply_weight_functions_once(module)
    step, states = _traced_once(module, inputs, axis_name)
    while _settled(states, step):
        step, states = _traced_once(module, inputs, axis_name)
    return with_braintrace(step._replace(is_strict=is_strict))


def _traced_once(
    module: brainstate.nn.Module, inputs: tuple[Tree, ...], axis_name: str | None
) -> tuple[TracedStep, dict[str, brainstate.State]]:
    """The step with the initial states as they are, and the states."""
    stateful = brainstate.transform.StatefulFunction(module.__call__, return_only_write=False)
    stateful.make_jaxpr(*zeros_of(inputs))
    cache = stateful.get_arg_cache_key(*zeros_of(inputs))
    output, _ = stateful.get_out_shapes_by_cache(cache)
    states = _named(stateful.get_states_by_cache(cache), states_of(module))
    step = TracedStep(
        jaxpr=stateful.get_jaxpr_by_cache(cache),
        inputs=inputs,
        output=spec_of(output),
        states={path: spec_of(state.value) for path, state in states.items()},
        kinds={path: _kind(state) for path, state in states.items()},
        widths={path: _width(state) for path, state in states.items() if isinstance(state, brainstate.HiddenState)},
        marks=BrainScaleMarks(states),
        is_strict=False,
        axis_name=axis_name,
    )
    return step, states


def _settled(states: Mapping[str, brainstate.State], step: TracedStep) -> bool:
    """Give initial values of weak type the float type that the step gives them, as `jax.lax.scan` does.

    `jnp.full` of a Python number is weak, and so is what BrainState's `ZeroInit` makes: such a state of a module in
    bfloat16 begins in float32.

    Returns:
      Whether an initial value changed, so that the step must be traced again.
    """
    _, after = step.variables(inner(step.jaxpr)[0])
    changed = False
    for path, state in states.items():
        dtypes = [var.aval.dtype for var in after[path]]
        if any(map(_is_weaker, jax.tree.leaves(state.value), dtypes)):
            state.value = like(state.value, [*map(_settled_value, jax.tree.leaves(state.value), dtypes)])
            changed = True
    return changed


def _is_weaker(value: Any, dtype: Any) -> bool:
    """Whether a value is a weakly typed float array of another type than the given one."""
    is_weak = isinstance(value, jax.Array) and jax.typeof(value).weak_type and value.dtype != dtype
    return is_weak and all(jnp.issubdtype(kind, jnp.floating) for kind in (value.dtype, dtype))


def _settled_value(value: Any, dtype: Any) -> Any:
    return jax.lax.convert_element_type(value, dtype) if _is_weaker(value, dtype) else value


def _named(states: Any, own: Mapping[str, brainstate.State]) -> dict[str, brainstate.State]:
    """The states that a step reads or writes, by path; one from outside of the module gets a number."""
    path_of = {id(state): path for path, state in own.items()}
    outside = [state for state in states if id(state) not in path_of and state is not brainstate.random.DEFAULT]
    _check_outside(outside)
    path_of.update((id(state), f"_unknown_path_{i}") for i, state in enumerate(outside))
    return {state_name(path_of.get(id(state), ""), state): state for state in states}


def _check_outside(states: list[brainstate.State]) -> None:
    """Raise CaptureError for a state that the module does not hold; a random generator may be anywhere."""
    for state in states:
        if not is_generator(state):
            kind = f"{type(state).__name__} {spec_text(spec_of(state.value))}"
            raise CaptureError(
                "update()",
                got=f"a {kind} that no attribute of the module leads to",
                expected="states that the module holds",
                repair="Keep it in an attribute of the module, not in a closure or a global variable.",
            )


def state_name(path: str, state: brainstate.State) -> str:
    """A state's path, or `RANDOM` for the global generator, which has none."""
    return RANDOM if state is brainstate.random.DEFAULT else path


def _kind(state: brainstate.State) -> Kind:
    if isinstance(state, brainstate.ParamState):
        return "param"
    if isinstance(state, brainstate.HiddenState):
        return "hidden"
    return "key" if is_generator(state) else "other"


def _width(state: brainstate.HiddenState) -> int:
    return state.num_state if isinstance(state, brainstate.HiddenGroupState) else 0
