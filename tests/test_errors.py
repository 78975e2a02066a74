"""Every error by its text: where, got, expected, repair; and nothing half changed."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import brainstate
import brainunit as u
import jax
import numpy as np
import pytest
from brainstate.nn import Module

import pure_batching as pb
from pure_batching import errors as _errors
from pure_batching.errors import CaptureError, DtypeError, OptionError, PureBatchingError, StrategyError

from .bench import SAMPLES, STEPS, bench
from .models import N_IN, squared
from .refusals import DATA, REFUSALS
from .refusals.provoke import (
    ES,
    SETTINGS,
    Decaying,
    Flattened,
    Growing,
    Impassable,
    Refusal,
    Remembering,
    Summed,
    Tree,
    Turning,
    TwoShapes,
    captured,
    first,
    gradient,
    in_volts,
    one_input,
    step,
    tutorial,
    with_loss,
)
from .trees import assert_close, assert_identical, named


def kinds(error: type[PureBatchingError]) -> Iterator[type[PureBatchingError]]:
    """An error and all that derive from it."""
    yield error
    for below in error.__subclasses__():
        yield from kinds(below)


class TestTexts:
    @pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
    def test_says_where_what_and_what_to_do(self, refusal: Refusal, seed: int) -> None:
        with pytest.raises(refusal.error, match=refusal.pattern) as caught:
            refusal.provoke(seed)
        assert re.fullmatch(r"(?s).+: got .+, expected .+\. \S.+\.", str(caught.value))
        assert str(caught.value).startswith(caught.value.where)

    def test_every_kind_is_seen(self) -> None:
        seen = {refusal.error for refusal in REFUSALS}
        assert set(kinds(PureBatchingError)) - {PureBatchingError} == seen

    def test_every_kind_is_a_value_error_with_a_meaning(self) -> None:
        assert all(issubclass(kind, ValueError) and kind.__doc__ for kind in kinds(PureBatchingError))
        assert {kind.__module__ for kind in kinds(PureBatchingError)} == {_errors.__name__}


class TestConversions:
    @pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.uint16, np.float16, np.float32])
    def test_inputs_are_promoted(self, dtype: Any, seed: int) -> None:
        got = gradient(seed, inputs=first(lambda x: (x > 0.7).astype(dtype)))
        assert_identical(got, gradient(seed, inputs=first(lambda x: (x > 0.7).astype(np.float64))))

    def test_under_strict_promotion(self, seed: int) -> None:
        """The rule is the package's own, whatever JAX is told to do with the user's arithmetic."""
        want = step(seed, inputs=first(lambda x: (x > 0).astype(np.float64)))
        with jax.numpy_dtype_promotion("strict"):
            assert_identical(step(seed, inputs=first(lambda x: (x > 0).astype(np.float32))), want)
            with pytest.raises(DtypeError):
                step(seed, inputs=first(lambda x: x + 0j))

    def test_double_precision_where_jax_has_none(self, seed: int) -> None:
        """With x64 off an array of numpy becomes single precision, as in JAX."""
        with jax.enable_x64(new_val=False):
            got = gradient(seed, precision=32, inputs=first(lambda x: np.asarray(x, np.float64)))
            assert_identical(got, gradient(seed, precision=32))

    def test_a_python_number_has_the_dtype_of_what_it_meets(self, seed: int) -> None:
        made = bench("tutorial", seed, precision=32)
        carry = made.start(None)._replace(update_count=0)
        assert_identical(
            made.learner.step(made.params, carry, np.zeros(N_IN, np.float32)),
            made.learner.step(made.params, made.start(None), np.zeros(N_IN, np.float32)),
        )

    def test_another_scale_of_an_input_of_a_step(self, seed: int) -> None:
        got = step(seed, "trees", inputs=first(lambda x: {**x, "current": x["current"].in_unit(u.amp)}))
        assert_close(got, step(seed, "trees"))

    def test_another_scale_of_an_input_of_a_sequence(self, seed: int) -> None:
        got = gradient(seed, "trees", inputs=first(lambda x: {**x, "current": x["current"].in_unit(u.amp)}))
        assert_close(got, gradient(seed, "trees"))

    def test_another_scale_of_a_weight(self, seed: int) -> None:
        assert_close(gradient(seed, params=in_volts), gradient(seed))

    def test_another_scale_of_a_carry(self, seed: int) -> None:
        assert_close(step(seed, carry=in_volts), step(seed))

    @pytest.mark.parametrize("integer", [np.int32(2), np.int64(2)])
    def test_integers_of_numpy(self, integer: Any, seed: int) -> None:
        made = bench("tutorial", seed)
        assert pb.vmap(made.learner, integer).batch_size == 2
        assert pb.sequence_grad(made.learner, squared, window=integer).windows.length == 2

    def test_a_dimensionless_loss(self, seed: int) -> None:
        got = with_loss(seed, lambda out, _: out.sum() * u.mV / u.volt)
        assert_close(got, with_loss(seed, lambda out, _: out.sum() / 1000))


class TestNothingIsHalfChanged:
    @pytest.mark.parametrize("refusal", [one for one in DATA if one.error is not OptionError], ids=lambda one: one.name)
    def test_no_loss_was_asked_for(self, refusal: Refusal, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The data is checked before anything is traced."""
        monkeypatch.setattr("pure_batching._learning.sequence.run_sequence", unreachable)
        with pytest.raises(refusal.error):
            refusal.provoke(seed)

    def test_arguments_and_results(self, seed: int) -> None:
        made = bench("tutorial", seed)
        before = jax.tree.map(np.array, (made.params, made.data(STEPS, SAMPLES)))
        want = gradient(seed)
        for refusal in DATA:
            with pytest.raises(PureBatchingError):
                refusal.provoke(seed)
        assert_identical((made.params, made.data(STEPS, SAMPLES)), before)
        assert_identical(gradient(seed), want)

    @pytest.mark.parametrize("make", [tutorial, Impassable, Growing, TwoShapes, Turning, Decaying])
    def test_a_module_that_is_refused(self, make: Callable[[], Module]) -> None:
        net = make()
        before, surroundings = remembered(net), everything_global()
        with pytest.raises(CaptureError):
            captured(net, one_input(), environ=None if make is tutorial else SETTINGS)
        assert_identical(remembered(net), before)
        assert_identical(everything_global(), surroundings)
        assert brainstate.environ.get("dt", None) is None

    @pytest.mark.parametrize("make", [Summed, Remembering, Flattened])
    def test_a_learner_that_manual_refuses(self, make: Callable[[], Module], seed: int) -> None:
        learner, params = pb.capture(make(), one_input(), algorithm=ES, environ=SETTINGS)
        inputs = np.random.default_rng(seed).normal(size=(SAMPLES, N_IN))
        want = pb.vmap(learner, SAMPLES).step(params, pb.vmap(learner, SAMPLES).init(), inputs)
        surroundings = everything_global()
        with pytest.raises(StrategyError):
            pb.manual(learner, SAMPLES)
        assert_identical(everything_global(), surroundings)
        assert_identical(pb.vmap(learner, SAMPLES).step(params, pb.vmap(learner, SAMPLES).init(), inputs), want)


def unreachable(*_: Any, **__: Any) -> None:
    raise AssertionError("something ran")


def remembered(net: Module) -> Tree:
    """The values of a module's states."""
    return jax.tree.map(np.array, pb.read_states(net))


def everything_global() -> Tree:
    """The global random generator's key."""
    return [leaf for _, leaf in named(brainstate.random.DEFAULT.value)]
