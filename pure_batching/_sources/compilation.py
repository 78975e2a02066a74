"""What BrainScale's compiler finds in a module, as plain data; the only reader of that compiler.

BrainScale decides what is a hidden group, what is a relation, and which equations lead from one to the other.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import brainscale
import brainstate
import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from .._reader.assembly import Compiled, FoundGroup, FoundRelation
from .._reader.readable import readable
from .._reader.written_out import written_out, written_out_equation
from .._tree import Tree, named_leaves, path_name, spec_of, zeros_of
from .blueprint import states_of

RANDOM = "random"

# The name of a weight operation in a jaxpr, and of one whose output BrainScale follows through further operations.
_WEIGHT_OPERATION = "_etrace_operator_call"
_FOLLOWED = "_etrace_operator_call_enable_grad"


def compile_module(module: brainstate.nn.Module, inputs: tuple[Tree, ...]) -> Compiled:
    """What BrainScale's compiler finds in a module, which it marks and which must therefore be a copy."""
    _apply_weight_functions_once(module)
    with _quiet():
        info = _made_readable(brainscale.extract_module_info(module, *zeros_of(inputs)))
        groups = _all_groups(info)
        group_of = {path: group for group in groups for path in group.hidden_paths}
        relations = brainscale.find_hidden_param_op_relations_from_minfo(info, group_of)
        perturb = brainscale.add_hidden_perturbation_from_minfo(info)
    return _described(Found(info, groups, relations, perturb), inputs)


class Found(NamedTuple):
    """The stages of `brainscale.compile_etrace_graph`, with a group for each hidden state."""

    info: brainscale.ModuleInfo
    groups: list[brainscale.HiddenGroup]
    relations: Sequence[brainscale.HiddenParamOpRelation]
    perturb: brainscale.HiddenPerturbation


def _made_readable(info: brainscale.ModuleInfo) -> brainscale.ModuleInfo:
    """The same step, without what BrainScale's compiler refuses in its own equations."""
    jaxpr = readable(
        info.jaxpr, set(info.invar_to_hidden_path), set(info.outvar_to_hidden_path), opaque=_is_weight_operation
    )
    return info._replace(closed_jaxpr=ClosedJaxpr(jaxpr, info.closed_jaxpr.consts))


def _all_groups(info: brainscale.ModuleInfo) -> list[brainscale.HiddenGroup]:
    """BrainScale's groups, and one for each hidden state that no hidden state leads to: its diagonal is zero."""
    groups, known = brainscale.find_hidden_groups_from_minfo(info)
    alone = sorted(set(info.hidden_path_to_outvar) - set(known), key=path_name)
    return [*groups, *(_group_alone(info, path, len(groups) + i) for i, path in enumerate(alone))]


def _group_alone(info: brainscale.ModuleInfo, path: tuple[Any, ...], index: int) -> brainscale.HiddenGroup:
    before, after = info.hidden_path_to_invar[path], info.hidden_path_to_outvar[path]
    return brainscale.HiddenGroup(
        index=index,
        hidden_paths=[path],
        hidden_states=[info.retrieved_model_states[path]],
        hidden_invars=[before],
        hidden_outvars=[after],
        transition_jaxpr=Jaxpr([after], [before], [after], []),
        transition_jaxpr_constvars=[after],
    )


def _apply_weight_functions_once(module: brainstate.nn.Module) -> None:
    """`MatMulOp` computes `x @ f(f(w * m))` where its documentation says `x @ f(w * m)`; here it computes that."""
    for state in states_of(module).values():
        op = getattr(state, "op", None)
        if isinstance(state, brainscale.ETraceParam) and type(op) is brainscale.MatMulOp:
            state.op = _once(op)


def _once(op: brainscale.MatMulOp) -> brainscale.MatMulOp:
    if op.apply_weight_fn_before_mask:
        return op
    function, mask = op.weight_fn, op.weight_mask
    whole = function if mask is None else lambda w: function(w * mask)
    return brainscale.MatMulOp(weight_fn=whole, apply_weight_fn_before_mask=True)


def _described(found: Found, inputs: tuple[Tree, ...]) -> Compiled:
    info, perturb = found.info, found.perturb
    states = {state_name(info.state_id_to_path[id(state)], state): state for state in info.compiled_model_states}
    cache = info.stateful_model.get_arg_cache_key(*zeros_of(inputs))
    output, _ = info.stateful_model.get_out_shapes_by_cache(cache)
    traced = {path_name(relation.path) for relation in found.relations}
    return Compiled(
        closed=ClosedJaxpr(written_out(perturb.perturb_jaxpr.jaxpr), perturb.perturb_jaxpr.consts),
        num_inputs=len(jax.tree.leaves(inputs)),
        output=spec_of(output),
        order=tuple(states),
        specs={path: spec_of(state.value) for path, state in states.items()},
        kinds={path: _kind(state) for path, state in states.items()},
        perturbations={
            path_name(path): var for path, var in zip(perturb.perturb_hidden_paths, perturb.perturb_vars, strict=True)
        },
        groups=tuple(found_group(group) for group in found.groups),
        relations=tuple(_found_relation(relation, info) for relation in found.relations),
        direct=tuple(sorted(path for path, state in states.items() if _is_direct(state, path in traced))),
        is_blocked=_is_blocked,
    )


def found_group(group: Any) -> FoundGroup:
    """A hidden group in plain data, its states sorted by path."""
    members = zip(group.hidden_paths, group.hidden_states, group.hidden_invars, group.hidden_outvars, strict=True)
    ordered = sorted((path_name(path), _width(state), before, after) for path, state, before, after in members)
    paths, widths, invars, outvars = zip(*ordered, strict=True)
    return FoundGroup(paths, widths, invars, outvars, _equations(group.transition_jaxpr))


def _found_relation(relation: brainscale.HiddenParamOpRelation, info: brainscale.ModuleInfo) -> FoundRelation:
    links = zip(relation.hidden_groups, relation.y_to_hidden_group_jaxprs, strict=True)
    (operation,) = (eqn for eqn in info.jaxpr.eqns if relation.y in eqn.outvars)
    return FoundRelation(
        weight=path_name(relation.path),
        weight_vars=tuple(info.weight_path_to_invars[relation.path]),
        leaf_names=tuple(name.strip("[]'.") or "weight" for name, _ in named_leaves(relation.weight.value, "")),
        gradient=relation.weight.gradient.value,
        x=relation.x,
        y=relation.y,
        operation=written_out_equation(operation),
        links=tuple((found_group(group).name, _equations(jaxpr)) for group, jaxpr in links),
    )


def _equations(jaxpr: Jaxpr) -> tuple[JaxprEqn, ...]:
    return tuple(written_out_equation(eqn) for eqn in jaxpr.eqns)


def state_name(path: tuple[Any, ...], state: brainstate.State) -> str:
    """A state's path, or "random" for the global generator, which has none."""
    return RANDOM if state is brainstate.random.DEFAULT else path_name(path)


def _kind(state: brainstate.State) -> str:
    if isinstance(state, brainstate.ParamState):
        return "param"
    if isinstance(state, brainstate.HiddenState):
        return "hidden"
    return "key" if isinstance(state, brainstate.random.RandomState) else "other"


def _width(state: brainstate.HiddenState) -> int:
    return state.num_state if isinstance(state, brainstate.HiddenGroupState) else 0


def _is_direct(state: brainstate.State, is_related: bool) -> bool:  # noqa: FBT001 - of one state
    """BrainScale trains a weight by its trace unless one of its uses reaches no hidden state, or none that fits."""
    is_traced = isinstance(state, brainscale.ETraceParam) and state.is_etrace and is_related
    return isinstance(state, brainstate.ParamState) and not is_traced


def _is_weight_operation(eqn: JaxprEqn) -> bool:
    return str(eqn.params.get("name", "")).startswith(_WEIGHT_OPERATION)


def _is_blocked(eqn: JaxprEqn) -> bool:
    name = str(eqn.params.get("name", ""))
    is_weight = name.startswith(_WEIGHT_OPERATION) and not name.startswith(_FOLLOWED)
    return is_weight or eqn.primitive.name == "stop_gradient"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what BrainScale prints and warns of states and weights that take no part; `Program` lists them."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*does not found the associated hidden states")
        yield
