"""Everything here runs BrainScale's own gradients, which only the parity environment can."""

from pathlib import Path

import brainstate
import pytest

NEEDS_PARITY = "needs the parity environment: pip install -r requirements-parity.lock"

# What BrainScale's own gradients make the libraries below it warn of.
UPSTREAM_WARNINGS = (
    "ignore:linear_util.wrap_init is missing a DebugInfo object:DeprecationWarning",
    "ignore:jax.core.* is deprecated:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, and skip it where BrainScale cannot differentiate."""
    runs_natively = brainstate.__version__.startswith("0.3.")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.native)
            item.add_marker(pytest.mark.skipif(not runs_natively, reason=NEEDS_PARITY))
            for text in UPSTREAM_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(text))
