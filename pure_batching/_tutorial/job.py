"""The main job: the tutorial's training once by each strategy, from the same weights."""

from functools import partial

import brainstate
import numpy as np

import pure_batching as pb

from .net import DT, Dataset, make_dataset, make_net
from .options import STRATEGIES, Options
from .report import Tick, print_table, progress_bars, save_figure
from .training import Builder, Params, sample_differences, sample_gradients, train


def run_job(options: Options) -> None:
    """Train, compare, print the table and write the figure."""
    brainstate.random.seed(options.seed)
    data = make_dataset(options.time, options.batch)
    with brainstate.environ.context(dt=DT):
        net = make_net(options.hidden)
        learner, params = pb.capture(net, data.inputs[0, 0], algorithm=options.build_algorithm())
    builders = {name: partial(build, learner, options.batch) for name, build in STRATEGIES.items()}
    comparison = " against ".join(options.compared)
    with progress_bars(dict.fromkeys(options.trained, options.epochs + 1) | {comparison: 2}) as ticks:
        trainings = [
            train(name, builders[name], params, data, epochs=options.epochs, tick=ticks[name])
            for name in options.trained
        ]
        differences = _compare([builders[name] for name in options.compared], params, data, ticks[comparison])
    save_figure(options, trainings, differences)
    print_table(options, trainings, differences)


def _compare(builders: list[Builder], params: Params, data: Dataset, tick: Tick) -> np.ndarray:
    gradients = []
    for build in builders:
        gradients.append(sample_gradients(build(), params, data))
        tick()
    return sample_differences(*gradients)
