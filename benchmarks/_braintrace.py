"""BrainTrace's own gradients of the tutorial's network, by the loop that it documents; where it is installed."""

import importlib.util
import warnings
from typing import Any

import brainpy.state
import brainstate
import brainunit as u
import jax
from _cases import by_path, native_gradient
from _measuring import Run
from _problem import TUTORIAL, Gradients, Problem, Sizes, make_problem

from pure_batching._tutorial.net import CLASSES, FEATURES, Dataset, LIFNet, make_net

IS_INSTALLED = importlib.util.find_spec("braintrace") is not None


class TracedNet(brainstate.nn.Module):
    """The tutorial's network, with BrainTrace's layers."""

    def __init__(self, of: LIFNet) -> None:
        import braintrace  # noqa: PLC0415

        super().__init__()
        (hidden,) = of.neu.varshape
        self.neu = brainpy.state.LIF(hidden)
        layer = braintrace.nn.Linear(FEATURES + hidden, hidden)
        layer.weight.value = dict(of.syn.comm.weight_op.value)
        self.syn = brainpy.state.DeltaProj(comm=layer, post=self.neu)
        self.out = braintrace.nn.LeakyRateReadout(hidden, CLASSES)
        self.out.W.value = of.out.weight_op.value["weight"]

    def update(self, x: jax.Array) -> jax.Array:
        """One step: features in, logits out."""
        self.syn(u.math.concatenate([x, self.neu.get_spike()], axis=-1))
        return self.out(self.neu())


def traced_problem(sizes: Sizes = TUTORIAL) -> Problem:
    """The same weights and data as those of `make_problem`."""
    return make_problem(sizes, lambda hidden: TracedNet(make_net(hidden)))


def braintraces(name: str, problem: Problem, *, vmap: bool, **options: Any) -> Run:
    """A gradient of the algorithm of this name, with states of a batch or mapped."""
    import braintrace  # noqa: PLC0415

    net, data = problem

    @brainstate.transform.jit
    def run(data: Dataset) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            learner: Any = braintrace.compile(
                net, name, data.inputs[0], batch_size=len(data.labels), vmap=vmap, **options
            )
        return native_gradient(net, learner, data)

    return Run(lambda: _by_our_names(run(data)))


def _by_our_names(result: tuple[Any, jax.Array]) -> Gradients:
    found = by_path(result)
    return {"syn.comm.weight_op": found["syn.comm.weight"], "out.weight_op": {"weight": found["out.W"]}}
