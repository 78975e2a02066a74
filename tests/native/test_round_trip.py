"""A training begun in BrainScale goes on here, and the other way round."""

import functools

import jax
import jax.numpy as jnp
import pytest

import pure_batching as pb

from ..alive import assert_gradients_alive, assert_moving, assert_traces_alive
from ..bench import SAMPLES, STEPS, Bench, Data, Request, bench
from ..trees import assert_close, assert_identical, assert_not_identical, slice_time
from .brainscale_runs import Native, es_d_rtrl, manual, mapped, one_sample

MODES = {None: one_sample, "manual": manual, "vmap": mapped}

# One for each way of keeping states: recurrent spikes, several states, a shared pointer and a moved axis, units, a
# counter, columns of one state.
MODELS = ("tutorial", "lif", "LSTMCell", "delayed", "trees", "counting")

HALF = STEPS // 2

every_mode = pytest.mark.parametrize("mode", MODES)
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def compiled(name: str, mode: str | None, seed: int) -> Native:
    """A compiled algorithm, made once and restarted by each test."""
    return MODES[mode](name, seed, es_d_rtrl)


def halves(made: Bench, request: Request) -> tuple[Data, Data]:
    """The first steps and the others."""
    data = made.data(*request.lead)
    return slice_time(data, 0, HALF), slice_time(data, HALF, STEPS)


@every_mode
@every_model
class TestRoundTrip:
    def test_begun_there(self, name: str, mode: str | None, seed: int) -> None:
        """Some steps in BrainScale, then the rest in both."""
        made, request, native = (
            bench(name, seed),
            Request(mode, "sum", window=2, steps=STEPS),
            compiled(name, mode, seed),
        )
        first, rest = halves(made, request)
        native.restart()
        native.run(first)
        carry = pb.from_native(made.batched(mode), native.algorithm)
        assert_traces_alive(carry.trace)
        assert_moving(carry.hidden)
        assert (carry.update_count == HALF).all()
        gradients, losses, outputs = native.run(rest)
        assert_gradients_alive(gradients)
        got = made.run(request, carry, rest)
        assert_close(got.gradients, gradients, "native")
        assert_close(got.aux, pb.Aux(pb.from_native(made.batched(mode), native.algorithm), losses, outputs), "native")

    def test_begun_here(self, name: str, mode: str | None, seed: int) -> None:
        """Some steps here, then the rest in both."""
        made, request, native = (
            bench(name, seed),
            Request(mode, "sum", window=2, steps=STEPS),
            compiled(name, mode, seed),
        )
        first, rest = halves(made, request)
        half = made.run(request, None, first)
        native.restart()
        pb.to_native(made.batched(mode), half.aux.carry, native.algorithm)
        gradients, losses, outputs = native.run(rest)
        got = made.run(request, half.aux.carry, rest)
        assert_gradients_alive(got.gradients)
        assert_close(got.gradients, gradients, "native")
        assert_close(got.aux, pb.Aux(pb.from_native(made.batched(mode), native.algorithm), losses, outputs), "native")

    def test_nothing_is_lost(self, name: str, mode: str | None, seed: int) -> None:
        """There and back, bit for bit; and the module's other states, weights among them, stay."""
        made, native = bench(name, seed), compiled(name, mode, seed)
        native.restart()
        learner, before = made.batched(mode), pb.read_states(native.net)
        carry = made.run(Request(mode, "sum"), None, made.data(*Request(mode).lead)).aux.carry
        pb.to_native(learner, carry, native.algorithm)
        assert_identical(pb.from_native(learner, native.algorithm), carry)
        after = pb.read_states(native.net)
        assert_not_identical({p: after[p] for p in carry.hidden}, {p: before[p] for p in carry.hidden})
        assert_identical({p: after[p] for p in made.params}, {p: before[p] for p in made.params})
        native.restart()
        assert_identical(pb.read_states(native.net), before)
        pb.write_states(native.net, after)
        assert_identical(pb.read_states(native.net), after)


class TestSwap:
    @pytest.mark.parametrize("name", ["tutorial", "LSTMCell"])
    def test_from_one_mode_to_the_other(self, name: str, seed: int) -> None:
        """BrainScale's manual batch, handed to its mapped batch."""
        made, (first, rest) = bench(name, seed), halves(bench(name, seed), Request("vmap"))
        here, there = compiled(name, "manual", seed), compiled(name, "vmap", seed)
        here.restart()
        here.run(first)
        carry = pb.from_native(made.batched("manual"), here.algorithm)
        pb.to_native(made.batched("vmap"), carry, there.algorithm)
        want, got = here.run(rest), there.run(rest)
        assert_gradients_alive(want[0])
        assert_close(got, want, "native")

    def test_samples_into_a_batch(self, seed: int) -> None:
        """One sample's training, continued as every sample of a batch."""
        made, native = bench("LSTMCell", seed), compiled("LSTMCell", None, seed)
        first, rest = halves(made, Request(None))
        native.restart()
        native.run(first)
        alone = pb.from_native(made.learner, native.algorithm)
        carry = jax.tree.map(lambda x: jnp.stack([x] * SAMPLES), alone)
        batch = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * SAMPLES, 1), rest)
        got = made.run(Request("vmap", "mean"), carry, batch)
        gradients, losses, _ = native.run(rest)
        assert_close(got.gradients, gradients, "native")
        assert_close(got.aux.losses[:, 1], losses, "native")
