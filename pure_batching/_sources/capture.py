"""ModuleSource: a BrainScale module that was captured, and the programs that are traced from it."""

from collections.abc import Callable, Hashable, Mapping
from functools import cached_property
from typing import Any, TypeVar

import brainstate
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from .._conform import conform
from .._program import Params, Program, States
from .._reader.checks import check_batched, check_step
from .._reader.noise import with_noise_of_each
from .._reader.reading import read
from .._reader.step import TracedStep
from .._tree import Tree, spec_of, spec_text, strong, with_lead
from ..errors import CaptureError, PickleError, PureBatchingError, StrategyError, StructureError
from .base import Source, assembled, remembered
from .blueprint import Blueprint, Traced
from .kernels import check_kernels
from .keys import folded_key
from .reasons import cause_of, first_lines, repair_of
from .tracing import RANDOM, traced_step

Result = TypeVar("Result")


class ModuleSource(Source):
    """A private copy of a module, and the programs that were traced from it, each once."""

    def __init__(
        self,
        net: Any,
        examples: tuple[Tree, ...],
        environ: dict[str, Any] | None,
        axis_name: str | None,
        *,
        is_strict: bool,
    ) -> None:
        """Copy a module and trace its step of one sample.

        Args:
          net: the module; it is read and left as it was.
          examples: the arguments of one step of one sample.
          environ: settings (`dt`, `fit`) on top of those in force.
          axis_name: the name of the axis along which the module's own code reaches other samples, or None.
          is_strict: see `TracedStep`.

        Raises:
          CaptureError: the module cannot be traced, or its step cannot be carried on.
        """
        self._blueprint = Blueprint(net, environ)
        self.name, self.axis_name, self.numerics = self._blueprint.name, axis_name, self._blueprint.numerics
        self.memory: dict[Hashable, Any] = {}
        self._inputs, self._is_strict = spec_of(examples), is_strict
        self._param_specs = self._explained(lambda: spec_of(jax.tree.map(jnp.asarray, self._blueprint.params())))
        self._initial_values = self._explained(self._blueprint.initial_values)
        self.draws_at_start = self._initial_values.draws
        # A second strategy of the same size, and an audit, find what was traced for the first.
        self._programs: dict[int, Program] = {}
        self._steps: dict[int, TracedStep] = {}
        self._batched_programs: dict[int, Program] = {}
        self._batched_steps: dict[int, TracedStep] = {}
        self.one_of(1)

    def params(self) -> Params:
        """Copies of the trainable values by path, which the caller may donate."""
        return strong(jax.tree.map(jnp.array, self._blueprint.params()), self._param_specs)

    def checked_params(self, params: Tree) -> Params:
        """See `Source.checked_params`."""
        if not isinstance(params, Mapping):
            raise StructureError(
                "params",
                got=type(params).__name__,
                expected="{path: value}",
                repair="pb.capture returns a learner and its params; pass the second.",
            )
        return conform(params if isinstance(params, dict) else dict(params), self._param_specs, "params")

    def as_given(self, params: Params) -> Tree:
        """The same: they are given by path."""
        return params

    def one_of(self, size: int) -> Program:
        """See `Source.one_of`."""
        return remembered(self._programs, self._along(size), self._trace_one_of)

    def batched(self, size: int) -> Program:
        """See `Source.batched`."""
        return remembered(self._batched_programs, size, self._trace_batched)

    def batch_axes(self) -> Mapping[str, Tree]:
        """The axis that differs between two batch sizes; the first one for a state that the module keeps once."""
        two, three = self._two_sizes
        states = self.one_of(1).states
        return {
            path: jax.tree.map(_differing_axis, two.get(path, spec), three.get(path, spec))
            for field in (states.hidden, states.other)
            for path, spec in field.items()
        }

    def recipe(self) -> tuple[Callable[..., Source], tuple[Any, ...]]:
        """See `Source.recipe`."""
        raise PickleError(
            self.name,
            got="a learner of a module, which BrainState does not let anyone pickle",
            expected="a learner of a plain function, or arrays",
            repair="Pickle params and carry, and call pb.capture on the module in the other process.",
        )

    def fresh(self, key: jax.Array) -> States:
        """See `Source.fresh`."""
        states = self.one_of(1).states
        values, keys, left = self._initial_values.run(key)
        outside = {path: folded_key(left, path) for path in states.keys}  # a generator that is no part of the module
        known = {**values, **outside, **keys, RANDOM: left}
        return assembled(states, known)

    def _along(self, size: int) -> int:
        """How many samples lie along the axis, where there is one, for a batch of a size."""
        return 1 if self.axis_name is None else size

    def _trace_one_of(self, size: int) -> Program:
        with self._blueprint.environment():
            step = self._explained(lambda: self._traced(self._blueprint.build, self._inputs, size))
            self._steps[size] = step
            check_step(step, self.name)
            check_kernels(step, self.name)
            return self._explained(lambda: read(step, self._param_specs))

    def _traced(self, build: Callable[[], brainstate.nn.Module], inputs: tuple[Tree, ...], size: int) -> TracedStep:
        """The step of one of `size` samples along the axis, if there is one, of a module that is built for it."""
        found: list[TracedStep] = []

        def trace(_: Any) -> None:
            found.append(traced_step(build(), inputs, self.axis_name, is_strict=self._is_strict))

        def along() -> None:
            mapped = trace if self.axis_name is None else jax.vmap(trace, axis_name=self.axis_name)
            mapped(np.zeros(size))

        Traced.of(along)  # a step is read from the shapes of its states, so their values are traced only
        if any(isinstance(const, jax.core.Tracer) for const in found[-1].jaxpr.consts):
            with self._blueprint.seeded():
                along()  # init_state left an array outside of the states, which the step reads as a constant
        return found[-1]

    def own_step(self, size: int) -> TracedStep:
        """See `Source.own_step`."""
        return remembered(self._batched_steps, size, self._trace_own)

    def _trace_own(self, size: int) -> TracedStep:
        once = {path for path in self.one_of(1).states.other if self._is_kept_once(path)}
        axes = {path: axis for path, axis in self.batch_axes().items() if path not in once}
        inputs = with_lead(self._inputs, (size,))
        with self._blueprint.environment():
            return self._mapped(lambda: self._traced(lambda: self._blueprint.build_batched(axes, size), inputs, 1))

    def _trace_batched(self, size: int) -> Program:
        single, step = self.one_of(1), self.own_step(size)
        with self._blueprint.environment():
            self.one_of(size)  # whose step is remembered
            step = with_noise_of_each(step, self._steps[self._along(size)], size)
            check_batched(step, single, size, self.name)
            return self._mapped(lambda: read(step._replace(lead=1), self._param_specs, single))

    def _is_kept_once(self, path: str) -> bool:
        """Whether the module itself does not multiply a state by its samples: running statistics of a batch, say."""
        two, three = self._two_sizes
        return path in two and _same_shapes(two[path], three[path])

    @cached_property
    def _two_sizes(self) -> tuple[dict[str, Tree], dict[str, Tree]]:
        return self._blueprint.batched_specs(2), self._blueprint.batched_specs(3)

    def _explained(self, trace: Callable[[], Result]) -> Result:
        try:
            return trace()
        except PureBatchingError:
            raise
        except Exception as error:
            reason = cause_of(error)
            raise CaptureError(
                self.name,
                got=f"{type(reason).__name__}: {first_lines(reason)}",
                expected="a module whose update() is one step of one sample; its example inputs "
                f"were ({', '.join(map(spec_text, self._inputs))}), without T and B",
                repair=repair_of(reason, self._blueprint),
            ) from error

    def _mapped(self, trace: Callable[[], Result]) -> Result:
        try:
            return trace()
        except StrategyError:
            raise
        except Exception as error:
            reason = cause_of(error)
            raise StrategyError(
                self.name,
                got=f"{type(reason).__name__} with a batch axis: {first_lines(reason)}",
                expected="a module whose own code carries a batch axis",
                repair="Use pb.vmap, which needs the step of one sample only.",
            ) from error


def _same_shapes(two: Tree, three: Tree) -> bool:
    return [leaf.shape for leaf in jax.tree.leaves(two)] == [leaf.shape for leaf in jax.tree.leaves(three)]


def _differing_axis(two: jax.ShapeDtypeStruct, three: jax.ShapeDtypeStruct) -> int:
    differing = [axis for axis, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
    return differing[0] if differing else 0
