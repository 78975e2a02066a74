"""Classes of BrainScale, without its import: that takes seconds, and whoever hands over an instance has made it."""

import sys
from typing import Any


def is_of_brainscale(value: Any, *names: str) -> bool:
    """Whether a value is an instance of one of these classes of BrainScale."""
    brainscale = sys.modules.get("brainscale")
    return brainscale is not None and isinstance(value, tuple(getattr(brainscale, name) for name in names))
