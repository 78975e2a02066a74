"""Our gradients beside BrainTrace's own: `python -m tests.braintrace_conformance [--write docs/braintrace.md]`.

Every cell is measured when the page is made. Where one differs, `tests/test_braintrace.py` holds that it does, and why.
"""

import argparse
import sys
from pathlib import Path

import jax

from . import braintrace_runs as native
from .braintrace_models import MODELS, braintrace
from .conformance import table

PAGE = Path(__file__).parents[1] / "docs" / "braintrace.md"

INTRODUCTION = """\
# BrainTrace

`pb.capture` takes modules whose weights go through BrainTrace's operations. This page is made by
`python -m tests.braintrace_conformance --write docs/braintrace.md`, with braintrace {version} and jax {jax}, in double
precision. It compares `rule="published"` with the loop that BrainTrace documents: `learner(x)` at each step, and
`brainstate.transform.grad` of the step's loss.

A module runs in BrainTrace in three ways: with one sample after the other, with `batch_size=`, and with `vmap=True`
besides. The gradient of each sample is compared with ours of that sample; in a batch, the loss of one sample at a time
counts.

| cell | means |
|---|---|
| equal | no entry differs by more than 1e-10 of the largest; in all these cells by {largest:.0e} at most |
| but X (n) | the gradient of X is another, by reason n below |
| raises (n) | BrainTrace raises an error, by reason n below |
| - | the module's own code, or its primitive's, takes one sample |

With braintrace 0.2.6 the arrays of reason 2 differ too: those of `readout`, and `C_re`, `C_im` and `D` of LRUCell. The
tests run with 0.2.6 by default (`requirements.lock`), since 0.2.8 needs Python 3.12.

A weight has a trace here wherever BrainTrace's compiler relates it to a hidden state, and reaches the same groups of
hidden states; `tests/test_braintrace.py` compares them for every row. No row has a product whose elements are mixed on
their way, by a norm say: BrainTrace has a trace of it that takes each element for one that stays in its place; here the
weight gets the gradient of the step.
"""


def cell(name: str, algorithm: str, mode: str) -> tuple[str, float]:
    """What is measured for a module, and the largest difference of what is equal."""
    if not native.runs(name, mode):
        return "-", 0.0
    try:
        found = native.differences(name, algorithm, mode)
    except ValueError:
        return f"raises ({native.raises(name, algorithm, mode) or 'unknown'})", 0.0
    others = [leaf for leaf, distance in found.items() if not distance < native.EQUAL]
    largest = max((distance for leaf, distance in found.items() if leaf not in others), default=0.0)
    parts: dict[int, list[str]] = {}
    for leaf in others:
        parts.setdefault(native.reason(name, leaf), []).append(leaf)
    differing = [f"{', '.join(leaves)} ({why or 'unknown'})" for why, leaves in parts.items()]
    return "; but ".join(["equal"] * (len(others) < len(found)) + differing), largest


def rows(algorithm: str) -> tuple[list[list[str]], float]:
    """A row for each module, and the largest difference of what is equal."""
    measured = [[cell(name, algorithm, mode) for mode in native.MODES] for name in MODELS]
    body = [[name, *(text for text, _ in cells)] for name, cells in zip(MODELS, measured, strict=True)]
    return body, max(distance for cells in measured for _, distance in cells)


def page() -> str:
    """The whole page."""
    with native.kernels():
        found = {algorithm: rows(algorithm) for algorithm in native.ALGORITHMS}
    largest = max(distance for _, distance in found.values())
    parts = [INTRODUCTION.format(version=braintrace.__version__, jax=jax.__version__, largest=largest)]
    for algorithm, (body, _) in found.items():
        parts += [f"## {algorithm}\n", table(["module", *native.MODES], body)]
    parts += ["## Reasons\n", "\n".join(f"- **{number}.** {text}" for number, text in native.REASONS.items())]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="where to write the page instead")
    target = parser.parse_args().write
    text = page()
    if target is None:
        sys.stdout.write(text)
        return
    target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
