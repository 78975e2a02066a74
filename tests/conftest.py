"""What every test runs under: double precision, warnings as errors, a seed that a failure shows."""

from collections.abc import Generator
from typing import Any

import jax
import pytest

# What the libraries below us warn of; everything else is an error. message:category:module
UPSTREAM_WARNINGS = (
    "(?s).*does not found the associated hidden states:UserWarning",
    "(?s).*Our online learning is only applied to the case:UserWarning",
    "core.Jaxpr is missing a DebugInfo object:DeprecationWarning",
    "Accessing .* from 'brainstate.functional' is deprecated:DeprecationWarning",
    "jax.core.* is deprecated:DeprecationWarning:brainscale",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "error")
    for text in UPSTREAM_WARNINGS:
        config.addinivalue_line("filterwarnings", f"ignore:{text}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="what weights, inputs and targets are drawn from")


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
