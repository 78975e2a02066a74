"""The operations of a gradient, as XLA runs them on this processor, and the time that each takes.

    python benchmarks/operations.py --algorithm "D_RTRL default" --by manual

shows why a program is as fast as it is. The times are those of the profiler, which slows small operations down.
"""

import argparse
import collections
import tempfile
from pathlib import Path

import jax
from _cases import ours
from _measuring import Run
from _problem import Sizes, make_problem
from _tables import CONSOLE
from rich.table import Table
from tutorial import D_PUBLISHED, ES, STRATEGIES, D

ALGORITHMS = {"ES_D_RTRL": ES, "D_RTRL published": D_PUBLISHED, "D_RTRL default": D}
CALLS = 10


def main() -> None:
    """Print the longest operations of one case."""
    options = _options()
    problem = make_problem(Sizes(steps=options.steps, samples=options.samples))
    run = ours(STRATEGIES[options.by], ALGORITHMS[options.algorithm], problem, options.window)
    table = Table("operation", "times in a call", "ms in a call", title=f"{options.algorithm}, {options.by}")
    for name, (count, seconds) in _operations(run)[: options.rows]:
        table.add_row(name, f"{count / CALLS:,.0f}", f"{1e3 * seconds / CALLS:.2f}")
    CONSOLE.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="D_RTRL default")
    parser.add_argument("--by", choices=STRATEGIES, default="manual")
    parser.add_argument("--window", type=int)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--rows", type=int, default=15)
    return parser.parse_args()


def _operations(run: Run) -> list[tuple[str, tuple[int, float]]]:
    """How often each operation ran, and how many seconds it took, the longest first."""
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    events = [event for plane in profile.planes for line in plane.lines for event in line.events]
    counts, seconds = collections.Counter[str](), collections.Counter[str]()
    for event in events:
        if _is_of_xla(event.name):
            counts[event.name] += 1
            seconds[event.name] += event.duration_ns / 1e9
    return [(name, (counts[name], time)) for name, time in seconds.most_common()]


def _is_of_xla(name: str) -> bool:
    """Operations have names such as `dot.20`; Python, the runtime and the ends of operations have others."""
    return name.replace("-", "_").replace(".", "_").isidentifier() and name.islower() and not name.startswith("end")


if __name__ == "__main__":
    main()
