"""The main job: what it shows, what it writes, and what it refuses."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pure_batching.__main__ import USAGE_ERROR, main
from pure_batching._tutorial.options import Options, parse_options
from pure_batching._tutorial.training import sample_differences

SMALL = ["--epochs", "3", "--batch", "4", "--time", "3", "--hidden", "5"]

REFUSED = {
    "--algorithm RTRL": "--algorithm: got 'RTRL', expected ES_D_RTRL or D_RTRL or Hybrid or BPTT. Choose one of them.",
    "--rule exact": "--rule: got 'exact', expected brainscale or published. Choose one of them.",
    "--strategy pmap": "--strategy: got 'pmap', expected manual or vmap or loop or both. Choose one of them.",
    "--epochs 0": "--epochs: got '0', expected an integer >= 1. Leave it out for 10.",
    "--batch -3": "--batch: got '-3', expected an integer >= 1. Leave it out for 128.",
    "--time many": "--time: got 'many', expected an integer >= 1. Leave it out for 16.",
    "--hidden 1e3": "--hidden: got '1e3', expected an integer >= 1. Leave it out for 200.",
    "--hidden 99999999999": "--hidden: got '99999999999', expected an integer >= 1 and <= 2147483647. Leave it out",
    "--seed -1": "--seed: got '-1', expected an integer >= 0. Leave it out for 0.",
    "--output loss.pdf": "--output: got 'loss.pdf', expected a name that ends in .png. Change the ending.",
    "--output no/such/folder/a.png": "--output: got 'no/such/folder/a.png', expected a file in a folder that exists.",
    "--epoch 3": "python -m pure_batching: got --epoch, expected options with one value each. See --help",
    "--epochs": "python -m pure_batching: got a wrong number of values for --epochs, expected options with one value",
}


def run(output: Path, *arguments: str) -> int:
    return main([*SMALL, "--output", str(output), *arguments])


@pytest.mark.parametrize(("strategy", "algorithm"), [("both", "ES_D_RTRL"), ("loop", "D_RTRL"), ("vmap", "BPTT")])
def test_trains_and_shows(strategy: str, algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "curves.png"
    assert run(figure, "--strategy", strategy, "--algorithm", algorithm, "--rule", "published") == 0
    shown = capsys.readouterr()
    rows = re.findall(r"^│ (\d)\s+│(.*)│$", shown.out, re.MULTILINE)
    losses = np.array([[float(cell) for cell in row.split("│")] for _, row in rows])
    assert [epoch for epoch, _ in rows] == ["1", "2", "3"]
    assert losses.shape == (3, 2 if strategy == "both" else 1)
    assert (losses[:, 0] == losses[:, -1]).all()
    assert losses[-1, 0] < losses[0, 0]
    assert "samples per second" in shown.out
    assert "compile time" in shown.out
    (difference,) = set(re.findall(r"gradient difference.*?│\s+([\d.e+-]+)", shown.out))
    assert float(difference) < 1e-12
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_is_in_the_way_is_written_anew(tmp_path: Path) -> None:
    figure = tmp_path / "curves.png"
    figure.write_text("old")
    parse_options(["--output", str(figure)])
    assert figure.read_text() == "old"
    assert run(figure, "--strategy", "vmap") == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("line", REFUSED)
def test_refuses_in_one_line(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split(" ")) == USAGE_ERROR == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(REFUSED[line])
    assert shown.err.count("\n") == 1


def test_a_figure_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.png").mkdir()
    assert main(["--output", str(tmp_path / "folder.png")]) == 2
    assert "expected a file that can be written. Name another file." in capsys.readouterr().err


def test_names_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    known: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optax" else known(name))
    assert main([]) == 2
    assert "got no package optax" in capsys.readouterr().err


def test_defaults_are_the_tutorial_s() -> None:
    assert parse_options([]) == Options("ES_D_RTRL", "brainscale", "both", 10, 128, 16, 200, 0, Path("tutorial.png"))
    assert Options().title == "ES_D_RTRL, rule brainscale: T=16, B=128, 200 neurons"


def test_differences_belong_to_samples() -> None:
    first = {"a": np.array([[1.0, -4.0], [2.0, 0.0]]), "b": np.zeros((2, 1))}
    second = {"a": np.array([[1.0, -4.0], [2.0, 1.0]]), "b": np.zeros((2, 1))}
    assert sample_differences(first, second).tolist() == [0.0, 0.25]
