"""A picture of results: bars of the cases of a section, or lines where the cases differ by a size."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from _results import Results, SectionResult

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def draw(results: Results, path: Path, names: Sequence[str] = ()) -> None:
    """A picture of all sections, or of those with the given names."""
    sections = [one for one in results.sections if _is_timed(one) and (not names or one.name in names)]
    if not sections:
        return
    heights = [3.5 if one.axis else 0.8 + 0.25 * len(one.cases) for one in sections]
    figure, axes = plt.subplots(
        len(sections), 1, figsize=(9, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for section, axis in zip(sections, axes[:, 0], strict=True):
        (_lines if section.axis else _bars)(section, axis)
    figure.suptitle(str(results.machine), fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _is_timed(section: SectionResult) -> bool:
    return any(not math.isnan(one.median) for one in section.cases.values())


def _bars(section: SectionResult, axis: Axes) -> None:
    """Medians with quartiles, from the top."""
    for row, (name, one) in enumerate(section.cases.items()):
        spread = [[1e3 * (one.median - one.low)], [1e3 * (one.high - one.median)]]
        color = "tab:gray" if "hand" in name else "tab:orange" if "Brain" in name or "before" in name else "tab:blue"
        axis.barh(row, 1e3 * one.median, xerr=spread, color=color, height=0.7)
    axis.set_yticks(range(len(section.cases)), [*section.cases], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel("ms", fontsize=7)
    axis.tick_params(axis="x", labelsize=7)
    axis.set_title(section.title, fontsize=8)


def _lines(section: SectionResult, axis: Axes) -> None:
    """A line for each series, and the ideal one from its first point."""
    found = by_series(section)
    for series, points in found.items():
        if series.replace(", manual", ", vmap") in found and series.endswith(", manual"):
            continue  # the strategies cost the same, and one line would hide the other
        sizes, times = [*points], [1e3 * section.cases[name].median for name in points.values()]
        (line,) = axis.plot(sizes, times, "o-", markersize=3, linewidth=1, label=series)
        ideal = [times[0] * section.ideal[f"{size:g}"] / section.ideal[f"{sizes[0]:g}"] for size in sizes]
        axis.plot(sizes, ideal, ":", linewidth=0.8, color=line.get_color())
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(f"{section.axis}; dotted: the first point, by the work of the size", fontsize=7)
    axis.set_ylabel("ms", fontsize=7)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6)
    axis.set_title(section.title, fontsize=8)


def by_series(section: SectionResult) -> dict[str, dict[float, str]]:
    """The names of the cases by series and size."""
    found: dict[str, dict[float, str]] = {}
    for name in section.cases:
        series, _, size = name.rpartition(f", {section.axis}=")
        found.setdefault(series, {})[float(size)] = name
    return found
