"""The options of `python -m pure_batching`, each checked before anything runs."""

import argparse
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pure_batching as pb

from .._algorithms.base import RULES
from ..errors import OptionError

_LARGEST = 2**31 - 1

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

SOURCES = ("brainscale", "braintrace", "function")


class DataSet(NamedTuple):
    """A data set's own sizes, by default, and how much of it there is."""

    batch: int
    time: int
    most_batch: int
    most_time: int


DATA = {"tutorial": DataSet(128, 16, _LARGEST, _LARGEST), "vowels": DataSet(270, 26, 270, 26)}

_BOTH = "both"
_TRAINED = {name: (name,) for name in STRATEGIES} | {_BOTH: ("manual", "vmap")}
# One strategy alone is compared with the loop, which is the meaning of the others.
_COMPARED = {
    _BOTH: ("manual", "vmap"),
    "manual": ("manual", "loop"),
    "vmap": ("vmap", "loop"),
    "loop": ("loop", "vmap"),
}


class Options(NamedTuple):
    """What the main job was asked to do.

    `chunk` is how many samples run at a time, None for all of them.
    """

    algorithm: str = "ES_D_RTRL"
    rule: str = "brainscale"
    strategy: str = _BOTH
    epochs: int = 10
    batch: int = 128
    time: int = 16
    hidden: int = 200
    seed: int = 0
    output: Path = Path("tutorial.png")
    source: str = "brainscale"
    data: str = "tutorial"
    chunk: int | None = None
    devices: int = 1

    @property
    def title(self) -> str:
        """What is run, in one line."""
        rule = f", rule {self.rule}" if hasattr(self.build_algorithm(), "rule") else ""
        return f"{self.algorithm}{rule}: T={self.time}, B={self.batch}, {self.hidden} neurons{self._rest}"

    @property
    def _rest(self) -> str:
        """What else is not as in the tutorial."""
        parts = {
            f"source {self.source}": self.source != Options._field_defaults["source"],
            self.data: self.data != Options._field_defaults["data"],
            f"chunks of {self.chunk}": self.chunk is not None,
            f"{self.devices} devices": self.devices > 1,
        }
        return "".join(f", {part}" for part, is_said in parts.items() if is_said)

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


def check_extras(options: Options) -> None:
    """Raise OptionError where a package is missing that only the main job and the examples need."""
    _check_packages("python -m pure_batching", EXTRAS, "examples")
    if options.source == "braintrace":
        _check_packages("--source braintrace", ("braintrace",), "braintrace")


def _check_packages(where: str, names: tuple[str, ...], extra: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(
            where,
            got=f"no package {', '.join(missing)}",
            expected=", ".join(names),
            repair=f"Install what is missing with: pip install 'pure-batching[{extra}]'",
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
        raise _usage_error(f"an unknown option, {unknown[0]}")
    data = _one_of("--data", given.data, DATA)
    of_data = DATA[data]
    batch = _integer("--batch", given.batch, least=1, most=of_data.most_batch, default=of_data.batch)
    options = Options(
        algorithm=_one_of("--algorithm", given.algorithm, ALGORITHMS),
        rule=_one_of("--rule", given.rule, RULES),
        strategy=_one_of("--strategy", given.strategy, _TRAINED),
        epochs=_integer("--epochs", given.epochs, least=1),
        batch=batch,
        time=_integer("--time", given.time, least=1, most=of_data.most_time, default=of_data.time),
        hidden=_integer("--hidden", given.hidden, least=1),
        seed=_integer("--seed", given.seed, least=0),
        output=_png("--output", given.output),
        source=_one_of("--source", given.source, SOURCES),
        data=data,
        devices=_divisor("--devices", given.devices, batch),
    )
    if given.chunk is None:
        return options
    return options._replace(chunk=_integer("--chunk", given.chunk, least=1, most=batch // options.devices))


def _choices(names: Iterable[str]) -> str:
    return " or ".join(names)


_HELP = {
    "algorithm": _choices(ALGORITHMS),
    "rule": _choices(RULES),
    "strategy": _choices(_TRAINED),
    "source": f"what the network is written in: {_choices(SOURCES)}",
    "data": f"{_choices(DATA)}, which is speech with tests, of the package aeon",
    "epochs": "updates, each on the whole batch",
    "batch": "samples",
    "time": "steps of a sequence",
    "hidden": "neurons",
    "chunk": "samples that run at a time (default: all)",
    "devices": "devices to share the batch out among",
    "seed": "of data and weights",
    "output": "the figure to write, a PNG",
}


def _by_data(name: str) -> str:
    """The default of a size that depends on the data."""
    first, *others = ((getattr(sizes, name), data) for data, sizes in DATA.items())
    return ", ".join([str(first[0]), *(f"{number} for {data}" for number, data in others)])


def _parser() -> argparse.ArgumentParser:
    """A parser of texts: values are checked afterwards, so that every error has the package's own form."""
    parser = argparse.ArgumentParser(
        prog="python -m pure_batching",
        usage="%(prog)s [--OPTION VALUE ...]",
        description="Train the batching tutorial's network with BrainScale's two strategies, side by side. Print the "
        "losses, and the accuracy where the data have tests. Write a figure of the losses and of one sample's spikes.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=24),
        allow_abbrev=False,
        exit_on_error=False,
    )
    for name, about in _HELP.items():
        default = Options._field_defaults[name]
        shown = _by_data(name) if name in DataSet._fields else default
        of_default = "" if shown is None else f" (default: {shown})"
        given = None if default is None or name in DataSet._fields else str(default)
        parser.add_argument(f"--{name}", default=given, metavar=name.upper(), help=about + of_default)
    return parser


def _usage_error(got: str) -> OptionError:
    return OptionError(
        "python -m pure_batching", got=got, expected="options with one value each", repair="See --help for all of them."
    )


def _one_of(option: str, text: str, names: Iterable[str]) -> str:
    if text not in names:
        raise OptionError(option, got=repr(text), expected=_choices(names), repair="Choose one of them.")
    return text


_OTHER_NUMBER = "Give another number."


def _integer(option: str, text: str | None, *, least: int, most: int = _LARGEST, default: int | None = None) -> int:
    """The number of an option; a text of None stands for the default."""
    if text is None and default is not None:
        return default
    try:
        number = int(text or "")
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        usual = Options._field_defaults[option[2:]] if default is None else default
        raise OptionError(
            option,
            got=repr(text),
            expected=f"an integer >= {least}" + (f" and <= {most}" if number and number > least else ""),
            repair=_OTHER_NUMBER if usual is None else f"Leave it out for {usual}.",
        )
    return number


def _divisor(option: str, text: str, batch: int) -> int:
    number = _integer(option, text, least=1)
    if batch % number:
        raise OptionError(option, got=repr(text), expected=f"a divisor of the batch, {batch}", repair=_OTHER_NUMBER)
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
