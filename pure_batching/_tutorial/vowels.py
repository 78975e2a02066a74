"""JapaneseVowels: real speech, training sequences of 7 to 26 steps, which the package aeon carries.

Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through regions" (1999). Nine speakers say
two vowels; a step is 12 coefficients of a linear prediction, and the class is the speaker.
"""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ..errors import OptionError
from .net import Dataset

SEQUENCES = 270
LONGEST = 26
FEATURES = 12
CLASSES = 9

VERSION = "1.6.0"
_FILE = Path("datasets/data/JapaneseVowels/JapaneseVowels_TRAIN.ts")


def find_vowels() -> Path:
    """The file of the training sequences in the package aeon, which need not be importable.

    Raises:
      OptionError: there is no such package.
    """
    found = importlib.util.find_spec("aeon")
    for folder in (found and found.submodule_search_locations) or ():
        if (Path(folder) / _FILE).is_file():
            return Path(folder) / _FILE
    raise OptionError(
        "--data vowels",
        got="no package aeon with the sequences",
        expected=f"aeon {VERSION}, which may be without what it needs itself",
        repair=f"Install it with: pip install --no-deps aeon=={VERSION}",
    )


def load_vowels(time: int, batch: int) -> Dataset:
    """The first steps of some training sequences, every feature with mean 0 and deviation 1.

    Args:
      time: `T`, at most 26; longer sequences are cut.
      batch: `B`, at most 270. The speakers take turns, so that any batch has about as many of each.
    """
    texts = [line for line in find_vowels().read_text().splitlines() if line and line[0] not in "#@"]
    chosen = np.argsort(np.arange(SEQUENCES) % (SEQUENCES // CLASSES), kind="stable")[:batch]
    pairs = [_sequence(texts[place]) for place in chosen]
    inputs, mask = np.zeros((LONGEST, batch, FEATURES), np.float32), np.zeros((LONGEST, batch), bool)
    for place, (values, _) in enumerate(pairs):
        inputs[: len(values), place], mask[: len(values), place] = values, True
    inputs = (inputs - inputs[mask].mean(0)) / inputs[mask].std(0) * mask[..., None]
    labels = [label for _, label in pairs]
    return Dataset(jnp.asarray(inputs[:time]), jnp.asarray(labels), jnp.asarray(mask[:time]))


def _sequence(text: str) -> tuple[np.ndarray, int]:
    """`[steps, FEATURES]` and the speaker; in the file a feature comes after the other, and then the speaker."""
    *features, speaker = text.split(":")
    return np.array([feature.split(",") for feature in features], np.float32).T, int(speaker) - 1
