"""The tutorial's network and data, at any size."""

from collections.abc import Callable
from typing import Any, NamedTuple

import brainstate
import jax

from pure_batching._tutorial.net import DT, Dataset, LIFNet, make_dataset, make_net

Gradients = dict[str, Any]


class Sizes(NamedTuple):
    """How large a problem is; by default the tutorial's."""

    steps: int = 16
    samples: int = 128
    hidden: int = 200


TUTORIAL = Sizes()


class Problem(NamedTuple):
    """A network and its data."""

    net: LIFNet
    data: Dataset


MakeNet = Callable[[int], Any]


def make_problem(sizes: Sizes = TUTORIAL, make: MakeNet = make_net) -> Problem:
    """The same weights and data at every call and in every process; a network of its own, which may be changed."""
    brainstate.environ.set(dt=DT)
    brainstate.random.seed(0)
    data = make_dataset(sizes.steps, sizes.samples)
    return Problem(make(sizes.hidden), jax.block_until_ready(data))
