"""What every test runs under: which cases run, a seed that a failure shows, and memory that is given back."""

from collections.abc import Generator
from typing import Any

import jax
import pytest

from .selection import Selection


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="what weights, inputs and targets are drawn from")
    parser.addoption("--all", action="store_true", help="run every case of every test, not representatives only")
    parser.addoption("--rest", action="store_true", help="run the cases that are left out by default, and no others")
    parser.addoption("--share", default="0/1", help="of the cases that run: 1/3 is the second of three shares")
    parser.addoption("--all-rules", action="store_true", help="run every layer with every algorithm, not one in turn")


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"seed: {config.getoption('--seed')}", f"cases: {_choice(config)}"]


def _choice(config: pytest.Config) -> str:
    if config.getoption("--rest"):
        return "those that are left out by default"
    if _runs_all(config):
        return "all"
    return "representatives of the models, layers and parameters; --all runs all"


def _runs_all(config: pytest.Config) -> bool:
    """Whether no case is left out: by an option, or because a test is named by its id."""
    return config.getoption("--all") or config.getoption("--all-rules") or any("::" in arg for arg in config.args)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    is_rest = config.getoption("--rest")
    runs_all = _runs_all(config) and not is_rest
    chosen = _by_default(items)
    running = items if runs_all else [item for item in items if (item in chosen) != is_rest]
    number, shares = map(int, config.getoption("--share").split("/"))
    taken = set(running[number::shares])
    left_out = [item for item in items if item not in taken]
    items[:] = [item for item in items if item in taken]
    config.hook.pytest_deselected(items=left_out)
    if not is_rest and not runs_all:
        config.stash[LEFT_OUT] = len(left_out)


def _by_default(items: list[pytest.Item]) -> set[pytest.Item]:
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        functions.setdefault(item.nodeid.split("[")[0], []).append(item)
    selection = Selection()
    return {cases[place] for cases in functions.values() for place in selection.representatives([*map(_params, cases)])}


def _params(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


LEFT_OUT = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the number of cases left out on to the process that prints, where this one is a worker."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take it; every worker collects the same tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} cases were left out; --all runs all, --rest runs these")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.failed:
        report.sections.append(("replay", f"pytest '{item.nodeid}' --seed={item.config.getoption('--seed')}"))
    return report


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--seed")


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_of_one_module() -> Generator[None, Any, Any]:
    """Frees them: all of a run are more than a process may map."""
    yield
    jax.clear_caches()
