"""What a benchmark prints."""

import math
from collections.abc import Iterable, Sequence

from _measuring import Measured
from _results import Machine, Move, SectionResult
from rich.console import Console
from rich.table import Table

CONSOLE = Console(width=130)


def print_section(section: SectionResult, rounds: int) -> None:
    """Times of all cases, and the bars."""
    header = ("case", "median, ms", "quartiles, ms", "fastest, ms", "all cores, ms", "temp, MiB")
    rows = [(name, *numbers(one)) for name, one in section.cases.items()]
    print_table(f"{section.name}: {section.title}, {rounds} rounds", header, rows)
    if section.bars:
        bars = [(bar.text, f"{bar.measured:.2f}", bar.goal, bar.verdict) for bar in section.bars]
        print_table("must hold", ("", "measured", "goal", "holds"), bars)


def numbers(one: Measured) -> tuple[str, ...]:
    """What a table says of a case."""
    spread = f"{one.low * 1e3:.2f} to {one.high * 1e3:.2f}"
    times = (f"{one.median * 1e3:.2f}", spread, f"{one.fastest * 1e3:.2f}", _or_nothing(one.cores * 1e3))
    memory = "" if one.temp_bytes is None else f"{one.temp_bytes / 2**20:.1f}"
    return (*(("",) * len(times) if math.isnan(one.median) else times), memory)


def _or_nothing(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.2f}"


def print_moves(moves: Iterable[Move], then: Machine, now: Machine) -> None:
    """What moved since the baseline."""
    if (then.processor, then.cores) != (now.processor, now.cores):
        CONSOLE.print(f"The baseline is of another machine: {then}")
    compared = [*moves]
    rows = [
        (one.case, f"{one.before * 1e3:.2f}", f"{one.now * 1e3:.2f}", f"{one.now / one.before:.2f}")
        for one in compared
        if one.is_apart
    ]
    if rows:
        print_table("what moved: quartiles apart", ("case", "baseline, ms", "now, ms", "now / baseline"), rows)
    else:
        CONSOLE.print(f"Nothing moved since the baseline: the quartiles of all {len(compared)} common cases overlap.")


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whose first column is of words."""
    table = Table(title=title)
    for i, column in enumerate(header):
        table.add_column(column, justify="right" if i else "left", no_wrap=bool(i))
    for row in rows:
        table.add_row(*row)
    CONSOLE.print(table)
