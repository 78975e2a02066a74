"""Timing: all cases take turns in every round of one process, after a warm-up of their own."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np


@dataclass(frozen=True)
class Run:
    """A computation that is ready to be timed.

    Attributes:
      call: runs it, and returns arrays or None; None where the program is compiled for its memory alone.
      temp_bytes: what its compiled program holds beside arguments and results; None where that is not known.
      seconds: what is taken instead of the time of a call, such as what another process measured of itself.
    """

    call: Callable[[], Any] | None
    temp_bytes: int | None = None
    seconds: Callable[[], float] | None = None

    def __call__(self) -> Any:
        """The result, once it is there."""
        return None if self.call is None else jax.block_until_ready(self.call())

    def for_memory(self) -> "Run":
        """The same, which is not timed."""
        return dataclasses.replace(self, call=None)


# Seconds.
LONG = 0.2


class Measured(NamedTuple):
    """What the rounds gave for one case, in seconds; not a number where nothing was timed.

    Attributes:
      median, low, high: the median and the quartiles by the clock.
      fastest: round.
      cores: median of the time of all processor cores together.
      temp_bytes: see `Run`.
    """

    median: float
    low: float
    high: float
    fastest: float
    cores: float
    temp_bytes: int | None


def compiled(function: Callable[..., Any], *arguments: Any) -> Run:
    """A function under `jax.jit`, compiled for these arguments."""
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    return Run(lambda: program(*arguments), None if memory is None else memory.temp_size_in_bytes)


def measure(cases: Mapping[str, Run], rounds: int) -> dict[str, Measured]:
    """Times of every case.

    A round runs every case in an order of its own. Each is run twice, and the second time counts: what the case before
    left in the caches then plays no part, as in a training that runs one case again and again. A case that takes longer
    than `LONG` runs once, since caches make no difference to it.
    """
    order = np.random.default_rng(0)
    clock, cores = ({name: np.full(rounds, np.nan) for name in cases} for _ in range(2))
    once = {name: _warmed_up(run) for name, run in cases.items() if run.call or run.seconds}
    for i in range(rounds):
        for name in order.permutation([*once]):
            if once[name] < LONG:
                cases[name]()
            clock[name][i], cores[name][i] = _timed(cases[name])
    return {name: _summary(clock[name], cores[name], run.temp_bytes) for name, run in cases.items()}


def _warmed_up(run: Run) -> float:
    """The seconds of a second run; what measures itself needs none."""
    if run.seconds is not None:
        return LONG
    run()
    return _timed(run)[0]


def _timed(run: Run) -> tuple[float, float]:
    """Seconds by the clock and of all cores; of the cores, nothing is known where a run measures itself."""
    if run.seconds is not None:
        return run.seconds(), np.nan
    start = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _summary(clock: np.ndarray, cores: np.ndarray, temp_bytes: int | None) -> Measured:
    low, median, high = np.quantile(clock, (0.25, 0.5, 0.75)).tolist()
    return Measured(median, low, high, float(np.min(clock)), float(np.median(cores)), temp_bytes)
