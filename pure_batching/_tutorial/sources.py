"""The tutorial's network by each source: the same numbers, written in three ways."""

from collections.abc import Callable
from typing import Any, NamedTuple

import brainunit as u
import jax
import jax.numpy as jnp

import pure_batching as pb

from . import plain
from .net import LIFNet
from .options import Options


class Sizes(NamedTuple):
    """Of the network."""

    features: int
    hidden: int
    classes: int


class Captured(NamedTuple):
    """A source's learner and params.

    Attributes:
      learner, params: as `pb.capture` and `pb.capture_function` return them.
      potential: the path of the neurons' potentials in `carry.hidden`.
    """

    learner: pb.Learner
    params: Any
    potential: str


def capture(options: Options, sizes: Sizes, x: jax.Array) -> Captured:
    """The network by the source that is asked for, its weights drawn from BrainState's generator.

    Args:
      options: of which source and algorithm are read.
      sizes: of the network.
      x: the features of one step, `[features]`.
    """
    return _CAPTURES[options.source](options.build_algorithm(), sizes, x)


def spikes(potential: Any) -> jax.Array:
    """Whether the neurons fire at these potentials, which may have a unit."""
    return u.get_mantissa(potential) > plain.THRESHOLD


def _of_brainscale(algorithm: pb.Algorithm, sizes: Sizes, x: jax.Array) -> Captured:
    return Captured(*pb.capture(LIFNet(*sizes), x, algorithm=algorithm), "neu.V")


def _of_braintrace(algorithm: pb.Algorithm, sizes: Sizes, x: jax.Array) -> Captured:
    import braintrace  # noqa: PLC0415 - an extra

    return Captured(*pb.capture(LIFNet(*sizes, layers=braintrace.nn), x, algorithm=algorithm), "neu.V")


def _of_function(algorithm: pb.Algorithm, sizes: Sizes, x: jax.Array) -> Captured:
    weights = pb.read_states(LIFNet(*sizes))
    into, out = weights["syn.comm.weight_op"], weights["out.weight_op"]
    params = {name: u.get_mantissa(into[name]) for name in ("weight", "bias")} | {"out": out["weight"]}
    state = tuple(jnp.zeros(size, x.dtype) for size in (sizes.hidden, sizes.classes))
    learner, params = pb.capture_function(plain.step, params, state, x, algorithm=algorithm)
    return Captured(learner, params, next(iter(learner.init().hidden)))


_CAPTURES: dict[str, Callable[[pb.Algorithm, Sizes, jax.Array], Captured]] = {
    "brainscale": _of_brainscale,
    "braintrace": _of_braintrace,
    "function": _of_function,
}
