"""Options and other plain arguments."""

import brainunit as u
import jax
import numpy as np
from brainscale.nn import Linear

import pure_batching as pb
from pure_batching.errors import (
    AlgorithmError,
    DtypeError,
    LossError,
    NativeError,
    OptionError,
    ShapeError,
    StructureError,
)
from pure_batching.testing import assert_interchangeable

from ..bench import SAMPLES, STEPS, bench
from ..models import squared
from ..modules import LIFNet
from .provoke import ES, SETTINGS, Refusal, one_input, same, tutorial, with_loss

# What every text says of a loss, a decay, a rule, a learning signal.
ONE_NUMBER = ", expected one real number without a unit for the output and target of one sample ~ inside the loss"
RANKS = ", expected a float with 0 < decay < 1, or an integer rank >= 1. ~ 0.9"
RULES = ", expected 'brainscale' or 'published'. Choose one of them."
VJPS = ", expected 'single-step' or 'multi-step'. Choose one of them."


def layer_with(**leaves: object) -> dict[str, object]:
    """States of a linear layer of 2 inputs and 3 outputs, some of them changed."""
    return {"weight_op": {"weight": np.ones((2, 3)), "bias": np.ones(3), **leaves}}


OPTIONS = (
    *(
        Refusal(
            f"{algorithm.__name__}({value!r})",
            lambda _, algorithm=algorithm, value=value: algorithm(value),
            AlgorithmError,
            f"decay_or_rank: got {value!r}" + RANKS,
        )
        for algorithm in (pb.ES_D_RTRL, pb.Hybrid)
        for value in (1.0, 0, 0.0, -0.1, -1, True, "0.9", float("nan"))
    ),
    *(
        Refusal(
            f"{algorithm.__name__}({value!r}, {rule!r})",
            lambda _, algorithm=algorithm, value=value, rule=rule: algorithm(value, rule),
            AlgorithmError,
            f"decay_or_rank: got {value!r}, whose decay is {decay}, expected a decay whose bias correction with "
            f'rule="{rule}" is not 0 in float32. The gradient is divided by the correction, in brainscale 0.1.0 too',
        )
        for algorithm in (pb.ES_D_RTRL, pb.Hybrid)
        for value, decay, rule in ((1, "0", "brainscale"), (1e-9, "1e-09", "brainscale"), (10**9, "1", "published"))
    ),
    *(
        Refusal(
            f"{make.__name__} with the {'traced ' * is_traced}array {text}",
            lambda _, make=make, array=array, run=jax.vmap if is_traced else same: run(make)(array),
            AlgorithmError,
            f"{name}: got {text}, expected one number: a float array [] without axes. Pass jnp.asarray(0.9), say. ~ "
            "let jax.vmap map over them a function of one number that makes the rule and the learner.",
        )
        for make, name in (
            (pb.ES_D_RTRL, "decay_or_rank"),
            (pb.Hybrid, "decay_or_rank"),
            (pb.EProp, "kappa"),
            (pb.OTTT, "decay"),
        )
        for array, text, is_traced in (
            (np.full(3, 0.5), "float64[3]", False),
            (np.full((2, 3), 0.5), "float64[3]", True),
            (np.asarray(1), "int64[]", False),
            (np.full(2, 1), "int64[]", True),
            (np.asarray(0.5j), "complex128[]", False),
        )
    ),
    *(
        Refusal(
            f"{name} with {option}",
            lambda _, make=make, option=option: make(**{option: "exact"}),
            AlgorithmError,
            f"{option}: got 'exact'" + text,
        )
        for name, make in {
            "ES_D_RTRL": lambda **options: pb.ES_D_RTRL(0.9, **options),
            "D_RTRL": pb.D_RTRL,
            "Hybrid": lambda **options: pb.Hybrid(0.9, **options),
        }.items()
        for option, text in {"rule": RULES, "vjp": VJPS}.items()
    ),
    Refusal(
        "BPTT(checkpoint=3)",
        lambda _: pb.BPTT(checkpoint=3),
        AlgorithmError,
        "checkpoint: got 3, expected False or True. Choose one of them.",
    ),
    *(
        Refusal(
            f"reduction {value!r}",
            lambda seed, value=value: pb.sequence_grad(bench("tutorial", seed).learner, squared, reduction=value),
            OptionError,
            f"reduction: got {value!r}, expected 'mean' or 'sum' or 'none'. Choose one of them.",
        )
        for value in ("average", None)
    ),
    *(
        Refusal(
            f"window {value!r}",
            lambda seed, value=value: pb.sequence_grad(bench("tutorial", seed).learner, squared, window=value),
            OptionError,
            f"window: got {value!r}, expected None or an integer >= 1. Give a number of steps.",
        )
        for value in (0, -3, True, 2.5)
    ),
    *(
        Refusal(f"a loss that is {name}", lambda seed, loss=loss: with_loss(seed, loss), LossError, text + ONE_NUMBER)
        for name, loss, text in (
            ("a vector", lambda out, _: out, "loss: got float64[2]"),
            ("an array of one", lambda out, _: out.sum()[None], "loss: got float64[1]"),
            ("a quantity", lambda out, _: out.sum() * u.mV, "loss: got float64[] mV"),
            ("an integer", lambda out, _: out.argmax(), "loss: got int64[]"),
            ("a truth value", lambda out, _: out.sum() > 0, "loss: got bool[]"),
            ("complex", lambda out, _: out.sum() + 0j, "loss: got complex128[]"),
            ("a pair", lambda out, _: (out.sum(), out), "loss: got (float64[], float64[2])"),
            ("nothing", lambda out, _: None, "loss: got None"),
        )
    ),
    *(
        Refusal(
            f"{name} that is no flag",
            lambda seed, call=call: call(bench("tutorial", seed)),
            OptionError,
            f"{name}: got 'yes', expected False or True. Choose one of them.",
        )
        for name, call in {
            "allow_coupling": lambda made: pb.manual(made.learner, SAMPLES, allow_coupling="yes"),
            "outputs": lambda made: pb.sequence_grad(made.learner, squared, outputs="yes"),
            "probe": lambda made: pb.audit(made.learner, probe="yes"),
            "spikes": lambda made: assert_interchangeable(tutorial, ES, *made.data(STEPS, SAMPLES), None, spikes="yes"),
        }.items()
    ),
    *(
        Refusal(
            f"bound {value!r}",
            lambda seed, value=value: pb.clipped_grad(bench("tutorial", seed).batched("vmap"), squared, value),
            OptionError,
            f"bound: got {value!r}, expected a number above 0. Give the largest norm.",
        )
        for value in (0.0, -1, True, np.True_, "1", None, 1j, np.complex64(1), np.array("1"), float("nan"), np.ones(2))
    ),
    Refusal(
        "params of an audit that are a number",
        lambda seed: pb.audit(bench("tutorial", seed).batched("vmap"), params=3),
        StructureError,
        "params: got int, expected {path: value}.",
    ),
    Refusal(
        "params of an audit that are of another module",
        lambda seed: pb.audit(bench("tutorial", seed).batched("vmap"), params=bench("GRUCell", seed).params),
        StructureError,
        "params[~ expected no such leaf.",
    ),
    *(
        Refusal(
            f"a number for the module of {name}",
            lambda _, call=call: call(3),
            StructureError,
            "net: got int, expected a brainstate.nn.Module. Pass the module whose states are meant.",
        )
        for name, call in {"read_states": pb.read_states, "write_states": lambda net: pb.write_states(net, {})}.items()
    ),
    Refusal(
        "a number for states",
        lambda _: pb.write_states(tutorial(), 3),
        StructureError,
        "tree: got int, expected {path: value}. Pass what read_states gave, or a part of it.",
    ),
    *(
        Refusal(f"states with {name}", lambda _, tree=tree: pb.write_states(Linear(2, 3), tree), error, text)
        for name, tree, error, text in (
            (
                *("another path", {"nope": 1.0}, StructureError),
                "tree: got the path 'nope', expected one of weight_op. Use the paths that read_states gives.",
            ),
            (
                *("another shape", layer_with(weight=np.ones((2, 2))), ShapeError),
                "weight_op['weight']: got shape (2, 2), expected (2, 3). Give the state ~ that read_states gives",
            ),
            (
                *("samples", layer_with(bias=np.ones((4, 3))), ShapeError),
                "weight_op['bias']: got shape (4, 3), expected (3,). Give the state 'weight_op' a value like",
            ),
            (
                *("complex numbers", layer_with(bias=1j * np.ones(3)), DtypeError),
                "weight_op['bias']: got complex128, expected float64. Give the state 'weight_op' a value like",
            ),
            (
                *("text", {"weight_op": "text"}, StructureError),
                "weight_op: got str, expected a container of weight_op['bias'], weight_op['weight']. Give the state",
            ),
            (
                *("a leaf too many", layer_with(x=1.0), StructureError),
                "weight_op['x']: got float64[], expected no such leaf. Give the state 'weight_op' a value like",
            ),
        )
    ),
    *(
        Refusal(
            f"interchangeable: {name}",
            lambda _, factory=factory, inputs=inputs, laws=laws: assert_interchangeable(
                factory, ES, inputs, one_input(), squared, environ=SETTINGS, laws=laws
            ),
            error,
            text,
        )
        for name, factory, inputs, laws, error, text in (
            (
                *("a module", tutorial(), one_input(), None, StructureError),
                "net_factory: got one ~Net, expected a function () -> module. Pass what makes the module",
            ),
            (
                *("a class that needs arguments", LIFNet, one_input(), None, StructureError),
                "net_factory: got one that needs the arguments n_in, n_rec, n_out, expected a function () -> module.",
            ),
            ("a number", tutorial, 3, None, ShapeError, "inputs[0]: got shape (), expected (T, B, ...). Time leads"),
            ("no batch", tutorial, one_input(), None, ShapeError, "inputs[0]: got shape (5,), expected (T, B, ...)."),
            ("text", tutorial, "x", None, DtypeError, "inputs[0]: got str, expected an array of numbers."),
            ("no law", tutorial, 3, ["x"], OptionError, "laws: got 'x', expected 'init' or ~ Choose one of them."),
        )
    ),
    Refusal(
        "an algorithm that is not compiled",
        lambda seed: pb.from_native(bench("tutorial", seed).learner, object()),
        NativeError,
        "algorithm: got object, expected a compiled brainscale algorithm. Call algorithm.compile_graph(*inputs) first.",
    ),
)
