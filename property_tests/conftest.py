"""Profiles of Hypothesis, and what the suite compiled.

`ci` draws the same examples each time; `nightly` draws ten times as many, other ones each time, and keeps those that
failed. `HYPOTHESIS_PROFILE=nightly` chooses it.
"""

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

COMPILED: list[float] = []

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=3,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)
settings.register_profile(
    "nightly",
    settings.get_profile("ci"),
    derandomize=False,
    max_examples=30,
    print_blob=True,
    database=DirectoryBasedExampleDatabase(".hypothesis/examples"),
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--turn", type=int, help="of what costs most, run the part whose turn it is: 0, 1, 2, ...")


def pytest_configure() -> None:
    jax.monitoring.register_event_duration_secs_listener(_listen)


def _listen(event: str, duration: float, **_: Any) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(duration)


GROUPS: list[Any] = []


@pytest.fixture(autouse=True)
def _compiled_programs_of_one_group(request: pytest.FixtureRequest) -> None:
    """Frees those of the group before: all of a run are more than a process may map."""
    group = request.node.get_closest_marker("xdist_group")
    if GROUPS[-1:] != [group]:
        GROUPS.append(group)
        jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _count_of_programs(request: pytest.FixtureRequest) -> Generator[None, Any, Any]:
    """Hands what this process compiled on to the one that prints."""
    yield
    output = getattr(request.config, "workeroutput", None)
    if output is not None:
        output["compiled"] = (len(COMPILED), sum(COMPILED))


TOTALS: list[tuple[int, float]] = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    TOTALS.append(tuple(getattr(node, "workeroutput", {}).get("compiled", (0, 0.0))))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    totals = TOTALS or [(len(COMPILED), sum(COMPILED))]
    programs, seconds = (sum(column) for column in zip(*totals, strict=True))
    terminalreporter.write_line(f"compiled {programs} programs in {seconds:.0f} s")
    costs = costs_of_laws(terminalreporter.stats.get("passed", []))
    if costs:
        listed = ", ".join(f"{law} {cost:.0f} s" for law, cost in costs)
        terminalreporter.write_line(f"what each law took: {listed}")


def costs_of_laws(reports: list[Any]) -> list[tuple[str, float]]:
    """What each law took, the dearest first."""
    costs: Counter[str] = Counter()
    for report in reports:
        if report.when == "call" and "::test_holds[" in report.nodeid:
            costs[report.nodeid.split("::test_holds[")[1].split("-")[0]] += report.duration
    return costs.most_common()
