"""A module that is never run: every use of it works on a fresh copy, under the settings of the capture."""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp

from .._program import Params
from .._reader.jaxprs import evaluate
from .._tree import Tree, like, path_name, spec_of
from ..errors import CaptureError, OptionError, PureBatchingError
from .copying import copy_module

# What cannot be set inside a context, because it belongs to the process.
_OF_THE_PROCESS = ("platform", "host_device_count")


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
        settings = {**brainstate.environ.all(), **(environ or {})}
        self._is_x64 = jax.config.read("jax_enable_x64")
        self._environ = {key: value for key, value in settings.items() if key not in _OF_THE_PROCESS}

    @property
    def settings(self) -> list[str]:
        """The names of the settings that are in force, sorted."""
        return sorted(self._environ)

    @contextmanager
    def environment(self) -> Iterator[None]:
        """The settings that were in force at capture; what is global comes out as it went in.

        BrainState's precision sets JAX's along with its own; here each is what it was at capture.
        """
        generator, is_x64 = brainstate.random.DEFAULT.value, jax.config.read("jax_enable_x64")
        try:
            with brainstate.environ.context(**self._environ):
                jax.config.update("jax_enable_x64", self._is_x64)
                yield
        finally:
            brainstate.random.DEFAULT.value = generator
            jax.config.update("jax_enable_x64", is_x64)

    def build(self) -> brainstate.nn.Module:
        """A copy, its states freshly initialised for one sample."""
        module = copy_module(self._module)
        is_asked = any(_demands_size(node) for _, node in brainstate.graph.iter_node(module))
        sizes: dict[str, Any] = {"batch_size": None} if is_asked else {}
        brainstate.nn.init_all_states(module, **sizes)
        return module

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

    def initial_values(self) -> "PureFunction":
        """`key -> {path: value}` of all states that are not trainable, freshly initialised for one sample."""

        def build() -> dict[str, Tree]:
            states = states_of(self.build()).items()
            return {path: state.value for path, state in states if not isinstance(state, brainstate.ParamState)}

        with self.environment():
            return PureFunction.of(build)

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
            return PureFunction.of(build).output


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
    return dict(sorted((path_name(path), state) for path, state in states.items()))


class PureFunction(NamedTuple):
    """A stateful function of no arguments as a pure function of one random key.

    Attributes:
      output: the specification of what it returns.
      draws: whether it reads the random generator.
      run: `key -> (value, the key that is left)`, for keys in the form that BrainState keeps them in.
    """

    output: Tree
    draws: bool
    run: Callable[[jax.Array], tuple[Tree, jax.Array]]

    @classmethod
    def of(cls, function: Callable[[], Tree]) -> "PureFunction":
        """Trace `function` once; every state that it reads, but the random generator, keeps the value it has now."""
        stateful = brainstate.transform.StatefulFunction(function, return_only_write=False)
        stateful.make_jaxpr()
        cache = stateful.get_arg_cache_key()
        spec, _ = stateful.get_out_shapes_by_cache(cache)
        states = stateful.get_states_by_cache(cache)
        values = [state.value for state in states]
        jaxpr = stateful.get_jaxpr_by_cache(cache)
        random = [state is brainstate.random.DEFAULT for state in states]

        def run(key: jax.Array) -> tuple[Tree, jax.Array]:
            given = [key if is_random else value for is_random, value in zip(random, values, strict=True)]
            leaves = evaluate(jaxpr, *jax.tree.leaves(given))
            count = len(jax.tree.leaves(spec))
            after = jax.tree.unflatten(jax.tree.structure(values), leaves[count:])
            left = [value for is_random, value in zip(random, after, strict=True) if is_random]
            return like(spec, leaves[:count]), left[0] if left else key

        return cls(spec_of(spec), any(random), run)
