"""The command line of every benchmark: its sections one after the other, the cases of a section in turn."""

import argparse
import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _bars import Bar
from _measuring import Run, measure
from _picture import draw
from _results import Results, SectionResult, moves, this_machine, with_numbers
from _tables import CONSOLE, print_moves, print_section


@dataclass(frozen=True)
class Section:
    """Cases to be measured in turn.

    Attributes:
      title: what they have in common.
      cases: by name.
      bars: left out where a case of theirs is not there.
      same: groups of cases that must give the same gradient.
      gradient: of a result.
      apart: what two gradients of the same work may differ by, relative to the largest entry.
      axis, ideal: see `SectionResult`.
    """

    title: str
    cases: Mapping[str, Run]
    bars: Sequence[Bar] = ()
    same: Sequence[Sequence[str]] = ()
    gradient: Callable[[Any], Any] = lambda result: result
    apart: float = 1e-3
    axis: str = ""
    ideal: Mapping[float, float] = field(default_factory=dict)


Sections = Mapping[str, Callable[[], Section]]


def main(sections: Sections, *, quick: Sections | None = None) -> None:
    """Measure, print, and write the results and their picture.

    Args:
      sections: of the benchmark, made when their turn comes.
      quick: those of `--quick`, if there is such an option.
    """
    options = _options(sections, can_be_quick=quick is not None)
    chosen = quick if quick is not None and options.quick else sections
    name = Path(sys.argv[0]).stem
    output = options.output or Path("build/benchmarks") / f"{name}.json"
    kept = [one for one in chosen if not options.only or one in options.only]
    machine = this_machine()
    CONSOLE.print(f"{machine}")
    done = [_run(one, chosen[one], options.rounds) for one in kept]
    results = Results(name, _command_line(), options.rounds, machine, done)
    results.save(output)
    draw(results, output.with_suffix(".png"))
    CONSOLE.print(f"written: {output} and {output.with_suffix('.png')}")
    if options.baseline:
        before = Results.load(options.baseline)
        print_moves(moves(before, results), before.machine, machine)


def _options(sections: Sections, *, can_be_quick: bool) -> argparse.Namespace:
    text = sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="in each of which all cases take their turn")
    parser.add_argument("--only", nargs="+", choices=[*sections], metavar="SECTION", help=f"of {', '.join(sections)}")
    parser.add_argument("--output", type=Path, help="the JSON file; the picture is written beside it")
    parser.add_argument("--baseline", type=Path, help="an earlier JSON file: print what moved since")
    if can_be_quick:
        parser.add_argument("--quick", action="store_true", help="a few sizes alone")
    return parser.parse_args()


def _command_line() -> str:
    """What was called, without where results go."""
    kept, words = [], iter(sys.argv[1:])
    for word in words:
        if word in ("--output", "--baseline"):
            next(words, None)
        else:
            kept.append(word)
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def _run(name: str, make: Callable[[], Section], rounds: int) -> SectionResult:
    """One section; nothing of it stays afterwards."""
    section = make()
    _check_same(section)
    cases = measure(section.cases, rounds)
    ideal = {f"{size:g}": work for size, work in section.ideal.items()}
    result = SectionResult(name, section.title, section.axis, cases, ideal, with_numbers(section.bars, cases))
    print_section(result, rounds)
    del section
    jax.clear_caches()
    gc.collect()
    return result


def _check_same(section: Section) -> None:
    """Only the same work may be compared."""
    for first, *others in section.same:
        reference = section.gradient(section.cases[first]())
        for other in (one for one in others if one in section.cases):
            apart = difference(reference, section.gradient(section.cases[other]()))
            CONSOLE.print(f"gradient of {other} against {first}: {apart:.1e} of the largest entry")
            if not apart <= section.apart:
                raise SystemExit(f"{other} does other work than {first}")


def difference(reference: Any, value: Any) -> float:
    """Largest difference over largest entry, of the worst array of a tree."""
    pairs = zip(jax.tree.leaves(reference), jax.tree.leaves(value), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
