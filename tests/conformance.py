"""What runs, what equals BrainScale and what is refused: `python -m tests.conformance [--write docs/conformance.md]`.

Every cell is read off what parametrizes the tests, so that the page cannot say what no test holds.
"""

import argparse
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from .bench import PLAIN, RULES
from .layers import REFUSED
from .registry import EVERY, EXACT, NOT_BY_HAND, label
from .upstream import COMPARED, DIFFERS, FAULTS, HYBRID, IN_A_SCAN, MODES, NOT_COMPARED, RAISES, REPRODUCED, Raised

PAGE = Path(__file__).parents[1] / "docs" / "conformance.md"

INTRODUCTION = """\
# What runs, and what it equals

This page is made by `python -m tests.conformance --write docs/conformance.md` from what the tests run over.
[BrainTrace](braintrace.md) is the same for its modules.
Equal numbers differ by at most 1e-10 of the largest entry in double precision, exact ones by 1e-9, and those of two
strategies by 1e-12.

| cell | means |
|---|---|
| equal | a sample's gradients, losses, outputs and hidden states are those of brainscale 0.1.0 on it alone |
| own (fault) | brainscale 0.1.0 raises for one sample, by the fault named below; ours are the loop's numbers |
| differs (fault) | brainscale 0.1.0 (BPTT: a scan over the module) has other gradients, by the fault named below |
| exact | the gradient of the whole sequence, which a scan over the module itself has too |
| as loop | brainscale 0.1.0 has no such rule, or nothing to compare with; ours are the loop's numbers |
| refused | an error says why and what to change |

A cell stands for the strategies loop, vmap and manual, which give one set of numbers; where manual refuses a model,
the cell says so. `python -m pytest --all-rules` compares the strategies in every cell; the default suite does so for
ES_D_RTRL's own rule and, at every second layer, for one of the others in turn. In the parity environment,
`python -m pytest tests/native -m native --all-rules` compares every cell that names brainscale's numbers or faults.
"""


# Rules whose gradient is that of the whole sequence, and rules that brainscale 0.1.0 does not have.
WHOLE = ("BPTT", "RTRL")
WITHOUT_COUNTERPART = ("EProp", "OTTT")


def algorithm_of(rule: str) -> str:
    """The first word of a rule's name."""
    return rule.split(maxsplit=1)[0]


def rules_of(algorithm: str) -> list[str]:
    """The rules of an algorithm."""
    return [rule for rule in RULES if algorithm_of(rule) == algorithm]


def heading(rule: str) -> str:
    """The rest of a rule's name, which is what `rule=` and `vjp=` are given."""
    words = rule.split()[1:]
    if not hasattr(RULES[rule], "rule"):
        return "over the whole sequence" if algorithm_of(rule) in WHOLE else "published"
    return ", ".join(words if "published" in words else ["brainscale", *words])


def numbers(name: str, rule: str) -> str:
    """What a model's numbers are under a rule, in every strategy that runs it."""
    algorithm = algorithm_of(rule)
    if algorithm in WHOLE:
        return "exact" if name in IN_A_SCAN else _differing(name, "ES_D_RTRL")
    if algorithm in WITHOUT_COUNTERPART:
        return "as loop"
    if "published" in rule:
        return "exact" if algorithm == "D_RTRL" and name in EXACT else "as loop"
    if algorithm == "Hybrid":
        return _raising(name, HYBRID)
    if name in RAISES[algorithm]:
        return _raising(name, RAISES[algorithm])
    return "equal" if name in COMPARED[algorithm] else _differing(name, algorithm)


def _raising(name: str, raises: Mapping[str, Raised]) -> str:
    return f"own (fault {raises[name].fault})" if name in raises else "as loop"


def _differing(name: str, algorithm: str) -> str:
    return f"differs (fault {DIFFERS[algorithm][name]})" if name in DIFFERS[algorithm] else "as loop"


def cell(name: str, rule: str) -> str:
    """The numbers, and which strategies refuse the model."""
    refusing = [strategy for strategy in PLAIN if strategy not in EVERY[name].runs_by(RULES[rule])]
    return "; ".join([numbers(name, rule), *(f"{strategy}: refused" for strategy in refusing)])


def rows(algorithm: str) -> Iterator[list[str]]:
    """Every model and layer, under each rule of an algorithm."""
    for name in EVERY:
        yield [label(name), *(cell(name, rule) for rule in rules_of(algorithm))]


def modes() -> Iterator[list[str]]:
    """What BrainScale's own batched modes do, against our strategies of the same name."""
    for rule, name in dict.fromkeys((rule, name) for rule, _, name in MODES):
        yield [label(name), rule, *(_mode(rule, mode, name) for mode in ("vmap", "manual"))]


def _mode(rule: str, mode: str, name: str) -> str:
    if (rule, mode, name) not in MODES:
        return ""
    found = MODES[rule, mode, name]
    if isinstance(found, Raised):
        return f"raises (fault {found.fault})"
    return "equal" if found is None else f"differs (fault {found})"


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def faults() -> str:
    """The list of faults."""
    notes = dict.fromkeys(REPRODUCED, ' `rule="brainscale"` has it too.')
    return "\n".join(f"- **{number}.** {text}{notes.get(number, '')}" for number, text in FAULTS.items())


def page() -> str:
    """The whole page."""
    algorithms = dict.fromkeys(map(algorithm_of, RULES))
    parts = (
        INTRODUCTION,
        *itertools.chain.from_iterable(
            (f"## {algorithm}\n", table(["layer", *map(heading, rules_of(algorithm))], rows(algorithm)))
            for algorithm in algorithms
        ),
        "## What manual refuses\n",
        table(["layer", "why"], ([label(name), why] for name, (_, why) in NOT_BY_HAND.items())),
        "## What there is nothing to compare with\n",
        table(["layer", "why"], ([label(name), why] for name, why in NOT_COMPARED.items())),
        "## What cannot be captured\n",
        "Each is refused with an error that says the same.\n",
        table(["layer", "why, and what to change"], ([name, entry.reason] for name, entry in REFUSED.items())),
        "## BrainScale's own modes, against the strategies of the same name\n",
        "An empty cell is not compared.\n",
        table(["layer", "algorithm", "BrainScale's vmap", "BrainScale's manual"], modes()),
        "## Faults of brainscale 0.1.0\n",
        faults(),
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
