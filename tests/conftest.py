"""What every test runs under: a seed that a failure shows, and memory that is given back."""

from collections.abc import Generator
from typing import Any

import jax
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="what weights, inputs and targets are drawn from")
    parser.addoption("--all-rules", action="store_true", help="run every layer with every algorithm, not one in turn")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {config.getoption('--seed')}"


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
