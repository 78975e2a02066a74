"""Which cases of a parametrised test run by default.

The whole suite compiles thousands of programs. By default a test function runs over a few of the rules, a few of the
smaller models and layers of `BY_DEFAULT`, and as few cases as show every value of every other parameter once;
`pytest --all` runs every case, and `pytest --rest` those that the default leaves out.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .bench import NESTED, RULES
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

# How many models, and how many rules, one test function runs over by default; the next function takes those that were
# used least so far.
NAMES_OF_ONE_TEST = 2

Case = Mapping[str, Any]
Value = tuple[str, str]


class Selection:
    """Chooses the cases of one test function after the other, so that together they show every model and rule."""

    def __init__(self) -> None:
        self._shown: Counter[Value] = Counter()

    def representatives(self, cases: Sequence[Case]) -> set[int]:
        """The places of the cases of one test function that run by default: at least one.

        Args:
          cases: the value of each parameter, by its name.
        """
        candidates = [place for place, case in enumerate(cases) if not any(map(_is_left_out, case.values()))]
        taken = cover([*map(_values, cases)], candidates, self._shown) if candidates else {0}
        self._shown.update(value for place in taken for value in _values(cases[place]))
        return taken


def cover(values: Sequence[Mapping[Value, bool]], places: Iterable[int], shown: Counter[Value]) -> set[int]:
    """The places of as few cases as show every value of every parameter, but for models and rules above the limit.

    Each time the case with the most new values is taken; of equal ones that whose values were used least, so that a
    product of models and strategies shows every model with one strategy, and not every model with the first strategy.

    Args:
      values: of each case, and whether a value is the name of a model or a rule.
      places: of the cases to choose from.
      shown: how often each value was taken before, by other test functions.
    """
    left = {place: values[place] for place in places}
    used: Counter[Value] = Counter()
    names: Counter[str] = Counter()
    taken: set[int] = set()
    while left:
        news = {
            place: sum(
                used[value] == 0 and not (is_name and names[value[0]] >= NAMES_OF_ONE_TEST)
                for value, is_name in case.items()
            )
            for place, case in left.items()
        }
        best = min(left, key=lambda place: (-news[place], *_uses(left[place], used, shown), place))
        if news[best] == 0 and taken:
            break
        taken.add(best)
        names.update(value[0] for value, is_name in left[best].items() if is_name and not used[value])
        used.update(left.pop(best).keys())
    return taken


def _uses(case: Iterable[Value], used: Counter[Value], shown: Counter[Value]) -> tuple[int, int]:
    return sum(used[value] for value in case), sum(shown[value] for value in case)


def _values(case: Case) -> dict[Value, bool]:
    return {(name, repr(value)): _is_model(value) or _is_rule(value) for name, value in case.items()}


def _is_model(value: object) -> bool:
    return isinstance(value, str) and (value in EVERY or value.startswith("braintrace."))


def _is_rule(value: object) -> bool:
    return isinstance(value, str) and value in RULES


def _is_left_out(value: object) -> bool:
    return isinstance(value, str) and (value in NESTED or (value in EVERY and value not in BY_DEFAULT))
