"""The options of `python -m pure_batching`, each checked before anything runs."""

import argparse
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pure_batching as pb

from .._algorithms.base import RULES
from ..errors import OptionError

EXTRAS = ("brainpy", "matplotlib", "optax", "rich")

ALGORITHMS: dict[str, Callable[[str], pb.Algorithm]] = {
    "ES_D_RTRL": lambda rule: pb.ES_D_RTRL(0.9, rule=rule),
    "D_RTRL": lambda rule: pb.D_RTRL(rule=rule),
    "Hybrid": lambda rule: pb.Hybrid(0.9, rule=rule),
    "BPTT": lambda _: pb.BPTT(),  # exact, whatever the rule
}

STRATEGIES: dict[str, Callable[[pb.Learner, int], pb.Learner]] = {
    "manual": pb.manual,
    "vmap": pb.vmap,
    "loop": pb.loop,
}

_BOTH = "both"
_TRAINED = {name: (name,) for name in STRATEGIES} | {_BOTH: ("manual", "vmap")}
# One strategy alone is compared with the loop, which is the meaning of the others.
_COMPARED = {
    _BOTH: ("manual", "vmap"),
    "manual": ("manual", "loop"),
    "vmap": ("vmap", "loop"),
    "loop": ("loop", "vmap"),
}
_LARGEST = 2**31 - 1


class Options(NamedTuple):
    """What the main job was asked to do."""

    algorithm: str = "ES_D_RTRL"
    rule: str = "brainscale"
    strategy: str = _BOTH
    epochs: int = 10
    batch: int = 128
    time: int = 16
    hidden: int = 200
    seed: int = 0
    output: Path = Path("tutorial.png")

    @property
    def title(self) -> str:
        """What is run, in one line."""
        rule = f", rule {self.rule}" if hasattr(self.build_algorithm(), "rule") else ""
        return f"{self.algorithm}{rule}: T={self.time}, B={self.batch}, {self.hidden} neurons"

    @property
    def trained(self) -> tuple[str, ...]:
        """The strategies to train with."""
        return _TRAINED[self.strategy]

    @property
    def compared(self) -> tuple[str, str]:
        """The strategies whose per-sample gradients are compared."""
        return _COMPARED[self.strategy]

    def build_algorithm(self) -> pb.Algorithm:
        """The learning rule."""
        return ALGORITHMS[self.algorithm](self.rule)


def check_extras() -> None:
    """Raise OptionError where a package is missing that only the main job and the examples need."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(
            "python -m pure_batching",
            got=f"no package {', '.join(missing)}",
            expected=", ".join(EXTRAS),
            repair="Install them with: pip install 'pure-batching[examples]'",
        )


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """The command line as options.

    Args:
      arguments: in place of those of the process.

    Raises:
      OptionError: an unknown option or a bad value.
    """
    try:
        given, unknown = _parser().parse_known_args(arguments)
    except argparse.ArgumentError as reason:
        raise _usage_error(f"a wrong number of values for {reason.argument_name}") from reason
    if unknown:
        raise _usage_error(unknown[0])
    return Options(
        algorithm=_one_of("--algorithm", given.algorithm, ALGORITHMS),
        rule=_one_of("--rule", given.rule, RULES),
        strategy=_one_of("--strategy", given.strategy, _TRAINED),
        epochs=_integer("--epochs", given.epochs, least=1),
        batch=_integer("--batch", given.batch, least=1),
        time=_integer("--time", given.time, least=1),
        hidden=_integer("--hidden", given.hidden, least=1),
        seed=_integer("--seed", given.seed, least=0),
        output=_png("--output", given.output),
    )


def _parser() -> argparse.ArgumentParser:
    """A parser of texts: values are checked afterwards, so that every error has the package's own form."""
    parser = argparse.ArgumentParser(
        prog="python -m pure_batching",
        description="Train the batching tutorial's network with BrainScale's two strategies, side by side.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    default = Options()
    parser.add_argument("--algorithm", default=default.algorithm, help=_choices(ALGORITHMS))
    parser.add_argument("--rule", default=default.rule, help=_choices(RULES))
    parser.add_argument("--strategy", default=default.strategy, help=_choices(_TRAINED))
    parser.add_argument("--epochs", default=str(default.epochs), help="updates, each on the whole batch")
    parser.add_argument("--batch", default=str(default.batch), help="samples")
    parser.add_argument("--time", default=str(default.time), help="steps of a sequence")
    parser.add_argument("--hidden", default=str(default.hidden), help="neurons")
    parser.add_argument("--seed", default=str(default.seed), help="of data and weights")
    parser.add_argument("--output", default=str(default.output), help="the figure to write, a PNG")
    return parser


def _choices(names: Iterable[str]) -> str:
    return " or ".join(names)


def _usage_error(got: str) -> OptionError:
    return OptionError(
        "python -m pure_batching", got=got, expected="options with one value each", repair="See --help for all of them."
    )


def _one_of(option: str, text: str, names: Iterable[str]) -> str:
    if text not in names:
        raise OptionError(option, got=repr(text), expected=_choices(names), repair="Choose one of them.")
    return text


def _integer(option: str, text: str, *, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or not least <= number <= _LARGEST:
        raise OptionError(
            option,
            got=repr(text),
            expected=f"an integer >= {least}" + (f" and <= {_LARGEST}" if number and number > least else ""),
            repair=f"Leave it out for {getattr(Options(), option[2:])}.",
        )
    return number


def _png(option: str, text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise OptionError(option, got=repr(text), expected="a name that ends in .png", repair="Change the ending.")
    if not path.parent.is_dir():
        raise OptionError(option, got=repr(text), expected="a file in a folder that exists", repair="Make the folder.")
    if not _is_writable(path):
        raise OptionError(option, got=repr(text), expected="a file that can be written", repair="Name another file.")
    return path


def _is_writable(path: Path) -> bool:
    """By trying: permissions do not tell what the file system allows."""
    is_new = not path.exists()
    try:
        path.open("ab").close()
    except OSError:
        return False
    if is_new:
        path.unlink()
    return True
