"""Run every benchmark, save the results as the baseline, and write docs/performance.md from them.

    python benchmarks/record.py --parity .venv-parity/bin/python

Those that take in BrainScale run a second time in the environment of requirements-parity.lock, where it computes
gradients. An earlier baseline is compared with what is measured, and then replaced.
"""

import argparse
import subprocess
import sys
from pathlib import Path

_FOLDER = Path(__file__).parent
_BASELINE = _FOLDER / "baseline"

# With BrainScale's own sections in the second environment.
SUITE = ("tutorial", "growth", "models", "sample_norms", "small_batches", "sources", "start_up")
PARITY = {"tutorial": ("whole", "traces"), "start_up": ("first",)}


def main() -> None:
    """Run what was asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--start-up-rounds", type=int, default=30, help="each starts ten processes")
    parser.add_argument("--parity", help="the Python of the environment of requirements-parity.lock")
    parser.add_argument("--only", nargs="+", choices=SUITE, default=[*SUITE])
    options = parser.parse_args()
    for name in options.only:
        rounds = options.start_up_rounds if name == "start_up" else options.rounds
        _run(sys.executable, name, name, "--rounds", f"{rounds}")
        if options.parity and name in PARITY:
            _run(options.parity, name, f"{name}-parity", "--rounds", f"{rounds}", "--only", *PARITY[name])
    subprocess.run([sys.executable, _FOLDER / "report.py"], check=True)


def _run(python: str, name: str, output: str, *options: str) -> None:
    path = _BASELINE / f"{output}.json"
    new = _BASELINE / f"{output}.new.json"
    before = ["--baseline", path] if path.exists() else []
    subprocess.run([python, _FOLDER / f"{name}.py", *options, "--output", new, *before], check=True)
    new.replace(path)
    new.with_suffix(".png").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
