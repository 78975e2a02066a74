"""What is sent to another process, and what is not finite."""

import pickle
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

import pure_batching as pb
from pure_batching.errors import DtypeError, NonFiniteError, OptionError, PickleError, ShapeError, StructureError

from ..bench import bench
from .provoke import Refusal


def spoilt(*place: int, by: float = np.nan) -> Any:
    """Zeros, one of which is replaced; every axis has two numbers more than the place needs."""
    array = np.zeros([at + 2 for at in place])
    array[place] = by
    return array


AROUND = (
    Refusal(
        "a learner of a module, pickled",
        lambda seed: pickle.dumps(bench("tutorial", seed).learner),
        PickleError,
        "LIFNet: got a learner of a module, ~ expected a learner of a plain function, or arrays. Pickle params",
    ),
    *(
        Refusal(f"finite: {name}", lambda _, given=given, axes=axes: pb.check_finite(given, axes), error, text)
        for name, given, axes, error, text in (
            (
                *("a NaN", {"a": [np.ones((4, 3, 2)), spoilt(2, 1, 0)]}, "TB", NonFiniteError),
                "tree['a'][1]: got NaN in sample 1, step 2, expected finite numbers. Check the inputs of this place",
            ),
            (
                *("an infinity", (spoilt(3, by=-np.inf), spoilt(4), np.ones(3)), "B", NonFiniteError),
                "tree[0]: got an infinity in sample 3, expected finite numbers. Not finite either: tree[1]. Check",
            ),
            (
                *("the earlier step", (spoilt(3), spoilt(1)), "T", NonFiniteError),
                "tree[1]: got NaN in step 1, expected finite numbers. Not finite either: tree[0]. Check",
            ),
            (
                *("a quantity", {"v": u.Quantity(jnp.array(np.nan), unit=u.mV)}, "", NonFiniteError),
                "tree['v']: got NaN, expected finite numbers.",
            ),
            ("samples first", 1.0, "BT", OptionError, 'axes: got \'BT\', expected "TB", "T", "B" or "". Name the'),
            ("no samples", [1.0], "B", ShapeError, "tree[0]: got shape (), expected (B, ...). Name the leading axes"),
            ("text", {"a": "b"}, "", DtypeError, "tree['a']: got str, expected an array of numbers."),
        )
    ),
    Refusal(
        "finite: inside jit",
        lambda _: jax.jit(pb.check_finite)(1.0),
        StructureError,
        "tree: got a traced array, expected an array with numbers. Call it outside of jax.jit",
    ),
)
