"""The only numbers by which two results may differ: relative to the largest entry of a leaf, by what is compared."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

_COMPLEX = {"complex64": 2e-6, "complex128": 1e-12}

_TABLE: Mapping[str, Mapping[str, float]] = {
    # two schedules of the same arithmetic, in what the module itself computes: outputs, losses, states
    "forward": {"float64": 1e-12, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2, **_COMPLEX},
    # the same for eligibility traces, which are longer products
    "trace": {"float64": 1e-12, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2, **_COMPLEX},
    # and for gradients, which are sums over time, some of terms that nearly cancel
    "gradient": {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2, **_COMPLEX, "complex64": 1e-5},
    # brainscale's own run
    "native": {"float64": 1e-10, "float32": 1e-5},
    # the exact gradient, by another way through the model
    "exact": {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 0.1},
    # a formula worked out by hand in numpy
    "formula": {"float64": 1e-12},
    # bit for bit
    "nothing": {},
}


def coarsest(dtypes: Iterable[Any]) -> list[Any]:
    """The float type with the fewest digits, alone in a list; an empty list where there is none."""
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    return sorted(floats, key=lambda dtype: -float(jnp.finfo(dtype).eps))[:1]


def tolerance(kind: str, dtype: Any) -> float:
    """By how much two arrays may differ, relative to the largest entry of the expected one.

    Args:
      kind: "forward", "trace", "gradient" (the same arithmetic in another order), "native" (BrainScale's own run),
        "exact" (another way to the same gradient), "formula" (numbers worked out by hand) or "nothing" (bit for bit).
      dtype: of the expected array; types without digits may not differ at all.
    """
    return _TABLE[kind].get(str(jnp.dtype(dtype)), 0.0) if jnp.issubdtype(dtype, jnp.inexact) else 0.0
