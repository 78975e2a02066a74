"""The operations of a case of the tutorial's tables, as XLA runs them on this processor, and the time that each takes.

    python benchmarks/operations.py --section traces --case "D_RTRL default, manual"

shows why a program is as fast as it is. The times are those of the profiler, which slows small operations down.
"""

import argparse
import collections
import tempfile
from pathlib import Path

import jax
from _measuring import Run
from _tables import CONSOLE
from rich.table import Table
from tutorial import SECTIONS

CALLS = 10


def main() -> None:
    """Print the longest operations of one case."""
    options = _options()
    cases = SECTIONS[options.section]().cases
    if options.case not in cases:
        raise SystemExit(f"--case: got {options.case!r}, expected one of {', '.join(map(repr, cases))}")
    table = Table("operation", "times in a call", "ms in a call", title=options.case)
    for name, (count, seconds) in _operations(cases[options.case])[: options.rows]:
        table.add_row(name, f"{count / CALLS:,.0f}", f"{1e3 * seconds / CALLS:.2f}")
    CONSOLE.print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=SECTIONS, default="traces")
    parser.add_argument("--case", default="D_RTRL default, manual")
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
