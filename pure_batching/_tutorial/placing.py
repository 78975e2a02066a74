"""Where the samples run: how many at a time, and on which devices."""

from functools import partial

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import pure_batching as pb

from ..errors import OptionError
from .net import Dataset
from .options import STRATEGIES, Options
from .training import Builder, Params

AXIS = "batch"


def make_mesh(options: Options) -> Mesh | None:
    """The devices that are asked for; None where one is enough.

    Raises:
      OptionError: JAX has fewer devices.
    """
    if options.devices == 1:
        return None
    if len(jax.devices()) < options.devices:
        raise OptionError(
            "--devices",
            got=f"'{options.devices}'",
            expected=f"at most the {len(jax.devices())} of JAX",
            repair=f"To make a processor into as many, set JAX_NUM_CPU_DEVICES={options.devices} in the environment.",
        )
    return jax.make_mesh((options.devices,), (AXIS,), devices=jax.devices()[: options.devices])


def make_builder(options: Options, strategy: str, learner: pb.Learner, mesh: Mesh | None) -> Builder:
    """What makes the batched learner of a strategy."""
    by = STRATEGIES[strategy]
    if options.chunk is not None:
        by = partial(pb.chunked, chunk=options.chunk, by=by)
    if mesh is None:
        return partial(by, learner, options.batch)
    return partial(pb.sharded, learner, options.batch, mesh=mesh, axis=AXIS, by=by)


def spread(mesh: Mesh | None, params: Params, data: Dataset) -> tuple[Params, Dataset]:
    """The params on every device, and each sample on its own."""
    if mesh is None:
        return params, data
    timed, untimed, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, AXIS), (AXIS,), ()))
    mask = None if data.mask is None else jax.device_put(data.mask, timed)
    placed = Dataset(jax.device_put(data.inputs, timed), jax.device_put(data.labels, untimed), mask)
    return jax.device_put(params, whole), placed
