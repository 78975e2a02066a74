"""JapaneseVowels: real speech, which the package aeon carries; 270 sequences for training and 370 for tests.

Kudo, Toyama and Shimbo, "Multidimensional curve classification using passing-through regions" (1999). Nine speakers say
two vowels; a step is 12 coefficients of a linear prediction, and the class is the speaker. A training sequence has 7 to
26 steps, a test sequence 7 to 29.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ..errors import OptionError
from .net import Dataset

SEQUENCES = 270
LONGEST = 29
FEATURES = 12
CLASSES = 9

VERSION = "1.6.0"
_FOLDER = Path("datasets/data/JapaneseVowels")
_FILES = ("JapaneseVowels_TRAIN.ts", "JapaneseVowels_TEST.ts")


def find_vowels() -> tuple[Path, ...]:
    """The files of the training and of the test sequences in the package aeon, which need not be importable.

    Raises:
      OptionError: there is no such package.
    """
    found = importlib.util.find_spec("aeon")
    for folder in (found and found.submodule_search_locations) or ():
        files = tuple(Path(folder) / _FOLDER / name for name in _FILES)
        if all(file.is_file() for file in files):
            return files
    raise OptionError(
        "--data vowels",
        got="no package aeon with the sequences",
        expected=f"aeon {VERSION}, which may be without what it needs itself",
        repair=f"Install it with: pip install --no-deps aeon=={VERSION}",
    )


def load_vowels(time: int, batch: int) -> tuple[Dataset, Dataset]:
    """The first steps of some training sequences and of all test sequences.

    Every feature of the training sequences has mean 0 and deviation 1; those of the tests are moved and scaled alike.

    Args:
      time: `T`, at most 26; longer sequences are cut.
      batch: `B`, at most 270, of the training. The speakers take turns, so that any batch has about as many of each.
    """
    training, tests = (_rows(file) for file in find_vowels())
    chosen = np.argsort(np.arange(SEQUENCES) % (SEQUENCES // CLASSES), kind="stable")[:batch]
    known, unknown = _padded([training[place] for place in chosen]), _padded(tests)
    features = known.inputs[known.mask]
    moments = features.mean(0), features.std(0)
    return _scaled(known, *moments, time), _scaled(unknown, *moments, time)


class _Padded(NamedTuple):
    """Sequences side by side, zero behind their ends: `[LONGEST, B, FEATURES]`, which steps exist, and speakers."""

    inputs: np.ndarray
    mask: np.ndarray
    labels: np.ndarray


def _rows(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and line[0] not in "#@"]


def _padded(texts: Sequence[str]) -> _Padded:
    pairs = [_sequence(text) for text in texts]
    inputs, mask = np.zeros((LONGEST, len(pairs), FEATURES), np.float32), np.zeros((LONGEST, len(pairs)), bool)
    for place, (values, _) in enumerate(pairs):
        inputs[: len(values), place], mask[: len(values), place] = values, True
    return _Padded(inputs, mask, np.array([label for _, label in pairs]))


def _scaled(padded: _Padded, mean: np.ndarray, deviation: np.ndarray, time: int) -> Dataset:
    inputs = (padded.inputs - mean) / deviation * padded.mask[..., None]
    return Dataset(jnp.asarray(inputs[:time]), jnp.asarray(padded.labels), jnp.asarray(padded.mask[:time]))


def _sequence(text: str) -> tuple[np.ndarray, int]:
    """`[steps, FEATURES]` and the speaker; in the file a feature comes after the other, and then the speaker."""
    *features, speaker = text.split(":")
    return np.array([feature.split(",") for feature in features], np.float32).T, int(speaker) - 1
