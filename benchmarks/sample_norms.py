"""The norms of per-sample gradients on the tutorial's network, against the summed and the per-sample gradients.

python benchmarks/sample_norms.py --rounds 20
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import brainscale
import jax
from _cases import Strategy, ours
from _common import Bar, Build, LIFNet, Run, run_benchmark

import pure_batching as pb
from pure_batching._tutorial.net import Dataset
from pure_batching._tutorial.training import loss

ALGORITHM = pb.ES_D_RTRL(0.9)


def of_each_sample(make: Callable[[pb.Learner], Any], strategy: Strategy, net: LIFNet, data: Dataset) -> Run:
    """What `make` gives of the batched learner."""
    learner, params = pb.capture(net, data.inputs[0, 0], algorithm=ALGORITHM)
    function = make(strategy(learner, len(data.labels)))
    compiled = jax.jit(
        lambda params, data: function(params, None, data.inputs, brainscale.SingleStepData(data.labels))[0]
    )
    return lambda: compiled(params, data)


def norms(learner: pb.Learner) -> Any:
    """The norm of each sample's gradient."""
    return pb.sample_norms(learner, loss)


def clipped(learner: pb.Learner) -> Any:
    """The mean of clipped gradients."""
    return pb.clipped_grad(learner, loss, 1.0)


def gradients(learner: pb.Learner) -> Any:
    """Each sample's gradient."""
    return pb.sequence_grad(learner, loss, reduction="none")


CASES: dict[str, Build] = {
    "summed gradient, manual": partial(ours, pb.manual, ALGORITHM, None),
    "summed gradient, vmap": partial(ours, pb.vmap, ALGORITHM, None),
    "sample_norms, manual": partial(of_each_sample, norms, pb.manual),
    "sample_norms, vmap": partial(of_each_sample, norms, pb.vmap),
    "clipped_grad, vmap": partial(of_each_sample, clipped, pb.vmap),
    "per-sample gradients, vmap": partial(of_each_sample, gradients, pb.vmap),
}
SPEED_BARS = [
    Bar("sample_norms, manual", "summed gradient, manual", 1.5),
    Bar("sample_norms, vmap", "summed gradient, vmap", 1.5),
]

if __name__ == "__main__":
    run_benchmark(__file__, CASES, SPEED_BARS, is_same_work=False)
