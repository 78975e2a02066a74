"""BrainScale module -> Program; the only reader of BrainScale's compiler.

BrainScale decides what is a hidden group, what is a relation, and which equations lead from one to the other; here its
answer becomes plain data.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from ._assembly import Assembly, Compiled, FoundGroup, FoundRelation, split_states
from ._blueprint import Blueprint, states_of
from ._checks import check_batched, check_dtypes, check_reach, check_unchanged
from ._errors import CaptureError, PureBatchingError, StrategyError
from ._mappable import written_out, written_out_equation
from ._program import Axis, Params, Program, States
from ._readable import readable
from ._reasons import first_lines, repair_of
from ._tree import Tree, named_leaves, path_name, spec_of, spec_text, strong, with_lead, zeros_of

RANDOM = "random"

# The name of a weight operation in a jaxpr, and of one whose output BrainScale follows through further operations.
_WEIGHT_OPERATION = "_etrace_operator_call"
_FOLLOWED = "_etrace_operator_call_enable_grad"

Result = TypeVar("Result")


def capture_program(
    net: Any, examples: tuple[Tree, ...], environ: dict[str, Any] | None, axis_name: str | None = None
) -> tuple[Program, Params]:
    """A module as a pure program of one sample, and its trainable values.

    Args:
      net: the module; it is read and left as it was.
      examples: the arguments of one step of one sample.
      environ: settings (`dt`, `fit`) on top of those that are in force.
      axis_name: of the axis along which the module's own code reaches other samples.

    Raises:
      CaptureError: the module cannot be traced, or BrainScale's compiler refuses it.
    """
    blueprint = Blueprint(net, environ)
    params = jax.tree.map(jnp.asarray, blueprint.params())
    tracer = _Tracer(blueprint, spec_of(examples), spec_of(params), axis_name)
    return tracer.single(), strong(params, tracer.params)


class _Tracer:
    """Traces a blueprint, for one sample or with a batch axis."""

    def __init__(self, blueprint: Blueprint, inputs: tuple[Tree, ...], params: Params, axis_name: str | None) -> None:
        self.blueprint, self.inputs, self.params, self.axis_name = blueprint, inputs, params, axis_name
        self.fresh = self._explained(blueprint.initial_values)

    def single(self) -> Program:
        """The program of one sample."""
        return self._one_of(1)

    def _across(self, size: int) -> Program:
        """The program of one of `size` samples along the axis."""
        program = self._one_of(size)
        return replace(program, axis=self._axis(is_alone=False))

    def _axis(self, *, is_alone: bool) -> Axis | None:
        return None if self.axis_name is None else Axis(self.axis_name, self._across, is_alone)

    def _one_of(self, size: int) -> Program:
        """The program of one of `size` samples along the axis, if there is one."""
        with self.blueprint.environment():
            module = self._explained(self.blueprint.build)
            compiled = self._explained(lambda: self._compiled(module, self.inputs, size))
        check_unchanged(compiled, self.blueprint.name)
        check_dtypes(compiled, self.blueprint.name)
        check_reach(compiled, self.blueprint.name)
        return self._program(compiled, split_states(compiled))

    def _compiled(self, module: brainstate.nn.Module, inputs: tuple[Tree, ...], size: int = 1) -> Compiled:
        """A compiled step of one of `size` samples along the axis, if there is one."""
        if self.axis_name is None:
            return compile_module(module, inputs)
        found: list[Compiled] = []
        jax.vmap(lambda _: found.append(compile_module(module, inputs)), axis_name=self.axis_name)(jnp.zeros(size))
        return found[0]

    def batched(self, batch_size: int, single: Program) -> Program:
        """The module's own arithmetic on arrays with a batch axis."""
        once = {path for path in single.states.other if self._is_kept_once(path)}
        axes = {path: axis for path, axis in self.axes(single.states).items() if path not in once}
        inputs = with_lead(self.inputs, (batch_size,))
        with self.blueprint.environment():
            module = self.blueprint.build()
            _add_batch(module, axes, batch_size)
            compiled = self._mapped(lambda: self._compiled(module, inputs))
        check_batched(compiled, single, batch_size, self.blueprint.name)
        states = States(*({path: compiled.specs[path] for path in field} for field in single.states))
        return self._program(compiled, states)

    def _program(self, compiled: Compiled, states: States) -> Program:
        assembly = Assembly(compiled)
        groups = assembly.program_groups()
        return Program(
            inputs=self.inputs,
            output=compiled.output,
            params=self.params,
            states=states,
            direct=compiled.direct,
            groups=groups,
            relations=assembly.program_relations(groups),
            initial=lambda key: self._initial(key, states),
            retrace=self.batched,
            batch_axes=lambda: self.axes(states),
            step=assembly.step(),
            order=compiled.order,
            axis=self._axis(is_alone=True),
        )

    def _initial(self, key: jax.Array, states: States) -> States:
        values, left = self.fresh.run(_native_key(key))
        known = {**values, RANDOM: left}
        fresh = States(*({path: known[path] for path in field} for field in states))
        return States(*(strong(field, spec) for field, spec in zip(fresh, states, strict=True)))

    def axes(self, states: States) -> dict[str, Tree]:
        """Where the module keeps the batch axis of each state: the axis that differs between two batch sizes."""
        two, three = self._two_sizes
        return {
            path: jax.tree.map(_differing_axis, two.get(path, spec), three.get(path, spec))
            for field in (states.hidden, states.other)
            for path, spec in field.items()
        }

    def _is_kept_once(self, path: str) -> bool:
        """Whether the module itself does not multiply a state by its samples: running statistics of a batch, say."""
        two, three = self._two_sizes
        return path in two and _same_shapes(two[path], three[path])

    @cached_property
    def _two_sizes(self) -> tuple[dict[str, Tree], dict[str, Tree]]:
        try:
            return self.blueprint.initial_values(2).output, self.blueprint.initial_values(3).output
        except Exception:  # noqa: BLE001 - an init_state without batch sizes: its states get the axis in front
            return {}, {}

    def _explained(self, trace: Callable[[], Result]) -> Result:
        try:
            return trace()
        except PureBatchingError:
            raise
        except Exception as reason:
            raise CaptureError(
                self.blueprint.name,
                got=f"{type(reason).__name__}: {first_lines(reason)}",
                expected="a module whose update() is one step of one sample that BrainScale can compile; its example "
                f"inputs were ({', '.join(map(spec_text, self.inputs))}), without T and B",
                repair=repair_of(reason, self.blueprint),
            ) from reason

    def _mapped(self, trace: Callable[[], Result]) -> Result:
        try:
            return trace()
        except Exception as reason:
            raise StrategyError(
                self.blueprint.name,
                got=f"{type(reason).__name__} with a batch axis: {first_lines(reason)}",
                expected="a module whose own code carries a batch axis",
                repair="Use pb.vmap, which needs the step of one sample only.",
            ) from reason


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


def _native_key(key: jax.Array) -> jax.Array:
    """A key in the form that BrainState keeps: typed or raw, as its version has it."""
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    wants_typed = jnp.issubdtype(jnp.asarray(brainstate.random.DEFAULT.value).dtype, jax.dtypes.prng_key)
    if is_typed == wants_typed:
        return key
    return jax.random.wrap_key_data(key) if wants_typed else jax.random.key_data(key)


def _same_shapes(two: Tree, three: Tree) -> bool:
    return [leaf.shape for leaf in jax.tree.leaves(two)] == [leaf.shape for leaf in jax.tree.leaves(three)]


def _differing_axis(two: jax.ShapeDtypeStruct, three: jax.ShapeDtypeStruct) -> int:
    differing = [axis for axis, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
    return differing[0] if differing else 0


def _add_batch(module: brainstate.nn.Module, axes: dict[str, Tree], batch_size: int) -> None:
    def widen(leaf: jax.Array, axis: int) -> np.ndarray:
        shape = (*leaf.shape[:axis], batch_size, *leaf.shape[axis:])
        return np.broadcast_to(np.expand_dims(np.asarray(leaf), axis), shape)

    for path, state in states_of(module).items():
        if path in axes:
            state.value = jax.tree.map(widen, state.value, axes[path])
