"""The main job: what it shows, what it writes, and what it refuses."""

import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pure_batching as pb
from pure_batching.__main__ import USAGE_ERROR, main
from pure_batching._tutorial import job
from pure_batching._tutorial.net import Dataset
from pure_batching._tutorial.options import Options, parse_options
from pure_batching._tutorial.placing import make_builder, make_mesh
from pure_batching._tutorial.sources import spikes
from pure_batching._tutorial.training import accuracy, first_potentials, sample_differences
from pure_batching._tutorial.vowels import find_vowels, load_vowels

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
    "--source jax": "--source: got 'jax', expected brainscale or braintrace or function. Choose one of them.",
    "--data speech": "--data: got 'speech', expected tutorial or vowels. Choose one of them.",
    "--data vowels --batch 271": "--batch: got '271', expected an integer >= 1 and <= 270. Leave it out for 270.",
    "--data vowels --time 27": "--time: got '27', expected an integer >= 1 and <= 26. Leave it out for 26.",
    "--chunk 0": "--chunk: got '0', expected an integer >= 1. Give another number.",
    "--chunk ": "--chunk: got '', expected an integer >= 1. Give another number.",
    "--chunk 129": "--chunk: got '129', expected an integer >= 1 and <= 128. Give another number.",
    "--devices 2 --chunk 65": "--chunk: got '65', expected an integer >= 1 and <= 64. Give another number.",
    "--devices 3": "--devices: got '3', expected a divisor of the batch, 128. Give another number.",
    "--devices 16": "--devices: got '16', expected at most the 8 of JAX. To make a processor into as many, set "
    "JAX_NUM_CPU_DEVICES=16 in the environment.",
    "--seed -1": "--seed: got '-1', expected an integer >= 0. Leave it out for 0.",
    "--output loss.pdf": "--output: got 'loss.pdf', expected a name that ends in .png. Change the ending.",
    "--output no/such/folder/a.png": "--output: got 'no/such/folder/a.png', expected a file in a folder that exists.",
    "--epoch 3": "python -m pure_batching: got an unknown option, --epoch, expected options with one value each. See "
    "--help for all of them.",
    "foo": "python -m pure_batching: got an unknown option, foo, expected options with one value each. See --help",
    "--epochs": "python -m pure_batching: got a wrong number of values for --epochs, expected options with one value",
}


SOURCES = ("brainscale", "braintrace", "function")


def run(output: Path, *arguments: str) -> int:
    return main([*SMALL, "--output", str(output), *arguments])


def losses_shown(text: str) -> np.ndarray:
    """`[epochs, strategies]`."""
    rows = re.findall(r"^│ (\d)\s+│(.*)│$", text, re.MULTILINE)
    assert [epoch for epoch, _ in rows] == ["1", "2", "3"]
    return np.array([[float(cell) for cell in row.split("│")] for _, row in rows])


@pytest.mark.parametrize(("strategy", "algorithm"), [("both", "ES_D_RTRL"), ("loop", "D_RTRL"), ("vmap", "BPTT")])
def test_trains_and_shows(strategy: str, algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "curves.png"
    assert run(figure, "--strategy", strategy, "--algorithm", algorithm, "--rule", "published") == 0
    shown = capsys.readouterr()
    losses = losses_shown(shown.out)
    assert losses.shape == (3, 2 if strategy == "both" else 1)
    assert (losses[:, 0] == losses[:, -1]).all()
    assert losses[-1, 0] < losses[0, 0]
    assert "samples per second" in shown.out
    assert "compile time" in shown.out
    (difference,) = set(re.findall(r"gradient difference.*?│\s+([\d.e+-]+)", shown.out))
    assert float(difference) < 1e-12
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_every_source_trains_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for source in SOURCES:
        assert run(tmp_path / "curves.png", "--source", source, "--rule", "published", "--strategy", "vmap") == 0
        shown = capsys.readouterr().out
        assert (source in shown) == (source != "brainscale")
        found[source] = losses_shown(shown)
    assert found["brainscale"][-1, 0] < found["brainscale"][0, 0]
    for source in SOURCES:
        np.testing.assert_array_equal(found[source], found["brainscale"])


def test_the_batch_is_run_in_the_shares_asked_for() -> None:
    options = Options(batch=4, chunk=1, devices=2)
    learner, _ = pb.capture_function(lambda w, h, x: (h + w * x, h), 1.0, 0.0, 1.0, algorithm=pb.BPTT())
    mesh = make_mesh(options)
    built = make_builder(options, "manual", learner, mesh)()
    by = functools.partial(pb.chunked, chunk=1, by=pb.manual)
    assert built == pb.sharded(learner, 4, mesh=mesh, axis="batch", by=by)
    assert make_mesh(Options()) is None
    assert make_builder(Options(batch=4), "manual", learner, None)() == pb.manual(learner, 4) != built


def test_shares_of_the_batch_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("--source", "function", "--strategy", "vmap")
    assert run(tmp_path / "whole.png", *shared) == 0
    whole = losses_shown(capsys.readouterr().out)
    assert run(tmp_path / "shares.png", *shared, "--devices", "2", "--chunk", "1") == 0
    shown = capsys.readouterr().out
    assert "chunks of 1, 2 devices" in " ".join(shown.split())
    np.testing.assert_array_equal(losses_shown(shown), whole)


def speech(lengths: np.ndarray) -> str:
    """Sequences of these lengths as the package writes them, an equal number of each speaker, told by the loudness."""
    rng, rows = np.random.default_rng(0), []
    for place, length in enumerate(lengths):
        speaker = 9 * place // len(lengths) + 1
        features = rng.normal(5, 3, (12, length)) + 9 * (np.arange(12) == speaker)[:, None]
        rows.append(":".join([*(",".join(f"{x:.6f}" for x in feature) for feature in features), str(speaker)]))
    return "\n".join(["# speech", "@dimensions 12", "@data", *rows, ""])


@pytest.fixture
def aeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """A package with speech in it, 30 sequences of each speaker and 37 tests; and the lengths of the sequences."""
    folder = tmp_path / "aeon"
    (folder / "datasets/data/JapaneseVowels").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it is not to be imported')")
    lengths = np.arange(270) % 20 + 7
    for part, each in {"TRAIN": lengths, "TEST": np.arange(37) % 23 + 7}.items():
        (folder / f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts").write_text(speech(each))
    monkeypatch.syspath_prepend(str(tmp_path))
    return lengths


def test_speech_is_read(aeon: np.ndarray) -> None:
    (whole, tests), (part, of_part) = load_vowels(26, 270), load_vowels(10, 18)
    assert whole.inputs.shape == (26, 270, 12)
    assert sorted(whole.mask.sum(0).tolist()) == sorted(aeon.tolist())
    np.testing.assert_array_equal(np.bincount(whole.labels), [30] * 9)
    for moment, want in ((whole.inputs[whole.mask].mean(0), 0), (whole.inputs[whole.mask].std(0), 1)):
        np.testing.assert_allclose(moment, want, atol=1e-5)
    assert (whole.inputs[~whole.mask] == 0).all()
    assert part.inputs.shape == (10, 18, 12)
    np.testing.assert_array_equal(np.bincount(part.labels), [2] * 9)
    np.testing.assert_array_equal(part.mask, whole.mask[:10, :18])
    assert not part.mask.all()
    assert tests.inputs.shape == (26, 37, 12)
    np.testing.assert_array_equal(tests.mask.sum(0), np.minimum(np.arange(37) % 23 + 7, 26))
    assert of_part.inputs.shape == (10, 37, 12)


def test_the_tests_of_speech_are_scaled_as_the_training_is(aeon: np.ndarray) -> None:
    """Not by their own moments."""
    known, tests = load_vowels(26, 270)
    (raw,) = [path.read_text() for path in find_vowels() if "TEST" in path.name]
    first = np.array(raw.split("@data\n")[1].split(":")[0].split(","), float)
    (of_training,) = [path.read_text() for path in find_vowels() if "TRAIN" in path.name]
    rows = of_training.split("@data\n")[1].split()
    values = np.concatenate([np.array(row.split(":")[0].split(","), float) for row in rows])
    assert len(values) == known.mask.sum() == aeon.sum()
    np.testing.assert_allclose(tests.inputs[: len(first), 0, 0], (first - values.mean()) / values.std(), atol=1e-5)


@pytest.mark.usefixtures("aeon")
def test_trains_on_speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What stands behind the end of a sequence is not looked at."""

    def poisoned(time: int, batch: int) -> tuple[Dataset, Dataset]:
        data, tests = load_vowels(time, batch)
        assert not data.mask.all()
        assert not tests.mask.all()
        poison = [each._replace(inputs=each.inputs.at[~each.mask].set(np.nan)) for each in (data, tests)]
        return poison[0], poison[1]

    monkeypatch.setattr(job.vowels, "load_vowels", poisoned)
    monkeypatch.setenv("COLUMNS", "80")
    assert run(tmp_path / "curves.png", "--data", "vowels", "--batch", "9", "--time", "10", "--epochs", "30") == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    (row,) = re.findall(r"test accuracy.*", shown)
    (by_manual, by_vmap) = [float(number) for number in re.findall(r"\d\.\d{4}", row)]
    assert 0 < by_manual == by_vmap


def test_accuracy_is_the_share_of_sequences_said_rightly() -> None:
    """By the sum of the logits over a sequence's own steps, which is not what its last step says."""
    logits = np.array([[[0, 3], [5, 0], [0, 1]], [[1, 0], [0, 1], [2, 0]], [[1, 0], [np.nan, 9], [0, np.nan]]])
    mask = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 0]], bool)

    def step(w: Any, h: Any, x: Any) -> Any:
        return h + x, w * x

    learner, params = pb.capture_function(step, 1.0, np.zeros(2), logits[0, 0], algorithm=pb.BPTT())
    for labels, share in {(1, 0, 0): 1, (0, 0, 0): 2 / 3, (0, 1, 1): 0}.items():
        assert accuracy(pb.vmap(learner, 3), params, Dataset(logits, np.array(labels), mask)) == pytest.approx(share)


def test_says_how_to_get_the_speech(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    known: Any = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "aeon" else known(name))
    assert main(["--data", "vowels"]) == 2
    assert "pip install --no-deps aeon==1.6.0" in " ".join(capsys.readouterr().err.split())


def test_spikes_are_those_of_one_sample() -> None:
    """Of its own steps, and after weights that differ."""
    data = Dataset(np.ones((4, 2, 3)), np.zeros(2, int), np.array([[1, 1], [0, 1], [1, 1], [1, 1]], bool))

    def step(params: Any, v: Any, x: Any) -> Any:
        return v + params["w"] * x.sum(-1, keepdims=True), v

    learner, _ = pb.capture_function(step, {"w": 1.0}, np.zeros(1), data.inputs[0, 0], algorithm=pb.BPTT())
    found = first_potentials(pb.manual(learner, 1), {"w": 0.3}, data, "state")
    np.testing.assert_allclose(found[:, 0], [0.9, 1.8, 2.7])
    np.testing.assert_array_equal(spikes(found)[:, 0], [False, True, True])


def test_a_figure_that_is_in_the_way_is_written_anew(tmp_path: Path) -> None:
    figure = tmp_path / "curves.png"
    figure.write_text("old")
    parse_options(["--output", str(figure)])
    assert figure.read_text() == "old"
    assert run(figure, "--strategy", "vmap") == 0
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("line", REFUSED)
def test_refuses_before_anything_runs(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split(" ")) == USAGE_ERROR == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert " ".join(shown.err.split()).startswith(REFUSED[line])
    assert shown.err.endswith("\n")


def test_errors_and_help_fit_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--algorithm", "RTRL"]) == 2
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) > 1
    assert max(map(len, [*shown.err.splitlines(), *shown.out.splitlines()])) <= 80
    for name in Options._fields:
        assert f"--{name}" in shown.out


def test_a_figure_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.png").mkdir()
    assert main(["--output", str(tmp_path / "folder.png")]) == 2
    assert "expected a file that can be written. Name another file." in " ".join(capsys.readouterr().err.split())


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
