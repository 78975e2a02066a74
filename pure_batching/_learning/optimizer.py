"""An update of the params by an optimizer of optax, which is known by its method alone."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol

import jax
import jax.numpy as jnp

from .._precision import cast_like
from .._program import Params
from .._tree import Tree
from ..errors import OptionError, PureBatchingError, StructureError
from .learner import Learner


class Optimizer(Protocol):
    """The part of an optax optimizer that is used here, `optax.GradientTransformationExtraArgs.update`."""

    @property
    def update(self) -> Callable[..., Any]:
        """`(gradients, state, params, **extra) -> (updates, state)`; the updates are added to the params."""
        ...


def check_optimizer(optimizer: object) -> None:
    """Raise OptionError for what is no optimizer."""
    if not callable(getattr(optimizer, "update", None)):
        raise OptionError(
            "optimizer",
            got=type(optimizer).__name__,
            expected="one with a method update(gradients, state, params)",
            repair="Pass an optimizer of optax, such as optax.adam(1e-3).",
        )


def updated(
    learner: Learner, optimizer: Optimizer, params: Params, opt_state: Tree, gradients: Params, value: jax.Array
) -> tuple[Params, Tree]:
    """The params and the optimizer's state after an update, in the dtypes and units that they had before.

    Args:
      learner: whose params they are.
      optimizer: the optimizer.
      params: by path, before the update.
      opt_state: likewise.
      gradients: by path; a param without one has zeros.
      value: `[]`, the loss that they are the gradient of.

    Raises:
      StructureError: the state is not the optimizer's for these params.
      OptionError: the optimizer needs arguments that there are none of.
    """
    zeros = jax.tree.map(jnp.zeros_like, params)
    as_given = learner.source.as_given
    whole, before = as_given(cast_like({**zeros, **gradients}, params)), as_given(params)
    try:
        updates, new_state = optimizer.update(whole, opt_state, before, **_extra(optimizer, whole, value))
        given = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), before, updates)
        kept = jax.tree.map(lambda new, old: jnp.asarray(new).astype(old.dtype), new_state, opt_state)
    except PureBatchingError:
        raise
    except Exception as reason:
        raise _refusal(optimizer, opt_state, before, reason) from reason
    return learner.source.checked_params(given), kept


def _extra(optimizer: Optimizer, gradients: Tree, value: jax.Array) -> Mapping[str, Any]:
    """The extra arguments of optax that the optimizer takes, by the signature of its method."""
    offered = {"value": value, "grad": gradients, "value_fn": _no_value_fn}
    taken = inspect.signature(optimizer.update).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in taken):
        return offered
    names = {one.name for one in taken if one.kind is one.KEYWORD_ONLY}
    return {name: one for name, one in offered.items() if name in names}


def _no_value_fn(*_: Any, **__: Any) -> NoReturn:
    raise OptionError(
        "optimizer",
        got="one that calls value_fn=, as a search along a line does",
        expected="one that needs the loss and the gradient of the steps that were made",
        repair="It would run the steps again. Leave the search out: optax.lbfgs(1e-3, linesearch=None), say.",
    )


def _refusal(optimizer: Optimizer, opt_state: Tree, params: Tree, reason: Exception) -> PureBatchingError:
    """What an update failed by: the optimizer, where it has the state that it begins with."""
    got = f"{type(reason).__name__}: {(str(reason).splitlines() or [''])[0]}"
    if _is_state(optimizer, opt_state, params):
        return OptionError(
            "optimizer",
            got=got,
            expected="one whose update takes gradients, a state and params, and no more than value= and grad= besides",
            repair="Change what the message names.",
        )
    return StructureError(
        "opt_state",
        got=got,
        expected="a state of the optimizer that was passed, for these params",
        repair="Pass optimizer.init(params), or what the last call returned.",
    )


def _is_state(optimizer: Any, opt_state: Tree, params: Tree) -> bool:
    """Whether a state has the structure and the shapes of the one that the optimizer begins with."""
    try:
        begun = jax.eval_shape(optimizer.init, params)
    except Exception:  # noqa: BLE001 - whatever an optimizer raises, this one cannot say what its states are
        return False
    leaves = [jax.tree.leaves(tree) for tree in (begun, opt_state)]
    return jax.tree.structure(begun) == jax.tree.structure(opt_state) and [*map(jnp.shape, leaves[0])] == [
        *map(jnp.shape, leaves[1])
    ]
