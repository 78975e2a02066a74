"""Every model and layer, under every algorithm: what the laws and the page of what runs are about."""

import functools
import inspect
from collections.abc import Mapping

import brainpy.state
import brainscale.nn

import pure_batching as pb

from .bench import Bench, bench, bench_of
from .feed_forward import FEED_FORWARD
from .layers import FED_FORWARD, LAYERS, OPERATIONS
from .models import MODELS, Model

EVERY: Mapping[str, Model] = {**MODELS, **LAYERS, **FED_FORWARD, **FEED_FORWARD}

# Without coupling across steps between neurons or layers: there the published D_RTRL is exact.
UNCOUPLED = ("LRUCell", "random_start", "conv_spikes", "conv_rates", "element_wise", "two_inputs", "trees")
EXACT = (*OPERATIONS, *FED_FORWARD, *FEED_FORWARD, *UNCOUPLED)


@functools.cache
def captured(name: str, seed: int, algorithm: pb.Algorithm | None = None) -> Bench:
    """Any of them, captured."""
    return bench(name, seed, algorithm) if name in MODELS else bench_of(EVERY[name], seed, algorithm)


# What the models show whose names are not those of layers.
SHOWN: Mapping[str, tuple[str, ...]] = {
    "tutorial": (
        *("brainpy.state.LIF", "brainpy.state.DeltaProj", "brainscale.nn.Linear", "brainscale.nn.LeakyRateReadout"),
    ),
    **{name: (f"brainscale.nn.{name}",) for name in MODELS if hasattr(brainscale.nn, name)},
    "lif": ("brainpy.state.LIF", "brainpy.state.Expon", "brainpy.state.CUBA", "brainpy.state.AlignPostProj"),
    "alif": ("brainpy.state.ALIF",),
    "conv_spikes": ("brainscale.nn.Conv1d",),
    "conv_rates": ("brainscale.nn.Conv2d",),
    "lora": ("brainscale.nn.LoRA",),
    "masked": ("brainscale.nn.Linear (w_mask)",),
    "signed": ("brainscale.nn.SignedWLinear",),
    "element_wise": ("brainscale.ElemWiseParam",),
    "readouts": ("brainscale.NonTempParam", "brainstate.nn.Linear"),
    "delayed": ("brainstate.nn.Delay",),
    "noisy": ("brainstate.nn.Dropout",),
    "normalized": ("brainscale.nn.BatchNorm1d (fit)",),
    "LIF": ("brainpy.state.LIF (feed-forward)",),
    "ALIF": ("brainpy.state.ALIF (feed-forward)",),
    "Expon_LIF": ("brainpy.state.Expon (feed-forward)", "brainpy.state.LIF"),
    "Expon_ALIF": ("brainpy.state.Expon (feed-forward)", "brainpy.state.ALIF"),
    "matrix": ("brainscale.nn.Linear (feed-forward)",),
    "masked_matrix": ("brainscale.nn.Linear (w_mask, feed-forward)",),
    "signed_matrix": ("brainscale.nn.SignedWLinear (feed-forward)",),
    "lora_matrix": ("brainscale.nn.LoRA (feed-forward)",),
    "conv1d": ("brainscale.nn.Conv1d (feed-forward)",),
    "csr": ("brainscale.nn.SparseLinear (CSR)",),
    "coo": ("brainscale.nn.SparseLinear (COO)",),
    "own_operation": ("an ETraceOp of a user's own",),
    "doubled": ("brainscale.MatMulOp (weight_fn)",),
    "tree_of_elements": ("brainscale.ElemWiseParam (a tree)",),
}


def label(name: str) -> str:
    """The layers that a model shows, or its name."""
    if name in SHOWN:
        return ", ".join(SHOWN[name])
    return name if "." in name or name.startswith("model") else f"model `{name}`"


_COUPLES = ("coupled|keeps once for a whole batch", "couples the samples")

# Why `pb.manual` refuses, by model: what it says, and what the page says.
NOT_BY_HAND: Mapping[str, tuple[str, str]] = {
    "normalized": _COUPLES,
    "brainscale.nn.BatchNorm2d (fit)": _COUPLES,
    "brainpy.state.CurrentProj (delay)": ("with a batch axis", "its delay has no batch axis"),
    "group_state": (
        "with a batch axis",
        "with the default rules no relation is found for a state with an axis of its own",
    ),
}


def offered() -> set[str]:
    """The layers that the two packages offer, but for base classes and for brainpy.state's own simulator."""
    bases = tuple(getattr(brainpy.state, name) for name in ("Neuron", "Synapse", "SynOut", "Projection"))
    simulator = tuple(
        cls for name, cls in vars(brainpy.state).items() if name.startswith("NEST") and inspect.isclass(cls)
    )
    found = {f"brainscale.nn.{name}" for name in dir(brainscale.nn) if inspect.isclass(getattr(brainscale.nn, name))}
    for name, cls in vars(brainpy.state).items():
        if inspect.isclass(cls) and issubclass(cls, bases) and cls not in bases and not issubclass(cls, simulator):
            found.add(f"brainpy.state.{name}")
    return found
