"""What the main job shows: a progress bar, a table, a figure."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from .options import Options
from .training import Training

Tick = Callable[[], None]


class Findings(NamedTuple):
    """What there is to show.

    Attributes:
      trainings: one for each strategy that was trained with.
      differences: `[B]`, how far the gradients of two strategies lie apart.
      rasters: `[steps, neurons]` of each of the two, whether a neuron fired: the first sample, after the training.
      accuracies: after each training, the share of the test sequences that are classified rightly; None without tests.
    """

    trainings: Sequence[Training]
    differences: np.ndarray
    rasters: Sequence[np.ndarray]
    accuracies: Sequence[float] | None = None


@contextlib.contextmanager
def progress_bars(totals: dict[str, int]) -> Iterator[dict[str, Tick]]:
    """A bar on stderr for each name; each tick moves its bar on by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {name: progress.add_task(name, total=total) for name, total in totals.items()}

        def ticker(name: str) -> Tick:
            return lambda: progress.advance(tasks[name])

        yield {name: ticker(name) for name in tasks}


def print_table(options: Options, findings: Findings) -> None:
    """The loss of each epoch, accuracy, speed and compile time, one column for each strategy."""
    trainings, differences = findings.trainings, findings.differences
    table = Table(title=options.title, caption=f"difference: {_pair(options)} / largest entry")
    table.add_column("epoch")
    for training in trainings:
        table.add_column(training.strategy, justify="right")
    for epoch, losses in enumerate(zip(*(training.losses for training in trainings), strict=True), start=1):
        table.add_row(f"{epoch}", *(f"{loss:.4f}" for loss in losses), end_section=epoch == options.epochs)
    if findings.accuracies is not None:
        table.add_row("test accuracy after the last epoch", *(f"{share:.4f}" for share in findings.accuracies))
    table.add_row("largest per-sample gradient difference", *(f"{differences.max():.1e}" for _ in trainings))
    table.add_row("samples per second", *(f"{training.samples_per_second:,.0f}" for training in trainings))
    table.add_row("compile time, s", *(f"{training.compile_seconds:.2f}" for training in trainings))
    console = Console()
    console.print(table)
    console.print(f"figure: {options.output}", markup=False)


def save_figure(options: Options, findings: Findings) -> None:
    """Loss curves and the difference of each sample's gradients, beside the spikes of one sample by two strategies."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplot_mosaic([["losses", "first"], ["differences", "second"]])
    _plot_losses(panels["losses"], findings.trainings)
    _plot_differences(panels["differences"], options, findings.differences)
    for name, place, raster in zip(options.compared, ("first", "second"), findings.rasters, strict=True):
        _plot_raster(panels[place], name, raster)
    apart = int((findings.rasters[0] != findings.rasters[1]).sum())
    panels["second"].set_xlabel(f"step of sample 0, after the training; {apart} spikes differ between the two")
    figure.suptitle(options.title)
    figure.savefig(options.output, dpi=150)


def _plot_losses(axes: Axes, trainings: Sequence[Training]) -> None:
    for training, style in zip(trainings, ("o-", "x--"), strict=False):
        axes.plot(range(1, len(training.losses) + 1), training.losses, style, label=training.strategy)
    axes.set(xlabel="epoch", ylabel="loss, mean over time and samples")
    axes.legend()


def _plot_differences(axes: Axes, options: Options, differences: np.ndarray) -> None:
    rounding = float(np.finfo(differences.dtype).eps)
    top = 1.2 * max(rounding, float(differences.max()))
    axes.plot(range(len(differences)), differences, ".")
    axes.axhline(rounding, color="grey", linestyle=":", label=f"rounding of {differences.dtype}")
    axes.set(xlabel="sample", ylabel="largest difference / largest entry", ylim=(-top / 20, top))
    axes.set_title(f"each sample's gradient, {_pair(options)}")
    axes.legend()


def _plot_raster(axes: Axes, strategy: str, raster: np.ndarray) -> None:
    steps, neurons = raster.shape
    extent = (0.5, steps + 0.5, -0.5, neurons - 0.5)
    axes.imshow(raster.T, cmap="Greys", aspect="auto", interpolation="none", origin="lower", extent=extent)
    axes.set(ylabel="neuron", title=f"spikes by {strategy}: {raster.sum()}")


def _pair(options: Options) -> str:
    return " against ".join(options.compared)
