"""The same sequences with BrainTrace's own learners and with ours, and what the two are expected to share."""

import functools
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import brainevent
import brainstate
import braintrace
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

import pure_batching as pb

from .braintrace_models import MIXED, MODELS, Model

SAMPLES, STEPS, WINDOW, DECAY = 2, 5, 2, 0.9

# What one gradient may be from another that is equal, relative to the largest entry.
EQUAL = 1e-10

# By the name of BrainTrace's algorithm: ours, and BrainTrace's options.
ALGORITHMS: Mapping[str, tuple[pb.Algorithm, Mapping[str, Any]]] = {
    "D_RTRL": (pb.D_RTRL(rule="published"), {}),
    "ES_D_RTRL": (pb.ES_D_RTRL(DECAY, rule="published"), {"decay_or_rank": DECAY}),
}

# How BrainTrace runs samples: one after the other, as `batch_size=`, and with `vmap=True` besides.
MODES = ("one sample", "batch_size", "vmap")

# Whether BrainTrace gives a weight that reaches no hidden state the gradient of the step.
LEARNS_READOUTS = tuple(map(int, braintrace.__version__.split(".")[:3])) >= (0, 2, 8)

REASONS: Mapping[int, str] = {
    1: "A weight whose output reaches hidden states through a further operation alone has no gradient in BrainTrace. "
    "Here it has that of the step.",
    2: "braintrace 0.2.6 gives a weight whose output reaches no hidden state no gradient; 0.2.8 gives it that of the "
    "step, as here.",
    3: "Where one hidden state leads to another within a step, BrainTrace counts that way twice. Here it counts once, "
    "so that the gradient of a sequence of one step is that of backpropagation.",
    4: "BrainTrace's ES_D_RTRL takes no product with an axis in front of those of the hidden states, which a "
    "convolution and an `einsum` of one sample have.",
    5: "Of a weight with several arrays, those that are read outside of the operation have no gradient in BrainTrace. "
    "Here they have that of the step. Neither package has a trace of them: BrainTrace's documentation of "
    "`ScaledWSLinear` says that its trace follows the standardized weight alone, and that `gain` and `bias` are not "
    "temporal.",
    6: "BrainTrace's D_RTRL raises for a batch where one array of a weight is read outside of the operation: its "
    "derivative of a bias has another shape.",
}

DOUBLED = ("braintrace.nn.LSTMCell", "braintrace.nn.URLSTMCell")
_ALONE = (
    "braintrace.nn.Conv1d",
    "braintrace.nn.Conv2d",
    "braintrace.nn.Conv3d",
    "braintrace.conv",
    "braintrace.einsum",
)

# What only a weight's own name tells.
_THROUGH = {
    "braintrace.nn.GRUCell": ("cell.Wr.weight",),
    "braintrace.nn.Embedding, braintrace.nn.MGUCell": ("layers.0.weight",),
    **dict.fromkeys(MIXED, ("first.W_u.weight_op", "first.phi.weight_op")),
}
_OUTSIDE = {"braintrace.nn.ScaledWSLinear": ("layer.weight['bias']", "layer.weight['gain']")}
_WITHIN = ("Wo", "readout")


def raises(name: str, algorithm: str, mode: str) -> int:
    """By which reason BrainTrace raises; 0 where it does not."""
    if algorithm == "ES_D_RTRL" and mode != "batch_size" and name in _ALONE:
        return 4
    return 6 if (algorithm, mode) == ("D_RTRL", "batch_size") and name in _OUTSIDE else 0


def runs(name: str, mode: str) -> bool:
    """Whether a model runs in a mode of BrainTrace; the rules of our own primitive are those of one sample."""
    return mode != "batch_size" or (MODELS[name].by_hand and name != "braintrace.register_primitive")


def is_readout(leaf: str) -> bool:
    """Whether an array reaches no hidden state."""
    return leaf.startswith(("readout", "layers.1.readout", "cell.C_", "cell.D"))


def reason(name: str, leaf: str) -> int:
    """Why the gradient of an array is another than BrainTrace's; 0 where it is the same."""
    if leaf.startswith(_THROUGH.get(name, ())):
        return 1
    if not LEARNS_READOUTS and is_readout(leaf):
        return 2
    if name in DOUBLED and not any(part in leaf for part in _WITHIN):
        return 3
    return 5 if leaf in _OUTSIDE.get(name, ()) else 0


@contextmanager
def kernels() -> Generator[None, None, None]:
    """The kernels of brainevent that need no package of their own."""
    before = brainevent.config.get_backend("cpu")
    brainevent.config.set_backend("cpu", "jax_raw")
    try:
        yield
    finally:
        brainevent.config.set_backend("cpu", before)


@contextmanager
def quiet() -> Generator[None, None, None]:
    """Without BrainTrace's warnings: it warns of each weight without a trace."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def made(name: str) -> brainstate.nn.Module:
    """A module with the same weights at each call."""
    brainstate.random.seed(0)
    with brainstate.environ.context(dt=1.0 * u.ms):
        return MODELS[name].make()


def inputs(model: Model, steps: int = STEPS) -> jax.Array:
    """`[T, B, ...]`."""
    return model.draw(np.random.RandomState(0), steps, SAMPLES)


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sum((output - target) ** 2)


def leaves(tree: Any) -> dict[str, jax.Array]:
    """Gradients by the path of the weight and of the array in it."""
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path[0].key + jax.tree_util.keystr(path[1:]): leaf for path, leaf in named}


def ours(name: str, algorithm: pb.Algorithm, by: Any = pb.vmap, steps: int = STEPS, window: int | None = WINDOW) -> Any:
    """Per-sample gradients, `[B, *w.shape]`, and the final carry."""
    model = MODELS[name]
    xs = inputs(model, steps)
    with brainstate.environ.context(dt=1.0 * u.ms):
        learner, params = pb.capture(made(name), xs[0, 0], algorithm=algorithm)
    gradient = pb.sequence_grad(by(learner, SAMPLES), loss, reduction="none", window=window)
    grads, aux = gradient(params, None, xs, jnp.ones((steps, SAMPLES)))
    return leaves(grads), aux.carry


@functools.cache
def theirs(name: str, algorithm: str, mode: str, steps: int = STEPS) -> dict[str, jax.Array]:
    """BrainTrace's gradients of each sample, `[B, *w.shape]`; of a batch, with the loss of that sample alone."""
    xs, options = inputs(MODELS[name], steps), ALGORITHMS[algorithm][1]
    with quiet(), brainstate.environ.context(dt=1.0 * u.ms):
        if mode == "one sample":
            run = _driven(made(name), algorithm, xs[0, 0], options, {})
            each = [run(xs[:, i], jnp.ones(1)) for i in range(SAMPLES)]
        else:
            sizes = {"batch_size": SAMPLES, "vmap": mode == "vmap"}
            run = _driven(made(name), algorithm, xs[0], options, sizes)
            each = [run(xs, counts) for counts in jnp.eye(SAMPLES)]
    return {leaf: jnp.stack([one[leaf] for one in each]) for leaf in each[0]}


def _driven(net: Any, algorithm: str, example: jax.Array, options: Any, sizes: Any) -> Any:
    """The loop over the steps that BrainTrace documents: a call of the learner, and the gradient of the step's loss.

    Returns:
      `(xs, counts) -> gradients`, from a fresh start at each call; `counts` is by how much the loss of a sample counts.
    """
    weights = net.states(brainstate.ParamState)
    learner: Any = braintrace.compile(net, algorithm, example, **options, **sizes)
    states = learner.states()
    begun = {path: state.value for path, state in states.items()}

    def summed(xs: jax.Array, counts: jax.Array) -> Any:
        for path, state in states.items():
            state.value = begun[path]

        def step(x: jax.Array) -> Any:
            def total() -> jax.Array:
                return counts @ ((learner(x) - 1.0) ** 2).reshape(len(counts), -1).sum(1)

            return brainstate.transform.grad(total, weights)()

        return jax.tree.map(lambda g: g.sum(0), brainstate.transform.for_loop(step, xs))

    once: Any = brainstate.transform.jit(summed)

    def run(xs: jax.Array, counts: jax.Array) -> dict[str, jax.Array]:
        return leaves({".".join(map(str, path)): grad for path, grad in once(xs, counts).items()})

    return run


def distance(one: jax.Array, other: jax.Array) -> float:
    """The largest difference, relative to the largest entry of the first."""
    return float(jnp.abs(one - other).max() / jnp.abs(one).max())


def differences(name: str, algorithm: str, mode: str) -> dict[str, float]:
    """How far BrainTrace's gradient of each array is from ours, sample by sample."""
    own = _own(name, algorithm)
    native = theirs(name, algorithm, mode)
    return {leaf: distance(value, native[leaf]) for leaf, value in own.items()}


@functools.cache
def _own(name: str, algorithm: str) -> dict[str, jax.Array]:
    return ours(name, ALGORITHMS[algorithm][0])[0]


def traced(name: str) -> set[tuple[str, tuple[str, ...]]]:
    """Each weight that has a trace, with the hidden states of each group that it reaches."""
    learner, _ = pb.capture(made(name), inputs(MODELS[name])[0, 0], algorithm=pb.D_RTRL(rule="published"))
    return {
        (row.weight, tuple(group.split(", "))) for row in pb.explain(learner).rows for group in row.groups if row.traces
    }


def related(name: str) -> set[tuple[str, tuple[str, ...]]]:
    """The same of BrainTrace's compiler."""
    net = made(name)
    brainstate.nn.init_all_states(net)
    graph = braintrace.compile_etrace_graph(net, inputs(MODELS[name])[0, 0])
    return {
        (".".join(map(str, path)), tuple(sorted(".".join(map(str, hidden)) for hidden in group.hidden_paths)))
        for relation in graph.hidden_param_op_relations
        for path in relation.trainable_paths.values()
        for group in relation.hidden_groups
    }
