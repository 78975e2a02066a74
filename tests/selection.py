"""Which cases of a parametrised test run by default.

The whole suite compiles thousands of programs. By default a test function runs over the smaller models and layers of
`BY_DEFAULT`, and over as few cases as show every value of every parameter once; `pytest --all` runs every case, and
`pytest --rest` those that the default leaves out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .registry import EVERY

# Every kind of weight, of hidden state and of batching, and every reason why manual refuses a module.
BY_DEFAULT = frozenset(
    (
        *("tutorial", "LSTMCell", "LRUCell", "MinimalRNNCell", "lif", "random_start", "conv_rates", "lora", "masked"),
        *("element_wise", "trees", "used_twice", "group_state", "readouts", "delayed", "counting", "noisy"),
        *("normalized", "Expon_LIF", "csr", "own_operation", "conv1d", "model `Jitted`"),
        *("brainscale.nn.BatchNorm2d (fit)", "brainscale.nn.Conv3d", "brainscale.nn.SparseLinear"),
        *("brainpy.state.LIFRef", "brainpy.state.GifRef", "brainpy.state.PoissonEncoder"),
        *("brainpy.state.CurrentProj (delay)", "brainstate.nn.OutputDelayAt"),
    )
)

Case = Mapping[str, Any]


def representatives(cases: Sequence[Case]) -> set[int]:
    """The places of the cases of one test function that run by default: at least one.

    Args:
      cases: the value of each parameter, by its name.
    """
    of_registry = [place for place, case in enumerate(cases) if not _names_left_out(case)]
    return cover([cases[place] for place in of_registry], of_registry) if of_registry else {0}


def _names_left_out(case: Case) -> bool:
    return any(isinstance(value, str) and value in EVERY and value not in BY_DEFAULT for value in case.values())


def cover(cases: Sequence[Case], places: Iterable[int]) -> set[int]:
    """The places of as few cases as show every value of every parameter.

    Each time the case with the most new values is taken; of equal ones that whose values were used least, so that a
    product of models and strategies shows every model with one strategy, and not every model with the first strategy.
    """
    left = {
        place: {(name, repr(value)) for name, value in case.items()} for place, case in zip(places, cases, strict=True)
    }
    used: Counter[tuple[str, str]] = Counter()
    taken: set[int] = set()
    while left:
        news = {place: sum(used[value] == 0 for value in values) for place, values in left.items()}
        best = min(left, key=lambda place: (-news[place], sum(used[value] for value in left[place]), place))
        if news[best] == 0 and taken:
            break
        taken.add(best)
        used.update(left.pop(best))
    return taken
