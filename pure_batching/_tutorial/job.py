"""The main job: the tutorial's training once by each strategy, from the same weights."""

import brainstate
import numpy as np

import pure_batching as pb

from . import vowels
from .net import CLASSES, DT, FEATURES, Dataset, make_dataset
from .options import STRATEGIES, Options
from .placing import make_builder, make_mesh, spread
from .report import Findings, Tick, print_table, progress_bars, save_figure
from .sources import Captured, Sizes, capture, spikes
from .training import Builder, Params, Training, accuracy, first_potentials, sample_differences, sample_gradients, train


def run_job(options: Options) -> None:
    """Train, compare, print the table and write the figure.

    Raises:
      OptionError: the data, or as many devices as are asked for, cannot be had.
    """
    mesh = make_mesh(options)
    brainstate.random.seed(options.seed)
    data, tests, captured = _load(options)
    names = dict.fromkeys((*options.trained, *options.compared))
    builders = {name: make_builder(options, name, captured.learner, mesh) for name in names}
    alone = {name: STRATEGIES[name](captured.learner, 1) for name in options.compared}
    params, data = spread(mesh, captured.params, data)
    comparison = " against ".join(options.compared)
    with progress_bars(dict.fromkeys(options.trained, options.epochs + 1) | {comparison: 4}) as ticks:
        trainings = [
            train(name, builders[name], params, data, epochs=options.epochs, tick=ticks[name])
            for name in options.trained
        ]
        own = dict.fromkeys(names, trainings[0].params) | {one.strategy: one.params for one in trainings}
        compared = [
            _look(builders[name], alone[name], params, own[name], data, captured.potential, ticks[comparison])
            for name in options.compared
        ]
    (first, second), rasters = zip(*compared, strict=True)
    accuracies = tests and [_test(options, one, captured.learner, tests) for one in trainings]
    findings = Findings(trainings, sample_differences(first, second), rasters, accuracies)
    save_figure(options, findings)
    print_table(options, findings)


def _load(options: Options) -> tuple[Dataset, Dataset | None, Captured]:
    """The data, tests where there are any, and the network for it."""
    tests = None
    if options.data == "vowels":
        data, tests = vowels.load_vowels(options.time, options.batch)
        sizes = Sizes(vowels.FEATURES, options.hidden, vowels.CLASSES)
    else:
        data, sizes = make_dataset(options.time, options.batch), Sizes(FEATURES, options.hidden, CLASSES)
    with brainstate.environ.context(dt=DT):
        return data, tests, capture(options, sizes, data.inputs[0, 0])


def _test(options: Options, training: Training, learner: pb.Learner, tests: Dataset) -> float:
    """The accuracy after a training, by its own strategy; the tests run on one device, however many there are."""
    build = make_builder(options._replace(batch=len(tests.labels)), training.strategy, learner, None)
    return accuracy(build(), training.params, tests)


def _look(
    build: Builder, alone: pb.Learner, params: Params, trained: Params, data: Dataset, potential: str, tick: Tick
) -> tuple[Params, np.ndarray]:
    """Each sample's gradient before the training, and the spikes of the first sample after it."""
    gradients = sample_gradients(build(), params, data)
    tick()
    raster = spikes(first_potentials(alone, trained, data, potential))
    tick()
    return gradients, np.asarray(raster)
