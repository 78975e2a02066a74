"""What runs, what equals BrainScale and what is refused: `python -m tests.conformance [--write docs/conformance.md]`.

Every cell is read off what parametrizes the tests, so that the page cannot say what no test holds.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .bench import ONLINE_RULES, STRATEGIES
from .layers import EXACT, LAYERS, NOT_BY_HAND, NOT_COMPARED, OPERATIONS, REFUSED, SHOWN
from .models import MODELS, Model
from .native import test_layers, test_modes, test_multi_step, test_parity

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"

# What is wrong in brainscale 0.1.0; the numbers are those of the comments in tests/native.
FAULTS: Mapping[int, str] = {
    1: "D_RTRL divides what it adds to a trace, and the trace, by the largest entry where that exceeds 1. In manual "
    "mode that is the largest entry of the whole batch, so that one sample changes the gradient of another.",
    2: "D_RTRL in manual mode does not run with element-wise weights or with convolutions.",
    3: "D_RTRL's `yw_to_w` of LoRA and of convolutions is wrong, and it is missing where a weight has a `weight_fn` "
    "(masked and signed weights).",
    4: "Sparse products cannot be mapped, their derivative with respect to the stored numbers is wrong, and D_RTRL "
    "does not run with them.",
    5: "The hybrid algorithm raises (`jax.tree_leaves`), and takes every weight for one number.",
    6: "Where several hidden states feed each other within a step, the path counts twice; once with "
    '`rule="published"`.',
    7: "ES_D_RTRL corrects its bias by `1 - (1 - decay)**(n + 1)`; by that of an exponential average with "
    '`rule="published"`.',
    9: "`MatMulOp` applies `weight_fn` twice; here it is applied once.",
    11: "Its compiler refuses a hidden state without a path from one step to the next, hidden states that come out of "
    "a jitted call (`jnp.where` is one), and two hidden states in one equation. The constructor of `URLSTMCell` fails. "
    "`GroupNorm` does not take one sample without an axis in front.",
    12: "Inputs of whole numbers or truth values keep a trace of whole numbers.",
    15: "D_RTRL differentiates the function of an element-wise weight at the trace, not at the weight.",
    16: "D_RTRL's `yw_to_w` of a scale that is used at several places (batch normalisation of images) is wrong.",
}

# The faults behind what the tests of parity name without a number.
_FAULT_OF: Mapping[str, int] = {"ValinaRNNCell": 11, "masked": 3, "signed": 3}
_FAULT_OF_WRONG: Mapping[str, int] = {"element_wise": 15}
_FAULT_OF_MODE: Mapping[str, int] = {"ValinaRNNCell": 11, "LRUCell": 2, "conv_rates": 2}


@dataclasses.dataclass(frozen=True)
class Row:
    """What becomes of one model under one algorithm, by strategy; a strategy that no test runs is left out."""

    layer: str
    algorithm: str
    rule: str
    cells: Mapping[str, str]

    def columns(self) -> list[str]:
        """As they stand in the table."""
        return [self.layer, self.algorithm, self.rule, *(self.cells.get(name, "") for name in STRATEGIES)]


def rows() -> Iterator[Row]:
    """Every row, by algorithm."""
    for name in MODELS:
        yield Row(label(name), "ES_D_RTRL", "brainscale", {s: _input_output(name, s) for s in STRATEGIES})
    for name in LAYERS:
        yield Row(name, "ES_D_RTRL", "brainscale", {s: _layer(name, s) for s in STRATEGIES})
    for name in test_parity.NATIVE:
        yield Row(label(name), "D_RTRL", "brainscale", {s: _parameter(name, s) for s in STRATEGIES})
    for name in OPERATIONS:
        yield Row(name, "D_RTRL", "brainscale", {"vmap": _operation(name)})
    for name in EXACT:
        yield Row(name, "D_RTRL", "published", {"manual": "exact"})
    yield from _other_rules()


def _other_rules() -> Iterator[Row]:
    for rule in list(ONLINE_RULES)[1:]:
        algorithm, _, kind = rule.partition(" ")
        yield Row(label("tutorial"), algorithm, kind or "brainscale", {"vmap": "as Python", "manual": "as Python"})
    for rule in test_multi_step.RULES:
        for name in test_multi_step.MODELS:
            yield Row(label(name), f'{rule}(vjp="multi-step")', "brainscale", {"vmap": "equal"})


def label(name: str) -> str:
    """The layers that a model shows, or its name in tests/models.py."""
    return ", ".join(SHOWN[name]) if name in SHOWN else f"model `{name}`"


def _refusal(model: Model, strategy: str) -> str | None:
    return None if strategy in model.strategies else f"refused: {NOT_BY_HAND[model.name][1]}"


def _input_output(name: str, strategy: str) -> str:
    if refusal := _refusal(MODELS[name], strategy):
        return refusal
    if name in test_parity.CANNOT:
        return f"own: fault {_FAULT_OF[name]}"
    return "equal" if (name, strategy) in test_parity.NATIVE_RUNS else f"as loop: {NOT_COMPARED[name]}"


def _layer(name: str, strategy: str) -> str:
    if refusal := _refusal(LAYERS[name], strategy):
        return refusal
    if name in test_layers.CANNOT:
        return "own: fault 11"
    if name in test_layers.WRONG:
        return f"differs: {_number(test_layers.WRONG[name])}"
    return "equal" if name in test_layers.NATIVE else f"as loop: {NOT_COMPARED[name]}"


def _parameter(name: str, strategy: str) -> str:
    if refusal := _refusal(MODELS[name], strategy):
        return refusal
    if (name, strategy) in test_parity.D_RUNS:
        return "equal"
    if strategy != "loop":
        return ""
    if name in test_parity.CANNOT_D_RTRL:
        return f"own: fault {_FAULT_OF[name]}"
    is_known = name in _FAULT_OF_WRONG
    return f"differs: {f'fault {_FAULT_OF_WRONG[name]}' if is_known else _number(test_parity.WRONG_D_RTRL[name])}"


def _operation(name: str) -> str:
    if name in test_layers.CANNOT_D_RTRL:
        return "own: fault 4"
    is_wrong = name in test_layers.WRONG_D_RTRL
    return f"differs: {_number(test_layers.WRONG_D_RTRL[name])}" if is_wrong else "equal"


def _number(text: str) -> str:
    """The fault that a text begins with."""
    (found,) = re.findall(r"^fault \d+", text)
    return found


def modes() -> Iterator[list[str]]:
    """What BrainScale's own batched modes do, against our strategies of the same name."""
    for name in dict.fromkeys(name for name, _ in test_modes.RUNS):
        cells = ["equal" if (name, mode) in test_modes.RUNS else "" for mode in test_modes.BATCHED]
        yield [label(name), "ES_D_RTRL", *cells]
    for name in test_modes.CANNOT:
        yield [label(name), "ES_D_RTRL", *(f"raises: fault {_FAULT_OF_MODE[name]}" for _ in test_modes.BATCHED)]
    for name in test_modes.MATRICES:
        yield [label(name), "D_RTRL", *({"vmap": "equal", "manual": "differs: fault 1"}[m] for m in test_modes.BATCHED)]
    for name in test_modes.D_CANNOT_MANUAL:
        cells = {"manual": f"raises: fault {_FAULT_OF_MODE[name]}"}
        yield [label(name), "D_RTRL", *(cells.get(mode, "") for mode in test_modes.BATCHED)]


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


INTRODUCTION = """\
# What runs, and what it equals

This page is made by `python -m tests.conformance --write docs/conformance.md` from what the tests run over.
Equal numbers differ by at most 1e-10 of the largest entry in double precision, exact ones by 1e-9, and those of two
strategies by 1e-12.

| cell | means |
|---|---|
| equal | a sample's gradients, losses, outputs and hidden states are those of brainscale 0.1.0 on it alone |
| own | brainscale 0.1.0 raises for one sample, by the fault that is named below; ours is the number of the loop |
| differs | brainscale 0.1.0 has other gradients, by the fault that is named below; losses and outputs are equal |
| as loop | there is nothing to compare with; every strategy gives the numbers of the loop |
| as Python | the numbers of plain Python over samples and steps |
| exact | the gradient of the whole sequence, by backpropagation through time: one layer without recurrent weights |
| refused | an error says why and what to change |
| | not compared with brainscale 0.1.0 here |
"""


def page() -> str:
    """The whole page."""
    faults = "\n".join(f"- **{number}.** {text}" for number, text in FAULTS.items())
    refused = ([name, entry.reason] for name, entry in REFUSED.items())
    parts = (
        INTRODUCTION,
        "## Layers, algorithms, rules and strategies\n",
        table(["layer", "algorithm", "rule", *STRATEGIES], (row.columns() for row in rows())),
        "## What cannot be captured\n",
        "Each is refused with an error that says the same.\n",
        table(["layer", "why, and what to change"], refused),
        "## BrainScale's own modes, against the strategies of the same name\n",
        table(["layer", "algorithm", *(f"BrainScale's {mode}" for mode in test_modes.BATCHED)], modes()),
        "## Faults of brainscale 0.1.0\n",
        faults,
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="where to write the page instead")
    target = parser.parse_args().write
    if target is None:
        sys.stdout.write(page())
        return
    target.parent.mkdir(exist_ok=True)
    target.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
