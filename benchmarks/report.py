"""Fill the tables and pictures of docs/performance.md from the saved results.

    python benchmarks/report.py

A block of the page begins with `<!-- results FILE SECTION -->`, `<!-- picture FILE -->`, `<!-- machines -->` or
`<!-- must hold -->`, and ends with `<!-- end -->`; what stands in between is written anew. Everything else is kept.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from _bars import alike
from _picture import by_series, draw
from _results import BarResult, Results, SectionResult
from _tables import numbers

ALIKE = alike("", "").goal

_ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(
    r"<!-- (?P<kind>results|picture|machines|must hold)(?P<words>[^\n]*?) -->\n.*?<!-- end -->", re.DOTALL
)


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=_ROOT / "benchmarks" / "baseline", help="a folder of JSON files"
    )
    parser.add_argument("--page", type=Path, default=_ROOT / "docs" / "performance.md", help="to be filled in place")
    options = parser.parse_args()
    found = {path.stem: Results.load(path) for path in sorted(options.results.glob("*.json"))}
    page = options.page.read_text()
    options.page.write_text(_BLOCK.sub(lambda block: _filled(block, found, options.page), page))


def _filled(block: re.Match[str], found: dict[str, Results], page: Path) -> str:
    kinds: dict[str, Callable[[list[str], dict[str, Results], Path], str]] = {
        "results": _results,
        "picture": _picture,
        "machines": _machines,
        "must hold": _must_hold,
    }
    kind, words = block["kind"], block["words"].split(maxsplit=1)
    return f"<!-- {kind}{block['words']} -->\n{kinds[kind](words, found, page)}<!-- end -->"


def _results(words: list[str], found: dict[str, Results], _: Path) -> str:
    """The command, the cases and the bars of a section."""
    name, section_name = words
    if name not in found:
        return f"Not measured: there is no `{name}.json`.\n"
    results = found[name]
    section = next((one for one in results.sections if one.name == section_name), None)
    if section is None:
        return f"Not measured: `{name}.json` has no section `{section_name}`.\n"
    table = _growth(section) if section.axis else _cases(section)
    lead = f"{section.title}; `{results.command} --only {_quoted(section_name)}`, {results.rounds} rounds:\n\n"
    if not section.bars:
        return lead + table
    return lead + table + "\n" + _bars((bar.text, bar.measured, bar.goal, bar.verdict) for bar in section.bars)


def _quoted(word: str) -> str:
    return f"'{word}'" if " " in word else word


def _cases(section: SectionResult) -> str:
    header = ("case", "median, ms", "quartiles, ms", "fastest, ms", "all cores, ms", "temp, MiB")
    return _table(header, ((name, *numbers(one)) for name, one in section.cases.items()))


def _growth(section: SectionResult) -> str:
    """A row for each series: the median, over that of the ideal line through the first point, and the memory."""
    series = by_series(section)
    sizes = [*dict.fromkeys(size for points in series.values() for size in points)]
    header = ("case", *(f"{section.axis}={size:g}" for size in sizes))
    rows = []
    for name, points in series.items():
        first = section.cases[points[sizes[0]]].median
        cells = []
        for size in sizes:
            one = section.cases[points[size]]
            ideal = first * section.ideal[f"{size:g}"] / section.ideal[f"{sizes[0]:g}"]
            held = "" if one.temp_bytes is None else f", {one.temp_bytes / 2**20:.1f} MiB"
            cells.append(f"{1e3 * one.median:.2f} ms ({one.median / ideal:.2f}){held}")
        rows.append((name, *cells))
    return "In brackets: over the ideal line through the first size.\n\n" + _table(header, rows)


def _picture(words: list[str], found: dict[str, Results], page: Path) -> str:
    """A picture beside the page."""
    (name,) = words
    if name not in found:
        return f"Not measured: there is no `{name}.json`.\n"
    path = page.parent / page.stem / f"{name}.png"
    draw(found[name], path)
    return f"![{name}]({page.stem}/{path.name})\n"


def _machines(_: list[str], found: dict[str, Results], __: Path) -> str:
    """Where each file comes from."""
    return _table(("results", "machine"), ((f"`{name}.json`", str(one.machine)) for name, one in found.items()))


def _must_hold(_: list[str], found: dict[str, Results], __: Path) -> str:
    """Every bar that has a goal; the strategies, which must cost the same everywhere, in one line."""
    bars = [
        (f"{name}, {section.name}: {bar.text}", bar)
        for name, results in found.items()
        for section in results.sections
        for bar in section.bars
        if bar.goal
    ]
    rows = [(text, bar.measured, bar.goal, bar.verdict) for text, bar in bars if bar.goal != ALIKE]
    return _bars(rows) + _of_strategies([bar for _, bar in bars if bar.goal == ALIKE])


def _of_strategies(bars: list[BarResult]) -> str:
    if not bars:
        return ""
    values, failed = [bar.measured for bar in bars], sum(not bar.holds for bar in bars)
    verdict = f"NO, {failed} do not" if failed else "yes"
    span = f"{min(values):.2f} to {max(values):.2f}"
    return f"| vmap / manual, {len(bars)} ratios of all benchmarks | {span} | {ALIKE} | {verdict} |\n"


def _bars(bars: Iterable[tuple[str, float, str, str]]) -> str:
    rows = ((text, "-" if math.isnan(value) else f"{value:.2f}", goal, verdict) for text, value, goal, verdict in bars)
    return _table(("ratio", "measured", "goal", "holds"), rows)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


if __name__ == "__main__":
    main()
