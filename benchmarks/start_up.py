"""Start-up, each time in a fresh process: the import, and the time to the first gradient.

    python benchmarks/start_up.py
    python benchmarks/start_up.py --rounds 2 --only import

A first gradient is that of the tutorial's network (T=16, B=128): capture, tracing and compiling; imports, data and
weights excluded. A second one is that of another strategy or batch size in the same process. BrainScale takes part in
the environment of requirements-parity.lock, BrainTrace where it is installed. A round starts a process for each case.
"""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from _bars import Bar, Overhead, ratio
from _command import Section, main
from _first import FIRSTS, SECONDS
from _measuring import Run

IMPORTS = {
    "jax and brainstate": "import jax, brainstate",
    "jax, brainstate and brainscale": "import jax, brainstate, brainscale",
    "jax, brainstate and pure_batching": "import jax, brainstate, pure_batching",
}


def import_seconds(code: str) -> float:
    """The time of an import in a process of its own."""
    timer = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
    return float(_last_line("-c", timer))


def first_seconds(name: str, part: str = "total") -> float:
    """The time to a first gradient in a process of its own, or a part of it."""
    return json.loads(_last_line(str(Path(__file__).with_name("_first.py")), name))[part]


def _last_line(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def imports() -> Section:
    """Each package on top of those that it stands on."""
    cases = {name: Run(None, seconds=partial(import_seconds, code)) for name, code in IMPORTS.items()}
    base, others, own = IMPORTS
    bars: list[Bar] = [Overhead(case=own, against=base, at_most=1e5), Overhead(case=own, against=others)]
    return Section("import", cases, bars)


def firsts() -> Section:
    """The first gradient."""
    cases = {name: Run(None, seconds=partial(first_seconds, name)) for name in FIRSTS}
    pairs = [
        *((f"ES_D_RTRL, {how}", f"ES_D_RTRL, {how}") for how in ("manual", "vmap")),
        *((f"D_RTRL default, {how}", f"D_RTRL, {how}") for how in ("manual", "vmap")),
        ("D_RTRL published, manual", "D_RTRL, manual"),
    ]
    packages = ("BrainScale", "BrainTrace")
    bars = [ratio(own, f"{package} {theirs}", at_most=0.8) for package in packages for own, theirs in pairs]
    return Section("first gradient of the tutorial's network", cases, bars)


def seconds() -> Section:
    """The second gradient in a process: in all, and the part that is XLA's compiler."""
    first = "ES_D_RTRL, manual"
    cases = {first: Run(None, seconds=partial(first_seconds, first))}
    bars: list[Bar] = []
    for name in SECONDS:
        compiling = f"{name}, compiling alone"
        cases[name] = Run(None, seconds=partial(first_seconds, name))
        cases[compiling] = Run(None, seconds=partial(first_seconds, name, "compiling"))
        bars += [ratio(name, first), ratio(name, compiling)]
    return Section("a second strategy or size, ES_D_RTRL", cases, bars)


SECTIONS = {"import": imports, "first": firsts, "second": seconds}

if __name__ == "__main__":
    main(SECTIONS)
