"""The carries of all slots, `[C, ...]`: what is compiled for sessions that come, go, make a step or start anew.

All slots are run in any case, so that one compiled program serves whichever sessions are active; what comes of the
others is dropped.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._carries import gather, scatter, stack, unstack
from ._learning.carry import Carry, apart
from ._learning.compiled import compiled, in_shares
from ._learning.learner import Learner
from ._learning.losses import Same, SplitLoss
from ._learning.optimizer import updated
from ._learning.sequence import sequence_grad
from ._learning.steps import select
from ._learning.task import frozen
from ._precision import accumulating
from ._strategies.base import SampleAxes
from ._tree import Tree


class Moment(NamedTuple):
    """The data of one step.

    Attributes:
      inputs, targets: of all slots, `[C, ...]`; those of sessions that are not active have no effect.
      active: whether the session in a slot makes the step, `[C]`.
    """

    inputs: tuple[Tree, ...]
    targets: Tree
    active: Any


class Done(NamedTuple):
    """The carries after a step, the losses `[C]` and the outputs `[C, ...]`."""

    carry: Carry
    losses: jax.Array
    outputs: Tree


class SlotPrograms:
    """The functions of this module, each compiled once for all slots.

    They are looked up here: to look them up by the learner takes a quarter of the time of a small step. A function has
    the same axes in every call.

    Args:
      learner: whose samples are the slots.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._programs: dict[Hashable, Callable[..., Any]] = {}

    def of(self, function: Callable[..., Any], given: Any, made: Any, *statics: Hashable) -> Callable[..., Any]:
        """A compiled `function(learner, *statics, ...)`, which runs under the settings of the capture.

        Args:
          function: of this module.
          given: where the slots lie in its other arguments, as in `SampleAxes`.
          made: where they lie in its result.
          statics: its arguments behind the learner.
        """
        name = (function, *statics)
        if name not in self._programs:
            self._programs[name] = compiled(self._learner, function, *statics, axes=SampleAxes(given, made))
        return partial(self._at_home, self._programs[name], given)

    def _at_home(self, run: Callable[..., Any], axes: Any, *args: Any) -> Any:
        """The function on arguments that always lie alike: a fresh table, one of a file, and one after a step."""
        with self._learner.source.numerics.in_force():
            return run(*self._learner.strategy.at_home(args, axes))


def stepped(learner: Learner, params: Tree, carry: Carry, moment: Moment) -> tuple[Carry, Tree]:
    """The carries and the outputs after a step of the active sessions."""
    new, outputs = learner.step(params, carry, *moment.inputs)
    return frozen(new, carry, moment.active), outputs


def with_gradient(
    learner: Learner, loss: Hashable, arrays_of_loss: Any, params: Tree, carry: Carry, moment: Moment
) -> tuple[Tree, Done]:
    """A step of the active sessions, and the gradient of their mean loss: the step of a sequence of one."""
    whole = SplitLoss(loss, arrays_of_loss).whole()
    inputs, targets, mask = jax.tree.map(lambda x: x[None], moment)
    grad_fn = sequence_grad(learner, whole, reduction="mean", window=1, outputs=True)
    gradients, aux = grad_fn(params, carry, inputs, targets, mask=mask)
    # The sum of half-precision gradients may be no number where their mean is one.
    more = learner.lead[0] / moment.active.sum()
    mean = jax.tree.map(lambda x: _times(x, more), gradients)
    losses, outputs = jax.tree.map(lambda x: x[0], (aux.losses, aux.outputs))
    return mean, Done(aux.carry, losses, outputs)


def with_update(
    learner: Learner,
    loss: Hashable,
    optimizer: Same,
    arrays_of_loss: Any,
    opt_state: Tree,
    params: Tree,
    carry: Carry,
    moment: Moment,
) -> tuple[Tree, Tree, Done]:
    """The params and the optimizer's state after an update by that gradient, and what it came with."""
    gradients, done = with_gradient(learner, loss, arrays_of_loss, params, carry, moment)
    weights, slopes = learner.check_params(params), learner.check_params(gradients)
    value = done.losses.sum() / moment.active.sum().astype(done.losses.dtype)
    state = jax.tree.map(jnp.asarray, opt_state)
    trained, state = updated(learner, optimizer.value, weights, state, slopes, value)
    return learner.source.as_given(trained), state, done


def _times(gradient: jax.Array, factor: jax.Array) -> jax.Array:
    wide = accumulating(gradient.dtype)
    return (gradient.astype(wide) * factor.astype(wide)).astype(gradient.dtype)


def vacant(learner: Learner) -> Carry:
    """The carries of vacant slots: the same fresh start in each."""
    key = jax.random.key(0)
    return _fresh(learner, jax.vmap(lambda _: key)(jnp.arange(learner.lead[0])))


def vacated(learner: Learner, carry: Carry, flags: jax.Array) -> Carry:
    """Nothing is left of the sessions in some slots, `[C]`."""
    return select(flags, vacant(learner), carry)


def restarted(learner: Learner, carry: Carry, flags: jax.Array, ids: jax.Array, key: jax.Array | None) -> Carry:
    """The sessions in some slots, `[C]`, have a fresh start, drawn from the key and their ids; their own keys go on."""
    key = jax.random.key(0) if key is None else key  # nothing is drawn from it then
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, ids.astype(jnp.uint32))
    return select(flags, _fresh(learner, keys)._replace(keys=carry.keys), carry)


def placed(learner: Learner, carry: Carry, row: jax.Array, session: Carry) -> Carry:
    """The session, the carry of one sample, lies in a slot."""
    del learner
    return scatter(carry, row[None], stack([apart(session)]))


def at(learner: Learner, carry: Carry, row: jax.Array) -> Carry:
    """The session in a slot, as the carry of one sample."""
    del learner
    return unstack(gather(carry, row[None]))[0]


def _fresh(learner: Learner, keys: jax.Array) -> Carry:
    """Sessions that start with these keys, `[C]`, each with its own of the states that samples share."""
    each = in_shares(learner, Learner.fresh_samples, axes=SampleAxes((0,), 0))(keys)
    return each._replace(other={**each.other, **each.shared}, shared={})
