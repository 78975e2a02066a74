"""One cheap law for every layer: it is captured, and every strategy gives the numbers of the loop."""

from collections.abc import Generator
from typing import Any

import jax
import pytest

import pure_batching as pb
from pure_batching.errors import StrategyError

from .alive import assert_alive
from .bench import SAMPLES, SHARED_OUT, Request, shared_out
from .interchangeable import assert_interchangeable
from .layers import LAYERS, REFUSED
from .models import MODELS
from .registry import EVERY, EXACT, NOT_BY_HAND, SHOWN, captured, offered
from .trees import assert_close

# Two halves of the same law, which two workers share.
HALVES = (list(LAYERS)[::2], list(LAYERS)[1::2])


class TestOneHalf:
    @pytest.mark.parametrize("name", HALVES[0])
    def test_every_strategy_equals_the_loop(self, name: str, seed: int) -> None:
        assert_interchangeable(captured(name, seed))


class TestOtherHalf:
    @pytest.mark.parametrize("name", HALVES[1])
    def test_every_strategy_equals_the_loop(self, name: str, seed: int) -> None:
        assert_interchangeable(captured(name, seed))


@pytest.fixture
def _programs_of_one_layer(strategy: str) -> Generator[None, Any, Any]:
    """Frees them after the last strategy: those of all layers are more than a process may map."""
    yield
    if strategy == list(SHARED_OUT)[-1]:
        jax.clear_caches()


class TestSharedOut:
    """In chunks, on devices, and in chunks on devices: every layer that is no model of its own, and its audit."""

    @pytest.mark.usefixtures("_programs_of_one_layer")
    @pytest.mark.parametrize("strategy", SHARED_OUT)
    @pytest.mark.parametrize("name", [name for name in EVERY if name not in MODELS])
    def test_equals_the_loop(self, name: str, strategy: str, seed: int) -> None:
        if strategy not in shared_out(EVERY[name]):
            with pytest.raises(StrategyError, match=NOT_BY_HAND[name][0]):
                captured(name, seed).batched(strategy)
            return
        made, request = captured(name, seed), Request(strategy)
        want, got = made.result(Request("loop")), made.result(request)
        assert_alive(made, Request("loop"), want)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)
        found = pb.audit(made.batched(strategy), probe=False)
        assert found.is_independent, str(found)
        assert {verdict.how for verdict in found.leaves.values()} == {"proved"}


class TestNewOperations:
    @pytest.mark.parametrize("name", EXACT)
    def test_published_rule_is_exact(self, name: str, seed: int) -> None:
        """One layer without recurrent weights: D_RTRL in windows is the gradient of the whole sequence."""
        made, exact = captured(name, seed, pb.D_RTRL(rule="published")), captured(name, seed, pb.BPTT())
        got, want = made.result(Request("manual")), exact.result(Request("vmap", window=None))
        assert_alive(made, Request("manual"), got)
        assert_close(got.gradients, want.gradients, "exact")

    def test_a_jitted_step_is_the_plain_one(self, seed: int) -> None:
        """What BrainScale refuses is opened before it looks."""
        jitted, plain = (captured(f"model `{name}`", seed) for name in ("Jitted", "Opened"))
        want, got = plain.result(Request("manual")), jitted.result(Request("manual"))
        assert_alive(plain, Request("manual"), want)
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)


class TestAudit:
    @pytest.mark.parametrize("strategy", ["vmap", "manual"])
    @pytest.mark.parametrize("name", [name for name in EVERY if name not in MODELS])
    def test_decides_by_proof(self, name: str, strategy: str, seed: int) -> None:
        if strategy in EVERY[name].strategies:
            found = pb.audit(captured(name, seed).batched(strategy), probe=False)
            assert {verdict.how for verdict in found.leaves.values()} == {"proved"}
            assert found.is_independent, str(found)


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSED)
    def test_says_why_and_what_to_change(self, name: str, seed: int) -> None:
        with pytest.raises(REFUSED[name].error, match="(?s)^" + REFUSED[name].text):
            REFUSED[name].capture(seed)

    @pytest.mark.parametrize("name", [name for name in NOT_BY_HAND if name in LAYERS])
    def test_by_hand(self, name: str, seed: int) -> None:
        with pytest.raises(StrategyError, match=f"(?s)({NOT_BY_HAND[name][0]}).*pb\\.vmap"):
            pb.manual(captured(name, seed).learner, SAMPLES)

    def test_every_missing_strategy_has_a_reason(self) -> None:
        assert {model.name for model in EVERY.values() if "manual" not in model.strategies} == set(NOT_BY_HAND)


def test_no_layer_is_left_out() -> None:
    shown = {layer for layers in SHOWN.values() for layer in layers}
    assert offered() <= {*shown, *LAYERS, *REFUSED}
