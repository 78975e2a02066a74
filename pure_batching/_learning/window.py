"""A window of steps and its gradient, by the credit mode of the algorithm."""

import chex

from .._algorithms.base import Trace
from .._program import Params
from .backpropagated import run_backpropagated
from .carry import Carry
from .online import run_online
from .steps import Steps
from .task import Task, Window


def run_window(task: Task, params: Params, carry: Carry, steps: Steps, trace_before: Trace, fresh: Carry) -> Window:
    """Run a window and add up its gradient.

    Args:
      task: the learner, the loss, and the form of the result.
      params: trainable values by path.
      carry: before the window.
      steps: the window's data, `[K, B, ...]`.
      trace_before: the carry's trace; None where it is all zeros, so that nothing is computed from it.
      fresh: the carry of a sample that starts anew.
    """
    learner = task.learner
    chex.assert_tree_shape_prefix((carry.hidden, carry.other, carry.trace, carry.update_count), learner.lead)
    if learner.algorithm.credit == "trace":
        window = run_online(task, params, carry, steps, trace_before, fresh)
    else:
        window = run_backpropagated(task, params, carry, steps, trace_before, fresh)
    chex.assert_shape(window.losses, (steps.length, *learner.lead))
    return window
