"""What brainscale 0.1.0 does with one sample of each model and layer: its faults, and where they show."""

from collections.abc import Mapping
from typing import NamedTuple

from .bench import BATCHED_RUNS, SHARED_OUT
from .models import MODELS
from .registry import EVERY

FAULTS: Mapping[int, str] = {
    1: "D_RTRL divides what it adds to a trace, and the trace, by the largest entry where that exceeds 1. In manual "
    "mode that is the largest entry of the whole batch, so that one sample changes the gradient of another.",
    2: "D_RTRL in manual mode does not run with element-wise weights or with convolutions.",
    3: "D_RTRL's `yw_to_w` of LoRA and of convolutions is wrong, and it is missing where a weight has a `weight_fn` "
    "(masked and signed weights) and for an operation of a user's own.",
    4: "Sparse products cannot be mapped, their derivative with respect to the stored numbers is wrong, and D_RTRL "
    "does not run with them.",
    5: "The hybrid algorithm raises (`jax.tree_leaves`, or at an element-wise weight) unless every weight asks for "
    '`grad="approx"`, and takes every weight for one number.',
    6: "Where several hidden states feed each other within a step, the path counts twice; once with "
    '`rule="published"`.',
    7: "ES_D_RTRL corrects its bias by `1 - (1 - decay)**(n + 1)`; by that of an exponential average with "
    '`rule="published"`.',
    9: "`MatMulOp` applies `weight_fn` twice; here it is applied once.",
    11: "Its compiler refuses a hidden state without a path from one step to the next, hidden states that come out of "
    "a jitted call (`jnp.where` is one), two hidden states in one equation, and hidden states of different shapes that "
    "lead to each other. Every other step has the same groups, uses and ways here. The constructor of `URLSTMCell` "
    "fails. `GroupNorm` does not take one sample without an axis in front.",
    12: "Inputs of whole numbers or truth values keep a trace of whole numbers; here one of the weight's dtype.",
    15: "D_RTRL differentiates the function of an element-wise weight at the trace, not at the weight.",
    16: "D_RTRL's `yw_to_w` of a scale that is used at several places (batch normalisation of images) is wrong.",
}

# Those that `rule="brainscale"` has too, because they change the numbers that brainscale is known by.
REPRODUCED = (6, 7)


class Raised(NamedTuple):
    """What BrainScale raises, by which fault, and what the error says, if anything."""

    fault: int
    error: type[Exception]
    text: str | None = None


_IN_A_CALL = Raised(11, NotImplementedError, "within a jit function")
_TWO_STATES = Raised(11, ValueError, "one hidden state in a single equation")
_OWN = Raised(3, NotImplementedError)
_WEIGHT_FN = Raised(3, NotImplementedError, "weight_fn")
_SPARSE = Raised(4, AttributeError, "yw_to_w_transposed")

NOT_COMPILED: Mapping[str, Raised] = {
    "ValinaRNNCell": Raised(11, KeyError, "Var"),  # it looks for a path from h to h that does not exist
    "model `Jitted`": _IN_A_CALL,
    **{
        f"brainpy.state.{name}": _IN_A_CALL
        for name in ("LIFRef", "ExpIFRef", "AdExIFRef", "AdQuaIFRef", "IzhikevichRef", "LIFRef (feed-forward)")
    },
    **{f"brainpy.state.{name}": _TWO_STATES for name in ("Gif", "GifRef", "Gif (feed-forward)")},
    "brainpy.state.LeakyRateReadout": Raised(11, Exception, "state group that hase the same shape"),
}

_NEWER = "newer than the last BrainScale with gradients"

# Why there is nothing in BrainScale to compare with.
NOT_COMPARED: Mapping[str, str] = {
    **{model.name: "random" for model in EVERY.values() if model.is_random},
    "normalized": "see BatchNorm2d (fit)",
    "brainpy.state.DualExpon": "its unit was another one then",
    **{
        f"brainpy.state.{name}": _NEWER
        for name in ("FitzHughNagumo", "HindmarshRose", "CubaLIF", "CobaLIF", "CurrentProj (delay)")
    },
}

_COMPILED = tuple(name for name in EVERY if name not in {*NOT_COMPILED, *NOT_COMPARED})

# What it raises for one sample, by algorithm.
RAISES: Mapping[str, Mapping[str, Raised]] = {
    "ES_D_RTRL": NOT_COMPILED,
    "D_RTRL": {
        **NOT_COMPILED,
        **dict.fromkeys(("masked", "signed", "masked_matrix", "signed_matrix"), _WEIGHT_FN),
        **dict.fromkeys(("brainscale.nn.SparseLinear", "csr", "coo"), _SPARSE),
        "own_operation": _OWN,
    },
}

# The same of its hybrid algorithm: it runs nowhere.
HYBRID: Mapping[str, Raised] = {
    **NOT_COMPILED,
    **{
        name: Raised(5, Exception, "tree_leaves|not the same: dict_keys|hidden_group")
        for name in (*_COMPILED, "ValinaRNNCell")
    },
}

# The fault by which its gradient is another, by algorithm.
DIFFERS: Mapping[str, Mapping[str, int]] = {
    "ES_D_RTRL": {"brainscale.nn.SparseLinear": 4, "csr": 4, "coo": 4, "doubled": 9},
    "D_RTRL": {
        **dict.fromkeys(("lora", "lora_matrix", "conv_rates", "conv_spikes", "conv1d", "brainscale.nn.Conv3d"), 3),
        "doubled": 9,
        "element_wise": 15,
        "tree_of_elements": 15,
        **{f"brainscale.nn.{name}": 16 for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "BatchNorm2d (fit)")},
    },
}

# Faults by which losses and outputs are others too.
IN_OUTPUTS = (9,)

# What has BrainScale's numbers, by algorithm.
COMPARED: Mapping[str, tuple[str, ...]] = {
    algorithm: tuple(name for name in EVERY if name not in {*NOT_COMPARED, *RAISES[algorithm], *DIFFERS[algorithm]})
    for algorithm in RAISES
}

# What has the gradient of a scan over the module itself: not what is random, nor where the module's own step is wrong.
IN_A_SCAN = tuple(name for name, m in EVERY.items() if not m.is_random and name not in DIFFERS["ES_D_RTRL"])

# Products with matrices, where nothing but D_RTRL's normalisation is at stake.
MATRICES = ("tutorial", "LSTMCell", "MinimalRNNCell")

# What its own batched modes do, by algorithm, mode and model: nothing wrong, another gradient by a fault, or an error.
MODES: Mapping[tuple[str, str, str], int | Raised | None] = {
    **{
        ("ES_D_RTRL", mode, name): RAISES["ES_D_RTRL"].get(name)
        for name, mode in BATCHED_RUNS
        if mode not in SHARED_OUT  # BrainScale has two ways to run a batch
        if name not in NOT_COMPARED
    },
    **{("D_RTRL", "vmap", name): None for name in MATRICES},
    **{("D_RTRL", "manual", name): 1 for name in MATRICES},
    ("D_RTRL", "manual", "LRUCell"): Raised(2, NotImplementedError),
    ("D_RTRL", "manual", "conv_rates"): Raised(2, ValueError, "same number of dimensions"),
}


def of_models(names: tuple[str, ...]) -> list[str]:
    """Those that are in the registry of models, which the expensive laws run over."""
    return [name for name in names if name in MODELS]


def of_layers(names: tuple[str, ...]) -> list[str]:
    """The others."""
    return [name for name in names if name not in MODELS]
