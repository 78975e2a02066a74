"""Traces that follow the steps of a window after all of them: the time inside, the samples outside.

A trace of the shape of a weight is as large as the weight, for each sample. Those of a batch fit no cache, those of a
few samples do.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from .._algorithms.base import Record, Trace, computed, kept as in_trace_dtype
from .._program import Params
from .._strategies.base import MapSamples
from .._tree import nbytes
from .compiled import kept
from .records import Given, given_spec, step_given, trace_spec
from .steps import Steps, select
from .task import frozen, runnable
from .tiles import each_in_tiles

if TYPE_CHECKING:
    from .learner import Learner

# The bytes of the traces that follow at once: a part of what the cache of one core holds.
_CACHED = 2**18


class _Origin(NamedTuple):
    """Where the leaves of a record come from.

    A trace follows arrays that are there already, and most of a record is made of them. The loops give the rest alone.

    Attributes:
      places: for each leaf, where it stands among the leaves of what the trace follows; None for what the step makes.
      structure: of a record.
      made: the specifications of what the step makes.
      is_still: whether the step leaves the trace as it is.
    """

    places: tuple[int | None, ...]
    structure: Any
    made: tuple[jax.ShapeDtypeStruct, ...]
    is_still: bool

    def made_of(self, record: Record) -> list[jax.Array]:
        """What the step made of a record."""
        leaves = zip(jax.tree.leaves(record), self.places, strict=True)
        return [leaf for leaf, place in leaves if place is None]

    def record(self, given: Given, made: list[jax.Array]) -> Record:
        """The whole record."""
        there, new = jax.tree.leaves(given), iter(made)
        leaves = [next(new) if place is None else there[place] for place in self.places]
        return jax.tree.unflatten(self.structure, leaves)


def follows_later(learner: "Learner") -> bool:
    """Whether the traces of a batch are followed after the steps of a window, and not at each of them.

    They are where the trace changes at each step, and is larger than what the steps would have to keep for it.
    """
    if learner.batch_size is None or learner.algorithm.credit == "window":
        return False
    return not _origin(learner).is_still and nbytes(trace_spec(learner)) > nbytes(given_spec(learner))


def stacked_spec(learner: "Learner") -> Any:
    """The specification of what a step of one sample keeps for the trace, and of what a record has besides."""
    return given_spec(learner), _origin(learner).made


def followed(
    learner: "Learner", params: Params, trace: Trace, fresh: Trace, steps: Steps, given: Given
) -> tuple[Trace, Record]:
    """The traces after the steps of a window, and the records `[K, B, ...]`.

    Args:
      learner: how samples are run.
      params: trainable values by path.
      trace: before the window.
      fresh: that of a sample that starts anew.
      steps: of the window, for their mask and resets.
      given: what the traces follow, `[K, B, ...]`.
    """
    algorithm, program = learner.algorithm, learner.program
    origin = _origin(learner, has_signal=given.signal is not None)

    def of_sample(params: Params, trace: Trace, fresh: Trace, rows: Any) -> tuple[Trace, list[jax.Array]]:
        def one(trace: Trace, row: Any) -> tuple[Trace, list[jax.Array]]:
            given, mask, reset = row
            before = trace if reset is None else select(reset, fresh, trace)
            start = runnable(before, fresh, mask)
            new, record = step_given(learner, params, computed(algorithm, program, start), given)
            return frozen(in_trace_dtype(algorithm, new), before, mask), origin.made_of(record)

        return jax.lax.scan(one, trace, rows)

    rows = (given, steps.mask, steps.reset)
    after, made = _mapping(learner)(of_sample, (0, 0, 1), (0, 1))(params, trace, fresh, rows)
    return after, origin.record(given, made)


def _origin(learner: "Learner", *, has_signal: bool = True) -> _Origin:
    """Where the leaves of a record come from."""

    def find() -> _Origin:
        trace, params, given = trace_spec(learner), learner.program.params, given_spec(learner)
        given = given if has_signal else given._replace(signal=None)

        def step(trace: Trace, given: Given, params: Params) -> Any:
            return step_given(learner, params, trace, given)

        made, (_, record) = jax.make_jaxpr(step, return_shape=True)(trace, given, params)
        count, variables = len(jax.tree.leaves(trace)), made.jaxpr.invars
        place_of = {id(variable): place for place, variable in enumerate(variables[count:])}
        places = tuple(place_of.get(id(variable)) for variable in made.jaxpr.outvars[count:])
        leaves, structure = jax.tree.flatten(record)
        new = tuple(leaf for leaf, place in zip(leaves, places, strict=True) if place is None)
        is_still = all(a is b for a, b in zip(variables, made.jaxpr.outvars[:count], strict=False))
        return _Origin(places, structure, new, is_still)

    return kept(learner, find, _origin, has_signal)


def _mapping(learner: "Learner") -> MapSamples:
    """All samples at once, or as many at a time as a cache holds the traces of."""
    size, of_one = learner.batch_size or 1, nbytes(trace_spec(learner))
    return learner.each if size * of_one <= _CACHED else each_in_tiles(size, max(1, _CACHED // of_one))
