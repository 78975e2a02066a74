"""The states through which a gradient goes back: what has a fraction and belongs to one sample."""

import equinox as eqx

from .._program import States


def parted(states: States) -> tuple[States, States]:
    """The arrays that move with the params, and everything else."""
    own = states._replace(keys={}, shared={})
    moving, still = eqx.partition(own, eqx.is_inexact_array)
    return moving, still._replace(keys=states.keys, shared=states.shared)


def put_together(moving: States, still: States) -> States:
    """The inverse of `parted`."""
    whole = eqx.combine(moving, still._replace(keys={}, shared={}))
    return whole._replace(keys=still.keys, shared=still.shared)
