"""The tutorial's data and network."""

from typing import Any, NamedTuple

import brainpy.state
import brainscale
import brainstate
import braintools
import brainunit as u
import jax

FEATURES = 100
CLASSES = 10

DT = 1.0 * u.ms


class Dataset(NamedTuple):
    """Sequences to classify.

    Attributes:
      inputs: `[T, B, features]`.
      labels: `[B]`, one class for a whole sequence.
      mask: `[T, B]`, whether a sequence has the step; None where all have `T` steps.
    """

    inputs: jax.Array
    labels: jax.Array
    mask: jax.Array | None = None


class LIFNet(brainstate.nn.Module):
    """Leaky integrate-and-fire neurons that get their own spikes back, read out by leaky rates; mV and ms.

    `layers` is where its layers are from, `brainscale.nn` or `braintrace.nn`, which give the same numbers.
    """

    def __init__(self, features: int, hidden: int, classes: int, layers: Any = brainscale.nn) -> None:
        super().__init__()
        weights = braintools.init.KaimingNormal(unit=u.mV)
        # One matrix for both inputs: the features above, the recurrent spikes below.
        both = u.math.concatenate([weights([features, hidden]), weights([hidden, hidden])], axis=0)
        self.neu = brainpy.state.LIF(hidden)
        self.syn = brainpy.state.DeltaProj(
            comm=layers.Linear(features + hidden, hidden, w_init=both, b_init=braintools.init.ZeroInit(unit=u.mV)),
            post=self.neu,
        )
        self.out = layers.LeakyRateReadout(hidden, classes)

    def update(self, x: jax.Array) -> jax.Array:
        """One step: features `[features]` in, logits `[classes]` out."""
        self.syn(u.math.concatenate([x, self.neu.get_spike()], axis=-1))
        return self.out(self.neu())


def make_dataset(time: int, batch: int) -> Dataset:
    """The tutorial's: inputs uniform in [0, 1), and labels, both drawn from BrainState's generator."""
    return Dataset(brainstate.random.rand(time, batch, FEATURES), brainstate.random.randint(0, CLASSES, batch))


def make_net(hidden: int) -> LIFNet:
    """The network of the tutorial, its weights drawn from BrainState's generator; reads `dt` from the environment."""
    return LIFNet(FEATURES, hidden, CLASSES)
