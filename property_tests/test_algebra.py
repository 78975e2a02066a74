"""Batch algebra on carries in the middle of a training: taken apart and put together, nothing is lost."""

import functools
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

import pure_batching as pb
from pure_batching.testing._compare import first_difference
from pure_batching.testing.strategies import carries, partitions, permutations

from .subjects import GATED, RECURRENT_SPIKES, Entry, grouped, subject

SAMPLES = 4
ENTRIES = (Entry(GATED, pb.ES_D_RTRL(5, rule="published")), Entry(RECURRENT_SPIKES, pb.D_RTRL()))


def assert_same_bits(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert first_difference(got, want, lambda _: "nothing") is None


@functools.cache
def batched(entry: Entry) -> pb.Learner:
    return pb.vmap(subject(entry).learner, SAMPLES)


@pytest.mark.parametrize("entry", [*map(grouped, ENTRIES)])
class TestCarries:
    def test_there_and_back(self, entry: Entry) -> None:
        @given(carries(batched(entry), subject(entry).params), partitions(SAMPLES), permutations(SAMPLES))
        def holds(carry: pb.Carry, sizes: list[int], order: list[int]) -> None:
            assert_same_bits(pb.stack(pb.unstack(carry)), carry)
            assert_same_bits(pb.concat(pb.split(carry, sizes)), carry)
            assert_same_bits(pb.permute(pb.permute(carry, order), np.argsort(order)), carry)
            chosen = order[: sizes[0]]
            assert_same_bits(pb.scatter(carry, chosen, pb.gather(carry, chosen)), carry)

        holds()

    def test_parts_go_on_as_the_whole(self, entry: Entry) -> None:
        """A step of the permuted batch is the permuted step."""

        @given(carries(batched(entry), subject(entry).params), permutations(SAMPLES), st.integers(0, 2**32 - 1))
        def holds(carry: pb.Carry, order: list[int], seed: int) -> None:
            inputs = jax.tree.map(lambda x: x[0], entry.net.data(seed, 1, SAMPLES).inputs)
            params, rows = subject(entry).params, np.array(order)
            after, output = batched(entry).step(params, carry, *inputs)
            turned = batched(entry).step(params, pb.permute(carry, order), *jax.tree.map(lambda x: x[rows], inputs))
            assert_same_bits(turned, (pb.permute(after, order), jax.tree.map(lambda x: x[rows], output)))

        holds()
