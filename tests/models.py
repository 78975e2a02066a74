"""The registry of models: every way in which a step can be built, with what to feed it and what runs it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import brainscale.nn
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from brainpy.state import ALIF, LIF

import pure_batching as pb

from . import modules

Tree = Any
Lead = tuple[int, ...]
Draw = Callable[[np.random.Generator, Lead], Tree]

# The sizes of every model; all differ from each other, and from the number of samples.
N_IN, N_REC, N_OUT = 5, 7, 2

EVERY_STRATEGY = ("loop", "vmap", "manual")


def floats(*shape: int, scale: float = 3.0, unit: Any = u.UNITLESS) -> Draw:
    """Numbers in (0, scale): large enough for spikes, and for traces above 1."""

    def draw(rng: np.random.Generator, lead: Lead) -> Tree:
        values = rng.uniform(0.0, scale, (*lead, *shape)).astype(brainstate.environ.dftype())
        return values if unit.is_unitless else u.Quantity(jnp.asarray(values), unit=unit)

    return draw


def one(rng: np.random.Generator, lead: Lead) -> Tree:
    """A number around 1 for each sample and step."""
    return rng.uniform(0.5, 1.5, lead).astype(brainstate.environ.dftype())


def label(rng: np.random.Generator, lead: Lead) -> Tree:
    """A class for each sample and step."""
    return rng.integers(0, N_OUT, lead)


def squared(out: Tree, target: jax.Array) -> jax.Array:
    """Half the square of each output and a multiple of it, so that silence and speech both have a gradient."""
    leaves = [u.get_mantissa(leaf) for leaf in jax.tree.leaves(out, is_leaf=u.math.is_quantity)]
    return sum((0.5 * leaf**2 + target * leaf).sum() for leaf in leaves)


def cross_entropy(out: jax.Array, target: jax.Array) -> jax.Array:
    """Of the tutorial's classes."""
    return jax.nn.logsumexp(out) - out[target]


@dataclasses.dataclass(frozen=True)
class Model:
    """One entry.

    Attributes:
      name: what a test is called by.
      make: a new module; its weights come from brainstate's generator.
      draws: the arguments of a step, one drawing function each.
      target: what the loss is given besides the output.
      loss: of one sample and one step.
      strategies: what runs it with every rule.
      strategies_if_complete: what runs it besides with a rule that is complete.
      spikes: whether its output is silent until a neuron fires.
      environ: the settings of its capture, besides dt.
      is_random: whether its step draws random numbers.
    """

    name: str
    make: Callable[[], brainstate.nn.Module]
    draws: tuple[Draw, ...] = (floats(N_IN),)
    target: Draw = one
    loss: Callable[[Tree, Tree], jax.Array] = squared
    strategies: tuple[str, ...] = EVERY_STRATEGY
    strategies_if_complete: tuple[str, ...] = ()
    spikes: bool = False
    environ: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_random: bool = False

    def runs_by(self, algorithm: pb.Algorithm) -> tuple[str, ...]:
        """The strategies that run it with a rule."""
        return (*self.strategies, *(self.strategies_if_complete if algorithm.is_complete else ()))

    @property
    def settings(self) -> dict[str, Any]:
        """The environment of its capture."""
        return {"dt": 1.0 * u.ms, **self.environ}

    def build(self, seed: int) -> brainstate.nn.Module:
        """A module with weights drawn from a seed, in the precision in force."""
        with brainstate.environ.context(**self.settings), brainstate.random.seed_context(seed):
            return self.make()

    def inputs(self, seed: int, *lead: int) -> tuple[Tree, ...]:
        """Arguments with leading axes, drawn from a seed."""
        rng = np.random.default_rng((seed, *lead))
        return tuple(draw(rng, lead) for draw in self.draws)

    def targets(self, seed: int, *lead: int) -> Tree:
        """Targets with leading axes, drawn from a seed."""
        return self.target(np.random.default_rng((seed + 1, *lead)), lead)


def _cell(name: str) -> Model:
    return Model(name, lambda: getattr(brainscale.nn, name)(N_IN, N_REC))


def _tree_of_inputs(rng: np.random.Generator, lead: Lead) -> Tree:
    return {"current": floats(N_IN, unit=u.mA)(rng, lead), "others": (floats(N_IN)(rng, lead),)}


_CELLS = ("GRUCell", "LSTMCell", "MGUCell", "MinimalRNNCell", "MiniGRU", "MiniLSTM", "LRUCell", "ValinaRNNCell")

_ALL = (
    Model(
        "tutorial",
        lambda: modules.LIFNet(N_IN, N_REC, N_OUT),
        draws=(floats(N_IN, scale=1.5),),
        target=label,
        loss=cross_entropy,
        spikes=True,
    ),
    *map(_cell, _CELLS),
    Model("lif", lambda: modules.ExponNet(N_IN, N_REC, LIF), draws=(floats(N_IN, scale=1.5),), spikes=True),
    Model("alif", lambda: modules.ExponNet(N_IN, N_REC, ALIF), draws=(floats(N_IN, scale=1.5),), spikes=True),
    Model("random_start", lambda: modules.RandomStart(N_IN, N_REC), draws=(floats(N_IN, scale=1.5),), spikes=True),
    Model("conv_spikes", lambda: modules.ConvSpikes((6, 2), 3), draws=(floats(6, 2, scale=1.5),), spikes=True),
    Model("conv_rates", lambda: modules.conv_rates((5, 4, 2), 3), draws=(floats(5, 4, 2),)),
    Model("lora", lambda: modules.lora(N_IN, N_REC, 2)),
    Model("masked", lambda: modules.masked(N_IN, N_REC)),
    Model("signed", lambda: modules.signed(N_IN, N_REC)),
    Model("element_wise", lambda: modules.ElementWise(N_IN, N_REC)),
    Model("past_hidden", lambda: modules.PastHidden(N_IN, N_REC)),
    Model("two_inputs", lambda: modules.Gated(N_IN, N_REC), draws=(floats(N_IN), floats(N_REC))),
    Model("trees", lambda: modules.Trees(N_IN, N_REC), draws=(_tree_of_inputs,)),
    Model("used_twice", lambda: modules.UsedTwice(N_REC), draws=(floats(N_REC),)),
    # BrainScale finds no relation where a batch of outputs cannot be broadcast to a batch of states side by side.
    Model(
        "group_state",
        lambda: modules.GroupState(N_IN, 2),
        strategies=("loop", "vmap"),
        strategies_if_complete=("manual",),
    ),
    Model("readouts", lambda: modules.Readouts(N_IN, N_REC, N_OUT)),
    Model("delayed", lambda: modules.Delayed(N_IN, N_REC)),
    Model("counting", lambda: modules.Counting(N_IN, N_REC)),
    Model("stack", lambda: modules.Stack(N_IN, N_REC, N_OUT)),
    Model(
        "noisy",
        lambda: modules.Noisy(N_IN, N_REC),
        environ={"fit": True},
        is_random=True,
    ),
    Model(
        "normalized",
        lambda: modules.Normalized((6, 2), N_REC),
        draws=(floats(6, 2),),
        strategies=("loop", "vmap"),
        environ={"fit": True},
    ),
    Model("normalized_fixed", lambda: modules.Normalized((6, 2), N_REC), draws=(floats(6, 2),), environ={"fit": False}),
)

MODELS: Mapping[str, Model] = {model.name: model for model in _ALL}
