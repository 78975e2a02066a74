"""FunctionSource: a plain JAX function that was captured, and the programs that are traced from it."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._conform import conform
from .._keys import mappable
from .._numerics import Numerics
from .._program import Params, Program, States
from .._reader.checks import check_batched, check_step
from .._reader.flat import flat
from .._reader.jaxprs import inner
from .._reader.lookups import with_products
from .._reader.marking import with_marks
from .._reader.noise import with_noise_of_each
from .._reader.reading import read
from .._reader.step import Kind, TracedStep
from .._tree import Tree, is_key, is_quantity, mantissa, spec_of, with_lead
from ..errors import CaptureError, PureBatchingError, StrategyError
from .base import Source, assembled, reading, remembered
from .function_marks import FunctionMarks
from .keys import folded_key, keys_like
from .partition import Partition, restored

Step = Callable[..., tuple[Tree, Tree]]
Test = Callable[[str], bool]


class FunctionSource(Source):
    """A function `step(params, state, *inputs) -> (state, output)` of one sample, with its initial state."""

    axis_name = None
    draws_at_start = False

    def __init__(
        self,
        step: Step,
        partition: Partition,
        state: Tree,
        examples: tuple[Tree, ...],
        is_traced: Test,
        is_hidden: Test,
    ) -> None:
        """Trace a function's step of one sample.

        Args:
          step: the function.
          partition: of its params: the trainable values, and what a module of equinox holds besides.
          state: the state before the first step.
          examples: the inputs of one step of one sample.
          is_traced: whether the weight at a path may have a trace.
          is_hidden: whether the floats at a path of the state are a hidden state.

        Raises:
          CaptureError: the function cannot be traced, or its step cannot be carried on.
        """
        self.name, self.numerics = getattr(step, "__name__", type(step).__name__), Numerics.of_capture()
        self.memory: dict[Hashable, Any] = {}
        self._step, self._inputs = step, spec_of(examples)
        self._is_traced, self._is_hidden = is_traced, is_hidden
        self._partition = partition._replace(trained=())
        self._weights, self._weights_structure = _by_path(partition.given(), "params")
        initial, self._state_structure = _by_path(state, "state")
        # Not a map over the dict, which would sort the paths.
        self._initial = {path: jax.tree.map(_as_numpy, value) for path, value in initial.items()}
        self._specs = {path: spec_of(value) for path, value in self._weights.items()}
        self._state_specs = {path: spec_of(value) for path, value in self._initial.items()}
        self._marks = FunctionMarks([path for path in self._weights if not is_traced(path)])
        self._kinds: dict[str, Kind] = dict.fromkeys(self._weights, "param")
        self._kinds |= {path: _kind(value, path, is_hidden) for path, value in self._initial.items()}
        self._batched_programs: dict[int, Program] = {}
        self._batched_steps: dict[int, TracedStep] = {}
        self._program = self._single()

    def params(self) -> Tree:
        """Copies of the trainable values in the given structure, with None for what is not trained."""
        return self.as_given({path: jax.tree.map(jnp.array, value) for path, value in self._weights.items()})

    def checked_params(self, params: Tree) -> Params:
        """See `Source.checked_params`."""
        return self._named(conform(params, self.as_given(self._specs), "params"))

    def as_given(self, params: Params) -> Tree:
        """See `Source.as_given`."""
        return jax.tree.unflatten(self._weights_structure, [params[path] for path in self._weights])

    def one_of(self, size: int) -> Program:
        """See `Source.one_of`."""
        del size
        return self._program

    def batched(self, size: int) -> Program:
        """See `Source.batched`."""
        return remembered(self._batched_programs, size, self._trace_batched)

    def batch_axes(self) -> Mapping[str, Tree]:
        """The first axis of every state."""
        states = self._program.states
        return {
            path: jax.tree.map(lambda _: 0, field[path]) for field in (states.hidden, states.other) for path in field
        }

    def recipe(self) -> tuple[Callable[..., Source], tuple[Any, ...]]:
        """See `Source.recipe`; arrays become numpy's, which keep 64 bits where JAX has none."""
        weights, states = (jax.tree.map(_as_numpy, [*tree.values()]) for tree in (self._weights, self._initial))
        params, state = self._partition.portable(weights), jax.tree.unflatten(self._state_structure, states)
        tests = self._is_traced, self._is_hidden
        return _captured_under, (self.numerics, self._step, params, state, self._inputs, *tests)

    def fresh(self, key: jax.Array) -> States:
        """See `Source.fresh`; a random key of the state is drawn from `key`, whatever it was at capture."""
        shapes = {path: self._state_specs[path].shape for path, kind in self._kinds.items() if kind == "key"}
        keys = {path: keys_like(folded_key(key, path), shape) for path, shape in shapes.items()}
        known = {**self._initial, **keys}
        return assembled(self._program.states, known)

    def _named(self, params: Tree) -> Params:
        return dict(zip(self._weights, self._weights_structure.flatten_up_to(params), strict=True))

    def _single(self) -> Program:
        with reading(), self.numerics.in_force():
            self._step_of_one = self._explained(lambda: self._traced(self._inputs, self._state_specs))
            step = self._explained(lambda: self._marked(self._step_of_one))
            check_step(step, self.name)
            return self._explained(lambda: read(step, self._specs))

    def own_step(self, size: int) -> TracedStep:
        """See `Source.own_step`."""
        return remembered(self._batched_steps, size, self._trace_own)

    def _trace_own(self, size: int) -> TracedStep:
        inputs, states = with_lead(self._inputs, (size,)), self._program.states
        once = {*states.shared, *states.keys}
        specs = {path: spec if path in once else with_lead(spec, (size,)) for path, spec in self._state_specs.items()}
        with self.numerics.in_force():
            return self._mapped(lambda: self._traced(inputs, specs))

    def _trace_batched(self, size: int) -> Program:
        single, plain = self._program, self.own_step(size)
        with self.numerics.in_force():
            noisy = with_noise_of_each(plain, self._step_of_one, size)
            step = self._mapped(lambda: self._marked(noisy))
            check_batched(step, single, size, self.name)
            return self._mapped(lambda: read(step._replace(lead=1), self._specs, single))

    def _traced(self, inputs: tuple[Tree, ...], states: Mapping[str, Tree]) -> TracedStep:
        """The step on inputs and states of some shapes, flat, in which no use of a weight is marked yet."""
        weights = list(self._specs.values())
        run = jax.make_jaxpr(self._run, return_shape=True)
        jaxpr, (output, *_) = run(inputs, weights, list(states.values()))
        specs = {**self._specs, **states}
        widths = {path: 0 for path, kind in self._kinds.items() if kind == "hidden"}
        return TracedStep(
            jaxpr=flat(jaxpr),
            inputs=inputs,
            output=spec_of(output),
            states=specs,
            kinds=self._kinds,
            widths=widths,
            marks=self._marks,
            is_strict=True,
            axis_name=None,
        )

    def _marked(self, step: TracedStep) -> TracedStep:
        """The same step with each use of a weight in a call of its own, lookups as products."""
        invars = inner(step.jaxpr)[0].invars
        first = len(jax.tree.leaves(step.inputs))
        last = first + len(jax.tree.leaves(list(self._specs.values())))
        weights, inputs, states = invars[first:last], invars[:first], invars[last:]
        marked = with_marks(step.jaxpr, weights, [*inputs, *states], states=states)
        return with_products(step._replace(jaxpr=marked))

    def _run(self, inputs: tuple[Tree, ...], weights: list[Tree], states: list[Tree]) -> tuple[Tree, Tree, Tree]:
        """The output, the weights and the new states, as the reader takes them."""
        params = self._partition.whole(weights)
        given, structure = jax.tree.flatten(params, is_leaf=is_quantity)
        state = jax.tree.unflatten(self._state_structure, states)
        result = self._step(params, state, *inputs)
        self._check_unchanged(params, structure, given, "params")
        self._check_unchanged(state, self._state_structure, states, "state")
        if not isinstance(result, tuple) or len(result) != 2:  # noqa: PLR2004
            raise CaptureError(
                self.name,
                got="one array" if isinstance(result, jax.Array) else f"a result of type {type(result).__name__}",
                expected="the pair (state, output)",
                repair="Return the new state and the output of the step.",
            )
        new, output = result
        leaves, structure = jax.tree.flatten(new, is_leaf=is_quantity)
        if structure != self._state_structure:
            raise CaptureError(
                f"{self.name}: state",
                got=f"{structure} after one step",
                expected=f"{self._state_structure}, the structure before",
                repair="Return the state in the structure that it was given in.",
            )
        return output, weights, [jax.tree.map(jnp.asarray, leaf) for leaf in leaves]

    def _check_unchanged(self, tree: Tree, structure: Any, leaves: list[Tree], name: str) -> None:
        now, found = jax.tree.flatten(tree, is_leaf=is_quantity)
        if found != structure or any(one is not other for one, other in zip(now, leaves, strict=True)):
            raise CaptureError(
                f"{self.name}: {name}",
                got="a step that changes what it was given",
                expected="one that returns a new state",
                repair=f"Copy {name} before it is changed, such as {{**{name}, 'h': new}}.",
            )

    def _explained(self, trace: Callable[[], Any]) -> Any:
        try:
            return trace()
        except PureBatchingError:
            raise
        except Exception as error:
            inputs = ", ".join(str(spec) for spec in jax.tree.leaves(self._inputs))
            raise CaptureError(
                self.name,
                got=f"{type(error).__name__}: {_first_line(error)}",
                expected=f"a step of one sample; its example inputs were ({inputs}), without T and B",
                repair="Change what the message names.",
            ) from error

    def _mapped(self, trace: Callable[[], Any]) -> Any:
        try:
            return trace()
        except Exception as error:
            raise StrategyError(
                self.name,
                got=f"{type(error).__name__} with a batch axis: {_first_line(error)}",
                expected="a function whose own code carries a batch axis",
                repair="Use pb.vmap, which needs the step of one sample only.",
            ) from error


def _captured_under(numerics: Numerics, step: Step, params: Tree, *arguments: Any) -> FunctionSource:
    with numerics.in_force():
        return FunctionSource(step, Partition.of(restored(params)), *arguments)


def _as_numpy(leaf: jax.Array) -> Any:
    """An array of numpy, which names neither a device nor a mesh; a random key and a traced array as they are."""
    return leaf if is_key(leaf.dtype) or isinstance(leaf, Tracer) else np.asarray(leaf)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _by_path(tree: Tree, root: str) -> tuple[dict[str, Tree], Any]:
    """The leaves by path, and the structure; a quantity is one leaf."""
    found, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_quantity)
    named = {root + _suffix(path): leaf for path, leaf in found}
    return {path: jax.tree.map(_copied, leaf) for path, leaf in named.items()}, structure


def _suffix(path: Any) -> str:
    """Where a leaf stands in its tree: `.cell.weight`, `.layers[0].bias`."""
    parts = []
    for key in path:
        name = getattr(key, "name", getattr(key, "key", None))
        is_name = isinstance(name, str) and name.isidentifier()
        parts.append(f".{name}" if is_name else jax.tree_util.keystr((key,)))
    return "".join(parts)


def _copied(leaf: Any) -> jax.Array:
    """A copy, since the caller may donate what was given; `jnp.array` copies no random key."""
    is_typed = isinstance(leaf, jax.Array) and is_key(leaf.dtype)
    return mappable(jnp.copy(leaf)) if is_typed else jnp.array(leaf)


def _kind(value: Tree, path: str, is_hidden: Test) -> Kind:
    (array,) = jax.tree.leaves(mantissa(value))
    if is_key(array.dtype):
        return "key"
    return "hidden" if jnp.issubdtype(array.dtype, jnp.inexact) and is_hidden(path) else "other"
