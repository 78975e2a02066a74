"""BrainScale's two batching modes, against our two strategies."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

import pure_batching as pb

from ..alive import assert_alive, assert_gradients_alive
from ..bench import BATCHED_RUNS, SAMPLES, STEPS, Data, Request, bench
from ..models import MODELS
from ..trees import assert_close, assert_some_differ, sample
from .brainscale_runs import BATCHED, Make, d_rtrl, es_d_rtrl

# What BrainScale's modes raise, and why.
CANNOT = {
    "ValinaRNNCell": (KeyError, "Var"),  # fault 11: it looks for a path from h to h that does not exist
}

D_CANNOT_MANUAL = {
    "LRUCell": (NotImplementedError, None),  # fault 2: element-wise weights
    "conv_rates": (Exception, None),  # fault 2: the operation is not mapped over samples
}

RUNS = [(name, mode) for name, mode in BATCHED_RUNS if MODELS[name].native and name not in CANNOT]

# D_RTRL on products with matrices, where nothing but the normalisation is at stake.
MATRICES = ("tutorial", "LSTMCell", "MinimalRNNCell")


@functools.cache
def in_one_batch(name: str, mode: str, make: Make, seed: int) -> tuple[Any, Any]:
    """The gradients, losses and outputs of BrainScale's mode, and where it ended."""
    made = bench(name, seed)
    native = BATCHED[mode](made, make)
    pb.write_states(native.net, made.start("loop").hidden)
    return native.run(made.data(STEPS, SAMPLES)), native.algorithm


class TestInputOutputTraces:
    @pytest.mark.parametrize(("name", "mode"), RUNS)
    def test_equals_the_strategy(self, name: str, mode: str, seed: int) -> None:
        """Summed gradients, losses, outputs, and the carry."""
        made, request = bench(name, seed), Request(mode, "sum")
        (gradients, losses, outputs), algorithm = in_one_batch(name, mode, es_d_rtrl, seed)
        want = pb.Aux(pb.from_native(made.batched(mode), algorithm), losses, outputs)
        got = made.result(request)
        assert_alive(made, request, got)
        assert_close(got.gradients, gradients, "native")
        assert_close(got.aux, want, "native")

    @pytest.mark.parametrize("mode", BATCHED)
    @pytest.mark.parametrize("name", CANNOT)
    def test_what_it_cannot_run(self, name: str, mode: str, seed: int) -> None:
        error, text = CANNOT[name]
        with pytest.raises(error, match=text):
            in_one_batch(name, mode, es_d_rtrl, seed)
        assert_gradients_alive(bench(name, seed).result(Request(mode)).gradients)


class TestParameterTraces:
    @pytest.mark.parametrize("name", MATRICES)
    def test_vmap_equals_the_strategy(self, name: str, seed: int) -> None:
        made = bench(name, seed, pb.D_RTRL())
        (gradients, losses, outputs), _ = in_one_batch(name, "vmap", d_rtrl, seed)
        got = made.result(Request("vmap", "sum"))
        assert_alive(made, Request("vmap"), got)
        assert_close(got.gradients, gradients, "native")
        assert_close((got.aux.losses, got.aux.outputs), (losses, outputs), "native")

    @pytest.mark.parametrize("name", MATRICES)
    def test_manual_has_other_gradients(self, name: str, seed: int) -> None:
        """Fault 1: it divides by the largest entry of the batch. Ours belongs to the sample."""
        made = bench(name, seed, pb.D_RTRL())
        (gradients, losses, outputs), _ = in_one_batch(name, "manual", d_rtrl, seed)
        got = made.result(Request("manual", "sum"))
        assert_close((got.aux.losses, got.aux.outputs), (losses, outputs), "native")
        assert_some_differ(got.gradients, gradients)
        assert_close(got.gradients, made.result(Request("vmap", "sum")).gradients)

    def test_manual_couples_samples(self, seed: int) -> None:
        """Fault 1, seen from a sample whose loss alone counts, while the other samples' inputs grow."""
        made = bench("MinimalRNNCell", seed, pb.D_RTRL())
        native = BATCHED["manual"](made, d_rtrl)
        (inputs,), targets = made.data(STEPS, SAMPLES)
        alone = jax.tree.map(lambda x: np.where(np.arange(SAMPLES)[:, None] == 0, x, 10 * x), inputs)
        outputs, of_first = [], []
        for given in (inputs, alone):
            native.restart()
            _, _, output = native.run(Data((given,), targets))
            outputs.append(sample(output, 0, axis=1))
            of_first.append({k: sample(t, 0) for k, t in trace_of(native.algorithm).items()})
        assert_close(outputs[0], outputs[1])
        assert_some_differ(of_first[0]["phi"], of_first[1]["phi"])
        carries = [made.run(Request("manual"), None, ((given,), targets)).aux.carry for given in (inputs, alone)]
        assert_close(sample(carries[0].trace, 0), sample(carries[1].trace, 0))

    @pytest.mark.parametrize("name", D_CANNOT_MANUAL)
    def test_what_manual_cannot_run(self, name: str, seed: int) -> None:
        error, text = D_CANNOT_MANUAL[name]
        with pytest.raises(error, match=text):
            in_one_batch(name, "manual", d_rtrl, seed)
        assert_gradients_alive(bench(name, seed, pb.D_RTRL()).result(Request("manual")).gradients)


def trace_of(algorithm: Any) -> dict[str, Any]:
    """D_RTRL's traces by the first word of the weight's path."""
    return {key[0][0]: state.value for key, state in algorithm.etrace_bwg.items()}
