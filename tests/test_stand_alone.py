"""The test that a violation writes: it stands alone, and shows the same violation as long as there is one."""

import dataclasses
import functools
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb
from pure_batching.errors import StructureError
from pure_batching.testing import Case, Data, LawViolation, Subject, assert_interchangeable, laws
from pure_batching.testing._compare import Difference
from pure_batching.testing._written import Expressions
from pure_batching.testing.modules import Leaky, Net, squared
from pure_batching.testing.strategies import near

from .trees import assert_identical

MODEL = """
import jax.numpy as jnp
import numpy as np

from pure_batching.testing import Function


def step(params, state, x):
    new = jnp.tanh(0.7 * state + x @ params["w"])
    new = new - 0.5 * new.mean(axis=AXIS, keepdims=True)
    return new, new


def make():
    return Function(step, {"w": 0.3 + np.sin(np.arange(12.0)).reshape(3, 4)}, np.zeros(4))


def loss(output, target):
    return ((output - target) ** 2).sum()
"""
COUPLED, MENDED = "AXIS = 0\n", "AXIS = -1\n"


def batch(steps: int = 3, samples: int = 3) -> Data:
    rng = np.random.default_rng(0)
    return Data((rng.normal(size=(steps, samples, 3)),), rng.normal(size=(steps, samples, 4)))


def run(folder: Path) -> tuple[int, str]:
    """Run pytest on what lies in a folder, as a user does."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout


def test_fails_until_the_fault_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    model = tmp_path / "model_with_a_fault.py"
    model.write_text(COUPLED + MODEL)
    found = importlib.import_module("model_with_a_fault")
    with pytest.raises(LawViolation, match=r"^locality does not hold under manual: outputs") as caught:
        assert_interchangeable(found.make, pb.D_RTRL(rule="published"), *batch(), found.loss)
    assert caught.value.case is not None
    assert (caught.value.case.data.samples, caught.value.case.data.steps) == (2, 1)
    (tmp_path / "test_found.py").write_text(caught.value.as_test())
    code, output = run(tmp_path)
    assert code == 1
    assert "LawViolation: locality does not hold under manual: outputs" in output
    model.write_text(MENDED + MODEL)
    code, output = run(tmp_path)
    assert (code, "1 passed" in output) == (0, True), output


def executed(text: str, law: str, filled: Any = None) -> None:
    """Run the test of a text, with something in the places that are to be filled in."""
    scope: dict[str, Any] = {}
    exec(text, scope)
    if filled is not None:
        scope["fill_in"] = lambda _: filled
    scope[f"test_{law}"]()


def scaled(factor: float, learner: pb.Learner, samples: int) -> pb.Learner:
    """A strategy whose samples have another decay."""
    other = pb.ES_D_RTRL(factor)
    return pb.vmap(pb.Learner(learner.source, learner.program, other, learner.strategy), samples)


class TestText:
    def case(self, **options: Any) -> Case:
        net = Net((Leaky("linear", 4),), has_units=True)
        strategies = {"vmap": pb.vmap, "scaled": functools.partial(scaled, 0.5)}
        settings = {"environ": {"dt": 1.0 * u.ms}, "strategies": strategies, **options}
        subject = Subject.of(net, pb.ES_D_RTRL(0.9), net.example(), squared, **settings)
        return Case(subject, near(subject, 1), net.data(0, 4, 2), key=jax.random.key(7))

    def violation(self, case: Case) -> LawViolation:
        with pytest.raises(LawViolation) as caught:
            laws.equality(case)
        return caught.value

    def test_shows_the_same_numbers(self) -> None:
        """Of other weights than the module's, with units, under a strategy with options."""
        found = self.violation(self.case())
        with pytest.raises(LawViolation) as again:
            executed(found.as_test(), "equality")
        assert str(again.value) == str(found)
        assert "equality does not hold under scaled: gradients" in str(found)

    def test_the_numbers_are_those_of_the_smallest_case(self) -> None:
        """Where all laws are checked at once: the data that is written down shows the numbers above it."""
        case = self.case()
        of_all = self.violation(dataclasses.replace(case, params=case.subject.params))
        with pytest.raises(LawViolation) as caught:
            assert_interchangeable(
                case.subject.net_factory,
                case.subject.algorithm,
                case.data.inputs,
                case.data.targets,
                squared,
                environ=case.subject.environ,
                strategies=case.subject.strategies,
                laws=("equality",),
            )
        found = caught.value
        with pytest.raises(LawViolation) as again:
            executed(found.as_test(), "equality")
        assert str(found).splitlines() == [str(again.value), "smallest case that fails: B = 1, T = 1"]
        assert found.as_test().startswith(f"# {again.value}\n# smallest case")
        assert str(again.value) != str(of_all)

    def test_what_cannot_be_imported_is_filled_in(self) -> None:
        found = self.violation(self.case(strategies={"vmap": pb.vmap, "mine": lambda *given: scaled(0.5, *given)}))
        text = found.as_test()
        place = f"TestText.test_what_cannot_be_imported_is_filled_in.<locals>.<lambda> of {__name__}, line "
        assert f"#   {place}" in text
        assert f"'mine': fill_in('{place}" in text
        with pytest.raises(pytest.fail.Exception, match="put the right expression in the place of fill_in"):
            executed(text, "equality")
        with pytest.raises(LawViolation) as again:
            executed(text, "equality", functools.partial(scaled, 0.5))
        assert str(again.value) == str(found)

    def test_settings_of_the_capture(self) -> None:
        with jax.default_matmul_precision("highest"), jax.numpy_dtype_promotion("strict"):
            text = self.violation(self.case()).as_test()
        assert "with brainstate.environ.context(**{'precision': 64}), jax.enable_x64(True), " in text
        assert "jax.numpy_dtype_promotion('strict'), jax.default_matmul_precision('highest'):" in text
        assert "key=jax.random.key(7, impl='threefry2x32')" in text

    def test_a_violation_that_no_law_raised(self) -> None:
        found = LawViolation("init", "vmap", Difference("", {}, 0, 1, 1.0, 0.0))
        with pytest.raises(StructureError, match=r"^LawViolation\.as_test: got a violation without a case"):
            found.as_test()


def give_back(value: Any) -> tuple[Any, Expressions]:
    """Evaluate the expression of a value."""
    known = Expressions()
    text = known.of(value)
    scope: dict[str, Any] = {"fill_in": lambda what: what}
    for name in known.modules:
        exec(f"import {name}", scope)
    return eval(text, scope), known


VOLTAGE_PER_TIME: Any = u.mV / u.ms
CONDUCTANCE_PER_AREA: Any = u.mS / u.cm**2

ARRAYS = {
    "float64": np.random.default_rng(0).normal(size=(2, 3)),
    "float32": np.random.default_rng(0).normal(size=(5,)).astype("float32"),
    "float16": np.linspace(0, 1, 7, dtype="float16"),
    "bfloat16": jnp.linspace(0, 1, 7, dtype="bfloat16"),
    "int8": np.arange(-3, 3, dtype="int8"),
    "bool": np.array([[True], [False]]),
    "complex64": jnp.array([1 + 2j, 3j], "complex64"),
    "no number": np.array([np.nan, np.inf, -0.0, 1.0]),
    "large": np.random.default_rng(0).normal(size=(20, 30)),
    "empty": np.zeros((0, 3), "float32"),
    "one": jnp.float32(0.1),
    "key": jax.random.split(jax.random.key(3), 2),
    "key of a seed": jax.random.key(3, impl="rbg"),
    "current": u.Quantity(jnp.arange(3.0), unit=u.mA),
    "rate": u.Quantity(np.arange(3.0), unit=VOLTAGE_PER_TIME),
    "conductance": u.Quantity(np.arange(3.0), unit=CONDUCTANCE_PER_AREA),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_given_back_bit_for_bit(name: str) -> None:
    value, known = give_back(ARRAYS[name])
    assert not known.gaps
    assert type(value) is type(ARRAYS[name])
    assert_identical(value, ARRAYS[name])


VALUES = (
    *(None, True, 3, -2.5, 1e-300, float("-inf"), "a 'b'", b"c", ..., (), (1,), [1, (2,)], {"a": {1: None}}),
    *(u.mV, u.UNITLESS, u.siemens / u.metre**2, np.dtype("bfloat16"), jnp.tanh, np.sin, Net, squared, Case.with_data),
    *(Net((Leaky("lora", 6),), n_inputs=2), pb.D_RTRL(trace_dtype=jnp.bfloat16), pb.Hybrid(5, rule="published")),
    *(pb.ES_D_RTRL(0.9), pb.EProp(0.3), pb.BPTT(checkpoint=True), Subject.of),
)


@pytest.mark.parametrize("given", VALUES, ids=lambda value: Expressions().of(value))
def test_values_are_given_back(given: Any) -> None:
    value, known = give_back(given)
    assert not known.gaps
    assert type(value) is type(given)
    assert value == given


def test_a_function_with_options_is_given_back() -> None:
    value, _ = give_back(functools.partial(scaled, 0.5, samples=3))
    assert (value.func, value.args, value.keywords) == (scaled, (0.5,), {"samples": 3})


def test_a_method_is_given_back() -> None:
    value, _ = give_back(Leaky("lora", 6).build)
    assert (value.__self__, value.__name__) == (Leaky("lora", 6), "build")


def test_public_names_are_taken() -> None:
    """A class is imported from where a user imports it, and not from the file that it stands in."""
    assert Expressions().of(pb.D_RTRL()) == "pure_batching.D_RTRL()"


class Tracked(list):
    """No list as any other."""


@pytest.mark.parametrize("given", [Tracked([1]), object(), lambda: None, np.array([object()])], ids=type)
def test_what_has_no_name_is_a_gap(given: Any) -> None:
    value, known = give_back([1, given])
    assert known.gaps == value[1:]
    assert value[0] == 1
