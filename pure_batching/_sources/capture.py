"""BrainScale module -> Program, for one sample or with a batch axis."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from .._program import Axis, Params, Program, States
from .._reader.assembly import Assembly, Compiled, split_states
from .._reader.checks import check_batched, check_dtypes, check_reach, check_unchanged
from .._tree import Tree, spec_of, spec_text, strong, with_lead
from ..errors import CaptureError, PureBatchingError, StrategyError
from .blueprint import Blueprint, states_of
from .compilation import RANDOM, compile_module
from .own_derivative import with_own_derivatives
from .reasons import cause_of, first_lines, repair_of

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
            found = self._explained(lambda: self._compiled(module, self.inputs, size))
            compiled = self._explained(lambda: with_own_derivatives(found, module))
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
        """Where the module keeps the batch axis of each state: the axis that differs between two batch sizes.

        It is the first axis of a state whose `init_state` takes no batch size.
        """
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
        """The states at two batch sizes; one whose `init_state` takes no batch size is missing."""
        return self.blueprint.batched_specs(2), self.blueprint.batched_specs(3)

    def _explained(self, trace: Callable[[], Result]) -> Result:
        try:
            return trace()
        except PureBatchingError:
            raise
        except Exception as error:
            reason = cause_of(error)
            raise CaptureError(
                self.blueprint.name,
                got=f"{type(reason).__name__}: {first_lines(reason)}",
                expected="a module whose update() is one step of one sample that BrainScale can compile; its example "
                f"inputs were ({', '.join(map(spec_text, self.inputs))}), without T and B",
                repair=repair_of(reason, self.blueprint),
            ) from error

    def _mapped(self, trace: Callable[[], Result]) -> Result:
        try:
            return trace()
        except Exception as error:
            reason = cause_of(error)
            raise StrategyError(
                self.blueprint.name,
                got=f"{type(reason).__name__} with a batch axis: {first_lines(reason)}",
                expected="a module whose own code carries a batch axis",
                repair="Use pb.vmap, which needs the step of one sample only.",
            ) from error


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
