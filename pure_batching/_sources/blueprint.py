"""A module that is never run: every use of it works on a fresh copy, under the settings of the capture."""

import functools
import inspect
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import brainstate
import jax
import jax.core
import jax.numpy as jnp

from .._numerics import Numerics, without_mesh
from .._program import Params
from .._reader.jaxprs import Literal, evaluate, inner
from .._reader.pieces import tainted_by
from .._tree import Tree, like, spec_of
from ..errors import CaptureError, OptionError, PureBatchingError, StrategyError
from .copying import copy_module
from .keys import folded_key
from .paths import path_of

# What cannot be set inside a context, because it belongs to the process.
_OF_THE_PROCESS = ("platform", "host_device_count")

# BrainState's random generator belongs to the process, and holds a tracer while a function that draws is traced.
_TRACING = threading.RLock()

_PRECISION = "precision"


def _check_environ(environ: object) -> None:
    """Settings may have any name, since a module may read any; that they are names is all that can be checked."""
    if environ is None or (isinstance(environ, Mapping) and all(isinstance(name, str) for name in environ)):
        return
    raise OptionError(
        "environ",
        got=f"the names {list(environ)}" if isinstance(environ, Mapping) else repr(environ),
        expected="None or {name: value}",
        repair='Pass the settings of the step, such as {"dt": 1.0 * u.ms}.',
    )


def settings_in_force() -> dict[str, Any]:
    """BrainState's settings, but for those that no context can set."""
    return _of_a_context(brainstate.environ.all())


def _of_a_context(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _OF_THE_PROCESS}


def check_module(net: object, error: type[PureBatchingError], repair: str) -> None:
    """Raise an error for what is no module."""
    if not isinstance(net, brainstate.nn.Module):
        got = f"the class {net.__name__}" if isinstance(net, type) else type(net).__name__
        raise error("net", got=got, expected="a brainstate.nn.Module", repair=repair)


class Blueprint:
    """A module that is never run: every use of it works on a fresh copy, under the environment read at capture."""

    def __init__(self, module: Any, environ: dict[str, Any] | None) -> None:
        check_module(module, CaptureError, "Pass an instance of a Module whose update() is one step.")
        _check_environ(environ)
        self.name = type(module).__name__
        self._module = copy_module(module)
        self._environ = _of_a_context({**brainstate.environ.all(), **(environ or {})})
        self._generator = brainstate.random.DEFAULT.value
        self.numerics = Numerics.of_capture()
        if environ and _PRECISION in environ:
            self.numerics = self.numerics._replace(enable_x64=str(environ[_PRECISION]) == "64")

    @property
    def settings(self) -> list[str]:
        """The names of the settings that are in force, sorted."""
        return sorted(self._environ)

    @contextmanager
    def environment(self) -> Iterator[None]:
        """The settings of the capture, in this thread alone; what belongs to the process comes out as it went in."""
        with _TRACING, _generator_kept(), _in_force(self._environ), self.numerics.in_force(), without_mesh():
            yield

    def seeded(self) -> Any:
        """A context in which whatever draws random numbers draws those of the moment of the capture."""
        return brainstate.random.seed_context(self._generator)

    def build(self) -> brainstate.nn.Module:
        """A copy, its states freshly initialised for one sample."""
        return _initialised(copy_module(self._module))

    def build_batched(self, axes: Mapping[str, Tree], batch_size: int) -> brainstate.nn.Module:
        """The same for a batch: every state is repeated along the axis that is given for each leaf of it."""
        module = self.build()

        def repeat(leaf: jax.Array, axis: int) -> jax.Array:
            shape = (*leaf.shape[:axis], batch_size, *leaf.shape[axis:])
            return jnp.broadcast_to(jnp.expand_dims(leaf, axis), shape)

        for path, state in states_of(module).items():
            if path in axes:
                state.value = jax.tree.map(repeat, state.value, axes[path])
        return module

    def holds(self, kind: type) -> bool:
        """Whether some part of the module is of a kind."""
        return any(isinstance(node, kind) for _, node in brainstate.graph.iter_node(self._module))

    def params(self) -> Params:
        """The trainable values by path, sorted."""
        states = states_of(self._module)
        return {path: state.value for path, state in states.items() if isinstance(state, brainstate.ParamState)}

    def initial_values(self) -> "InitialValues":
        """The states that are not trainable, freshly initialised for one sample."""

        def build(key: jax.Array) -> tuple[dict[str, Tree], dict[str, jax.Array]]:
            module = copy_module(self._module)
            _reseed(module, key, 0)
            states = states_of(_initialised(module))
            _reseed(module, key, 1)  # so that no number of the step is one of the initial states
            keys = {path: state.value for path, state in states.items() if is_generator(state)}
            others = {path: state.value for path, state in states.items() if path not in keys}
            return {path: v for path, v in others.items() if not isinstance(states[path], brainstate.ParamState)}, keys

        with self.environment():
            return InitialValues.of(build, self._generator)

    def batched_specs(self, batch_size: int) -> dict[str, Tree]:
        """The specifications of the states, by path, as the module itself initialises them for a batch.

        The states of a part whose `init_state` fails with a batch size are left out, and no others.
        """

        def build() -> dict[str, Tree]:
            module = self.build()
            failed = {id(state) for node in _init_with_batch(module, batch_size) for state in _own_states(node)}
            states = {path: state for path, state in states_of(module).items() if id(state) not in failed}
            return {path: state.value for path, state in states.items() if not isinstance(state, brainstate.ParamState)}

        with self.environment():
            return Traced.of(build).output


def _init_with_batch(module: brainstate.nn.Module, batch_size: int) -> list[Any]:
    """Initialise a module's states for a batch, and return the parts whose own `init_state` fails with a batch size."""
    failed: list[Any] = []

    def tolerant(node: Any) -> Callable[..., None]:
        init_state = node.init_state

        @functools.wraps(init_state)
        def tried(*args: Any, **sizes: Any) -> None:
            try:
                init_state(*args, **sizes)
            except Exception:  # noqa: BLE001 - it may know no batch size, and say so by any type of error
                failed.append(node)

        return tried

    for _, node in brainstate.graph.iter_node(module):
        if hasattr(node, "init_state"):
            object.__setattr__(node, "init_state", tolerant(node))
    brainstate.nn.init_all_states(module, batch_size=batch_size)
    return failed


def _own_states(node: Any) -> list[brainstate.State]:
    """The states of a module without those of the modules that it holds."""
    leaves = [leaf for _, leaf in brainstate.graph.iter_leaf(node, allowed_hierarchy=(0, 0))]
    return [leaf for leaf in leaves if isinstance(leaf, brainstate.State)]


def _demands_size(node: Any) -> bool:
    """Whether an `init_state` cannot be called without a batch size; None then stands for one sample."""
    given = inspect.signature(node.init_state).parameters.get("batch_size") if hasattr(node, "init_state") else None
    return given is not None and given.default is inspect.Parameter.empty


def states_of(module: brainstate.nn.Module) -> dict[str, brainstate.State]:
    """The states of a module by path, sorted."""
    states: Any = brainstate.graph.states(module)
    named = {path_of(module, path): state for path, state in states.items()}
    if len(named) < len(states):
        raise CaptureError(
            type(module).__name__,
            got="two states with one path",
            expected="names without dots",
            repair="Rename the attribute or key that has a dot in it, or that reads like an index.",
        )
    return {path: named[path] for path in sorted(named)}


class Traced(NamedTuple):
    """A stateful function as it was traced once.

    Attributes:
      output: the specification of what it returns.
      jaxpr: arguments, states -> outputs, states; closed.
      states: that it reads; each but the random generator keeps the value that it has now.
    """

    output: Tree
    jaxpr: Any
    states: Sequence[brainstate.State]

    @classmethod
    def of(cls, function: Callable[..., Tree], *args: Any) -> "Traced":
        """Trace a function."""
        stateful = brainstate.transform.StatefulFunction(function, return_only_write=False)
        stateful.make_jaxpr(*args)
        cache = stateful.get_arg_cache_key(*args)
        output, _ = stateful.get_out_shapes_by_cache(cache)
        return cls(spec_of(output), stateful.get_jaxpr_by_cache(cache), stateful.get_states_by_cache(cache))


class InitialValues(NamedTuple):
    """The initial states of one sample as a pure function of one random key.

    Attributes:
      draws: whether a state depends on the key.
      run: `key -> ({path: value}, {path of a generator: key}, the key that is left)`.
    """

    draws: bool
    run: Callable[[jax.Array], tuple[dict[str, Tree], dict[str, jax.Array], jax.Array]]

    @classmethod
    def of(
        cls, build: Callable[[jax.Array], tuple[dict[str, Tree], dict[str, jax.Array]]], key: Any
    ) -> "InitialValues":
        """Trace `build`, whose own generators and whose uses of the global one all start from the key.

        Args:
          build: `key -> ({path: value}, {path of a generator: key})`.
          key: any, in the form that BrainState keeps keys in.
        """
        traced = Traced.of(build, key)
        is_typed = jnp.issubdtype(jnp.asarray(key).dtype, jax.dtypes.prng_key)
        values = [state.value for state in traced.states]
        is_global = [state is brainstate.random.DEFAULT for state in traced.states]
        count = len(jax.tree.leaves(traced.output))

        def run(key: jax.Array) -> tuple[dict[str, Tree], dict[str, jax.Array], jax.Array]:
            native = _native_key(key, is_typed=is_typed)
            given = [native if is_one else value for is_one, value in zip(is_global, values, strict=True)]
            leaves = evaluate(traced.jaxpr, native, *jax.tree.leaves(given))
            after = jax.tree.unflatten(jax.tree.structure(values), leaves[count:])
            left = [value for is_one, value in zip(is_global, after, strict=True) if is_one]
            return *like(traced.output, leaves[:count]), left[0] if left else native

        return cls(any(is_global) or _depends_on_key(traced), run)


def _depends_on_key(traced: Traced) -> bool:
    """Whether a state that is no generator depends on the first argument."""
    jaxpr, _ = inner(traced.jaxpr)
    reached = tainted_by(jaxpr.eqns, jaxpr.invars[:1])
    results = jaxpr.outvars[: len(jax.tree.leaves(traced.output[0]))]
    return any(var in reached for var in results if not isinstance(var, Literal))


def is_generator(state: brainstate.State) -> bool:
    """Whether a state is a random generator."""
    return isinstance(state, brainstate.random.RandomState)


def _reseed(module: brainstate.nn.Module, key: jax.Array, stream: int) -> None:
    """Give each of a module's own random generators a key of its own."""
    for path, state in states_of(module).items():
        if is_generator(state):
            state.value = jax.random.fold_in(folded_key(key, path), stream)


def _native_key(key: jax.Array, *, is_typed: bool) -> jax.Array:
    """A key in the form that BrainState keeps: typed or raw, as its version has it."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) == is_typed:
        return key
    return jax.random.wrap_key_data(key) if is_typed else jax.random.key_data(key)


def _initialised(module: brainstate.nn.Module) -> brainstate.nn.Module:
    """The module itself, its states freshly initialised for one sample."""
    is_asked = any(_demands_size(node) for _, node in brainstate.graph.iter_node(module))
    sizes: dict[str, Any] = {"batch_size": None} if is_asked else {}
    brainstate.nn.init_all_states(module, **sizes)
    return module


@contextmanager
def _generator_kept() -> Iterator[None]:
    """Take a tracer out of BrainState's generator, where older versions leave it."""
    generator = brainstate.random.DEFAULT.value
    try:
        yield
    finally:
        if isinstance(brainstate.random.DEFAULT.value, jax.core.Tracer):
            brainstate.random.DEFAULT.value = generator


@contextmanager
def _in_force(settings: Mapping[str, Any]) -> Iterator[None]:
    """Let these settings of BrainState hold inside the block, in this thread alone.

    They are put where BrainState's own context puts its settings, which would set JAX's flag of the process along with
    a precision.
    """
    state: Any = vars(brainstate.environ)["_ENV_STATE"]
    kept = state.contexts
    holder = getattr(state, "_local", state)  # what has the contexts of this thread, since BrainState 0.6
    holder.contexts = _CapturedSettings(settings, state.settings)
    try:
        yield
    finally:
        holder.contexts = kept


class _CapturedSettings(defaultdict[str, list[Any]]):
    """The settings of a capture, as a stack each; one that was set later is an error where a module reads it."""

    def __init__(self, settings: Mapping[str, Any], later: Mapping[str, Any]) -> None:
        super().__init__(list, {name: [value] for name, value in settings.items()})
        self._later = later

    def __contains__(self, name: Any) -> bool:
        if super().__contains__(name):
            return True
        if name in self._later:
            raise StrategyError(
                f"environ[{name!r}]",
                got=f"{self._later[name]!r}, which was set after the capture, in a module that reads it",
                expected="no such setting, as when the module was captured",
                repair=f"Capture the module again, or pass environ={{{name!r}: ...}} to pb.capture.",
            )
        return False
