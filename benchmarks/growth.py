"""How time and memory grow with the length, the samples, the neurons, the layers and the states of a neuron.

    python benchmarks/growth.py
    python benchmarks/growth.py --quick --rounds 2

The ideal line goes through the first point of a series, by the multiplications that the matrices of a size need.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

from _bars import Bar, Memory, Ratio
from _cases import ours
from _command import Section, main
from _measuring import Run
from _problem import Sizes, make_problem
from _rules import RULES, STRATEGIES
from _stacks import Stack

# What `window=None` promises.
BUDGET = 256 * 2**20

At = Callable[[int], Stack]


def of_steps(steps: int) -> Stack:
    """A length; few samples, so that the longest ends."""
    return Stack(Sizes(steps=steps, samples=16))


def of_samples(samples: int) -> Stack:
    """A batch."""
    return Stack(Sizes(samples=samples))


def of_neurons(hidden: int) -> Stack:
    """A width."""
    return Stack(Sizes(samples=16, hidden=hidden))


def of_layers(layers: int) -> Stack:
    """A depth."""
    return Stack(Sizes(samples=32), layers=layers)


def of_states(states: int) -> Stack:
    """How many states a neuron has."""
    return Stack(Sizes(samples=32), states=states)


def growing(title: str, axis: str, at: At, sizes: Sequence[int], rules: Sequence[str] = tuple(RULES)) -> Section:
    """Every rule and strategy at each size."""
    cases: dict[str, Run] = {}
    for rule in rules:
        for how, by in STRATEGIES.items():
            cases |= {f"{rule}, {how}, {axis}={size}": at(size).gradient(by, RULES[rule]) for size in sizes}
    ideal = {float(size): at(size).work / at(sizes[0]).work for size in sizes}
    bars = _per_step(sizes, rules) if axis == "T" else []
    return Section(title, cases, bars, axis=axis, ideal=ideal)


def _per_step(sizes: Sequence[int], rules: Sequence[str]) -> list[Bar]:
    """The time of a step of the longest sequence, and of one of 64 steps."""
    long, short = max(sizes), 64
    return [
        Ratio(
            case=f"{rule}, {how}, T={long}",
            against=(f"{rule}, {how}, T={short}",),
            factor=short / long,
            at_most=1.05,
            name=f"{rule}, {how}: time of a step at T={long} / at T={short}",
        )
        for rule in rules
        for how in STRATEGIES
    ]


def memory() -> Section:
    """What `window=None` compiles to for the tutorial's network and a long sequence; nothing runs."""
    cases, bars = dict[str, Run](), list[Bar]()
    for rule, algorithm in RULES.items():
        for how, by in STRATEGIES.items():
            name = f"{rule}, {how}"
            cases[name] = ours(by, algorithm, make_problem(Sizes(steps=4096))).for_memory()
            at_most = math.inf if algorithm.depends_on_window else 1.25
            bars.append(Memory(case=name, budget=BUDGET, at_most=at_most))
    return Section("T=4096, B=128, the tutorial's network, window=None, compiled only", cases, bars)


SECTIONS = {
    "T": partial(growing, "B=16, 100 -> 200 -> 10", "T", of_steps, (16, 64, 256, 1024, 4096)),
    "B": partial(growing, "T=16, 100 -> 200 -> 10", "B", of_samples, (1, 4, 16, 64, 256, 1024)),
    "hidden": partial(growing, "T=16, B=16, 100 -> hidden -> 10", "hidden", of_neurons, (64, 256, 1024, 2048)),
    "layers": partial(growing, "T=16, B=32, layers of 200", "layers", of_layers, (1, 2, 3, 4)),
    "states": partial(growing, "T=16, B=32, states of each of 200 neurons", "states", of_states, (1, 2, 3, 4, 5)),
    "memory": memory,
}
QUICK = {
    "T": partial(growing, "B=16, 100 -> 200 -> 10", "T", of_steps, (16, 64, 128)),
    "B": partial(growing, "T=16, 100 -> 200 -> 10", "B", of_samples, (1, 16)),
    "hidden": partial(growing, "T=16, B=16, 100 -> hidden -> 10", "hidden", of_neurons, (64, 256)),
    "layers": partial(growing, "T=16, B=32, layers of 200", "layers", of_layers, (1, 2)),
    "states": partial(growing, "T=16, B=32, states of each of 200 neurons", "states", of_states, (1, 2)),
    "memory": memory,
}

if __name__ == "__main__":
    main(SECTIONS, quick=QUICK)
