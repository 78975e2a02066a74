"""What every benchmark shares: interleaved timing, time to the first result in fresh processes, tables with bars."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import brainstate
import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from pure_batching._tutorial.net import DT, Dataset, LIFNet, make_dataset, make_net

Gradients = dict[str, Any]
Run = Callable[[], Gradients]
Build = Callable[[LIFNet, Dataset], Run]
Seconds = dict[str, np.ndarray]

CONSOLE = Console(width=110)


class Bar(NamedTuple):
    """A ratio of two cases and what it must not pass."""

    case: str
    against: str
    limit: float
    is_upper: bool = True

    def holds(self, ratio: float) -> bool:
        """Whether a measured ratio keeps the bar."""
        return ratio <= self.limit if self.is_upper else ratio >= self.limit


class FirstResult(NamedTuple):
    """Seconds to the first gradient in a process that has made nothing yet; imports, data and weights excluded.

    Attributes:
      total: all of it.
      tracing: Python functions to jaxprs and to what the compiler reads, capture included.
      compiling: what the compiler took, over all functions that were compiled.
    """

    total: float
    tracing: float
    compiling: float


def run_benchmark(
    script: str,
    cases: dict[str, Build],
    speed_bars: Sequence[Bar],
    first_bars: Sequence[Bar] = (),
    *,
    is_same_work: bool = True,
) -> None:
    """The command line of every benchmark: measure all cases, or the first result of one."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="of interleaved runs")
    parser.add_argument("--processes", type=int, default=5, help="fresh processes for each case's first result")
    parser.add_argument("--first", choices=cases, help="measure the first result of one case in this process")
    options = parser.parse_args()
    if options.first:
        print(json.dumps(measure_first(cases[options.first])._asdict()))
        return
    runs = {name: build(*make_problem()) for name, build in cases.items()}
    if is_same_work:
        print_differences(runs)
    print_speed(*measure_rounds(runs, options.rounds), speed_bars)
    if options.processes and first_bars:
        names = [name for name in cases if any(name in (bar.case, bar.against) for bar in first_bars)]
        print_firsts(measure_firsts(script, names, options.processes), first_bars)


def make_problem(time_steps: int = 16, batch: int = 128, hidden: int = 200) -> tuple[LIFNet, Dataset]:
    """The tutorial's network and data, the same in every process."""
    brainstate.environ.set(dt=DT)
    brainstate.random.seed(0)
    data = make_dataset(time_steps, batch)
    return make_net(hidden), jax.block_until_ready(data)


def measure_rounds(cases: dict[str, Run], rounds: int) -> tuple[Seconds, Seconds]:
    """Seconds by the clock, and of all processor cores, of each case in each round, `[rounds]`.

    A round runs every case twice, in an order of its own, and takes the second time: what the case before left in the
    caches then plays no part, as in a training that runs one case again and again.
    """
    names, order = list(cases), np.random.default_rng(0)
    elapsed, busy = ({name: np.zeros(rounds) for name in names} for _ in range(2))
    for name in names:
        jax.block_until_ready(cases[name]())
    for i in range(rounds):
        for name in order.permutation(names):
            jax.block_until_ready(cases[name]())
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(cases[name]())
            elapsed[name][i], busy[name][i] = time.perf_counter() - start[0], time.process_time() - start[1]
    return elapsed, busy


def measure_first(build: Build) -> FirstResult:
    """The time to the first result of one case, in this process."""
    compiling: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiling.append(duration)

    net, data = make_problem()
    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    jax.block_until_ready(build(net, data)())
    total = time.perf_counter() - start
    return FirstResult(total, total - sum(compiling), sum(compiling))


def measure_firsts(script: str, names: Sequence[str], rounds: int) -> dict[str, list[FirstResult]]:
    """The time to the first result of every case, each in fresh processes, `rounds` of them in turn."""
    results: dict[str, list[FirstResult]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            command = [sys.executable, script, "--first", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[name].append(FirstResult(**json.loads(done.stdout.splitlines()[-1])))
    return results


def print_differences(cases: dict[str, Run]) -> None:
    """How far the gradients of the cases lie from the first one's: only the same work may be compared."""
    (first, reference), *others = [(name, run()) for name, run in cases.items()]
    for name, gradients in others:
        largest = max(_difference(reference[path], gradients[path]) for path in reference)
        CONSOLE.print(f"gradient of {name} against {first}: {largest:.1e} of the largest entry")


def print_speed(elapsed: Seconds, busy: Seconds, bars: Sequence[Bar]) -> None:
    """Medians, and the median over rounds of each ratio within a round."""
    table = Table(title=f"gradient of a sequence, {len(next(iter(elapsed.values())))} rounds")
    for column in ("case", "median, ms", "fastest, ms", "median of all cores, ms"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, values in elapsed.items():
        numbers = (np.median(values), values.min(), np.median(busy[name]))
        table.add_row(name, *(f"{number * 1e3:.2f}" for number in numbers))
    CONSOLE.print(table)
    _print_bars("speed", bars, {bar: float(np.median(elapsed[bar.case] / elapsed[bar.against])) for bar in bars})


def print_firsts(results: dict[str, list[FirstResult]], bars: Sequence[Bar]) -> None:
    """Medians over processes, and the ratios of the totals."""
    table = Table(title=f"time to the first result, {len(next(iter(results.values())))} processes each, medians in s")
    for column in ("case", *FirstResult._fields):
        table.add_column(column, justify="left" if column == "case" else "right")
    for name, firsts in results.items():
        table.add_row(name, *(f"{value:.2f}" for value in np.median(firsts, axis=0)))
    CONSOLE.print(table)
    totals = {name: float(np.median([first.total for first in firsts])) for name, firsts in results.items()}
    _print_bars("time to the first result", bars, {bar: totals[bar.case] / totals[bar.against] for bar in bars})


def _print_bars(title: str, bars: Sequence[Bar], ratios: dict[Bar, float]) -> None:
    if not bars:
        return
    table = Table(title=title)
    for column in ("ratio", "measured", "bar", "holds"):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for bar in bars:
        limit = f"{'<=' if bar.is_upper else '>='} {bar.limit}"
        holds = "yes" if bar.holds(ratios[bar]) else "NO"
        table.add_row(f"{bar.case} / {bar.against}", f"{ratios[bar]:.2f}", limit, holds)
    CONSOLE.print(table)


def _difference(reference: Any, value: Any) -> float:
    """Largest difference over largest entry, of the worst array of one weight."""
    pairs = zip(jax.tree.leaves(reference), jax.tree.leaves(value), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
