"""The meaning of every gradient, as a program that anyone can read: `step` and `jax.grad` in Python loops."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .._carries import stack, unstack
from .._learning.carry import Carry, apart
from .._program import Params
from ._altered import side_by_side
from ._case import Case, Data, Result, Subject
from ._kept import kept


class Flags(NamedTuple):
    """Which steps of one sample count, and where it starts anew, `[T]`."""

    mask: np.ndarray
    reset: np.ndarray


def stepped(case: Case, carry: Carry, data: Data, flags: Mapping[str, Any]) -> Result:
    """Compute the gradient of each sample from a carry: one sample after the other, one step after the other.

    It stands for every window of an algorithm with single-step learning signals. The outputs of masked steps are zeros.
    """
    samples = [
        one_sample(case, i, own, jax.tree.map(lambda x, i=i: x[:, i], data), flags_of(flags, i, data.steps))
        for i, own in enumerate(unstack(carry))
    ]
    outputs, losses, gradients, carries = zip(*samples, strict=True)
    carries = [apart(carry) for carry in carries] if flags else list(carries)
    return Result(side_by_side(outputs, 1), np.stack(losses, 1), side_by_side(gradients, 0), stack(carries))


def one_sample(case: Case, i: int, carry: Carry, data: Data, flags: Flags) -> Result:
    """Take sample `i`, whose data is `[T, ...]`."""
    total, losses, outputs = jax.tree.map(np.zeros_like, case.params), [], []
    for t, (counts, starts_anew) in enumerate(zip(*flags, strict=True)):
        carry = begun_anew(case, i, t, carry) if starts_anew else carry
        moment = jax.tree.map(lambda x, t=t: x[t], data)
        (loss, (after, output)), gradient = step_gradient(case.subject)(case.params, carry, moment)
        if counts:
            carry, total = after, jax.tree.map(np.add, total, gradient)
        losses.append(loss if counts else np.zeros_like(loss))
        outputs.append(output if counts else jax.tree.map(np.zeros_like, output))
    return Result(side_by_side(outputs, 0), np.stack(losses), total, carry)


def every_step(steps: int) -> Flags:
    """Make flags that mask nothing and reset nothing."""
    return Flags(np.ones(steps, bool), np.zeros(steps, bool))


@kept
def step_gradient(subject: Subject) -> Any:
    """`(params, carry, data of one step) -> ((loss, (carry, output)), gradient)` of one sample."""

    def value(params: Params, carry: Carry, data: Data) -> Any:
        carry, output = subject.learner.step(params, carry, *data.inputs)
        return subject.loss(output, data.targets), (carry, output)

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def begun_anew(case: Case, i: int, t: int, carry: Carry) -> Carry:
    """Give sample `i` a start of its own, as a reset before step `t` does; it keeps its random keys."""
    key = jax.random.fold_in(jax.random.fold_in(case.key, i), t)
    return case.subject.learner.init(key)._replace(keys=carry.keys)


def flags_of(flags: Mapping[str, Any], i: int, steps: int) -> Flags:
    """Take the mask and the resets of one sample, `[T]`."""
    said = {name: np.asarray(value)[:, i] for name, value in flags.items() if value is not None}
    return every_step(steps)._replace(**said)
