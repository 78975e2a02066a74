"""Batch algebra commutes with stepping, loses nothing, and says what does not fit."""

from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import pure_batching as pb
from pure_batching.errors import BatchSizeError, OptionError, StructureError

from .bench import REPRESENTATIVES, SAMPLES, Bench, Request, bench
from .trees import assert_close, assert_identical, assert_not_identical, sample

ORDER = [2, 0, 1]
every_representative = pytest.mark.parametrize("name", REPRESENTATIVES)


def after(made: Bench, window: int = 3) -> pb.Carry:
    """The carry of a batch in the middle of its life: states and traces of all samples differ."""
    return made.result(Request("vmap", window=window)).aux.carry


@every_representative
class TestInverses:
    def test_unstack_stack(self, name: str, seed: int) -> None:
        carry = after(bench(name, seed))
        assert_identical(pb.stack(pb.unstack(carry)), carry)

    def test_split_concat(self, name: str, seed: int) -> None:
        carry = after(bench(name, seed))
        assert_identical(pb.concat(pb.split(carry, [1, 2])), carry)

    def test_gather_scatter(self, name: str, seed: int) -> None:
        carry = after(bench(name, seed))
        fresh = bench(name, seed).start("vmap")._replace(shared=carry.shared)
        assert_not_identical(fresh, carry)
        for before in (fresh, carry):
            assert_identical(pb.scatter(before, ORDER, pb.gather(carry, ORDER)), carry)

    def test_permute_and_back(self, name: str, seed: int) -> None:
        carry = after(bench(name, seed))
        permuted = pb.permute(carry, ORDER)
        assert_not_identical(permuted, carry)
        assert_identical(pb.unstack(permuted), [pb.unstack(carry)[i] for i in ORDER])
        assert_identical(pb.permute(permuted, np.argsort(ORDER)), carry)

    def test_under_jit(self, name: str, seed: int) -> None:
        carry = after(bench(name, seed))

        def all_of_them(carry: pb.Carry, order: jax.Array) -> Any:
            first, rest = pb.split(carry, [1, 2])
            ones, turned = pb.unstack(carry), pb.permute(carry, order)
            chosen = pb.gather(carry, order[:2])
            return pb.stack(ones), pb.concat([rest, first]), turned, chosen, pb.scatter(carry, order[1:], chosen)

        order = jnp.asarray(ORDER)
        assert_identical(jax.jit(all_of_them)(carry, order), all_of_them(carry, order))


@every_representative
class TestCommutes:
    def test_gather_then_step(self, name: str, seed: int) -> None:
        """Two samples gathered out of three go on as they would have gone on among the three."""
        made, chosen = bench(name, seed), [2, 0]
        inputs, _ = sample(made.data(6, SAMPLES), 0)
        whole, _ = made.batched("vmap").step(made.params, after(made), *inputs)
        part, _ = made.batched("vmap", 2).step(
            made.params, pb.gather(after(made), chosen), *sample(inputs, np.array(chosen))
        )
        assert_close(part, pb.gather(whole, chosen))

    def test_unstacked_steps(self, name: str, seed: int) -> None:
        made = bench(name, seed)
        inputs, _ = sample(made.data(6, SAMPLES), 0)
        whole, _ = made.batched("manual").step(made.params, after(made), *inputs)
        alone = [
            made.learner.step(made.params, one, *sample(inputs, i))[0] for i, one in enumerate(pb.unstack(after(made)))
        ]
        assert_close(pb.stack(alone), whole)


class TestDevices:
    """Carries that were put on different devices meet on those of the first."""

    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
    def test_a_sample_comes_from_another(self, kind: AxisType, seed: int) -> None:
        mesh = jax.make_mesh((2,), ("b",), axis_types=(kind,), devices=jax.devices()[:2])
        learner = bench("tutorial", seed).learner
        whole = pb.vmap(learner, 4).init(jax.random.key(1))
        sample = pb.stack([learner.init(jax.random.key(2))])
        spread, other = jax.device_put(whole, NamedSharding(mesh, P("b"))), jax.device_put(sample, jax.devices()[5])
        on_mesh, on_one = {*jax.devices()[:2]}, {jax.devices()[5]}
        for got, want, devices in (
            (pb.scatter(spread, [1], other), pb.scatter(whole, [1], sample), on_mesh),
            (pb.concat([spread, other]), pb.concat([whole, sample]), on_mesh),
            (pb.concat([other, spread]), pb.concat([sample, whole]), on_one),
            (pb.concat([sample, other]), pb.concat([sample, sample]), on_one),
        ):
            assert all(leaf.devices() == devices for leaf in jax.tree.leaves(got))
            assert_identical(got, want)


class TestErrors:
    def test_carry_of_one_sample(self, seed: int) -> None:
        with pytest.raises(BatchSizeError, match=r"carry: got the carry of one sample.*pb.stack"):
            pb.unstack(bench("LSTMCell", seed).learner.init())

    def test_sizes(self, seed: int) -> None:
        with pytest.raises(BatchSizeError, match=r"sizes: got \[1, 1\], expected sizes >= 1 that add up to 3"):
            pb.split(after(bench("LSTMCell", seed)), [1, 1])

    @pytest.mark.parametrize("indices", [[0, 3], [-1]])
    def test_no_sample(self, indices: list[int], seed: int) -> None:
        with pytest.raises(OptionError, match=r"pb.gather: got \[.*\], expected indices from 0 to 2"):
            pb.gather(after(bench("LSTMCell", seed)), indices)

    def test_scattered_twice(self, seed: int) -> None:
        carry = after(bench("LSTMCell", seed))
        with pytest.raises(OptionError, match=r"pb.scatter: got \[1, 1\], expected each sample once"):
            pb.scatter(carry, [1, 1], pb.gather(carry, [0, 2]))

    def test_too_few_samples(self, seed: int) -> None:
        carry = after(bench("LSTMCell", seed))
        with pytest.raises(BatchSizeError, match=r"samples: got 1 samples, expected 2"):
            pb.scatter(carry, [0, 1], pb.gather(carry, [2]))

    def test_half_an_order(self, seed: int) -> None:
        with pytest.raises(OptionError, match=r"order: got 2 indices, expected 3"):
            pb.permute(after(bench("LSTMCell", seed)), [0, 1])

    def test_floats(self, seed: int) -> None:
        with pytest.raises(OptionError, match=r"pb.gather: got indices float64\[1\], expected integers \[N\]"):
            pb.gather(after(bench("LSTMCell", seed)), [0.5])

    @pytest.mark.parametrize("index", [1, np.int64(1), jnp.int32(1)])
    def test_one_index(self, index: Any, seed: int) -> None:
        with pytest.raises(OptionError, match=r"pb.gather: got one index 1, expected integers \[N\]. Pass a list"):
            pb.gather(after(bench("LSTMCell", seed)), index)

    def test_nothing(self) -> None:
        with pytest.raises(StructureError, match=r"pb.concat: got no carries"):
            pb.concat([])

    def test_other_learner(self, seed: int) -> None:
        with pytest.raises(StructureError, match=r"carries\[1\].*got a leaf of carries\[0\] alone, expected the same"):
            pb.concat([after(bench("LSTMCell", seed)), after(bench("tutorial", seed))])

    def test_other_moment(self, seed: int) -> None:
        """A delay's write pointer is the same for all samples of a batch."""
        made = bench("delayed", seed)
        with pytest.raises(
            StructureError,
            match=r"carries\[1\]\.shared.*write_ptr.*give each carry its own with pb\.apart",
        ):
            pb.concat([after(made), made.start("vmap")])

    def test_batches_on_top_of_each_other(self, seed: int) -> None:
        with pytest.raises(BatchSizeError, match=r"carries\[0\]: got the carry of 3 samples in a batch, .* pb\.concat"):
            pb.stack([bench("tutorial", seed).start("vmap")])

    def test_a_batch_and_a_sample(self, seed: int) -> None:
        made = bench("tutorial", seed)
        batch, one = made.start("vmap"), made.start(None)
        needs_a_batch = "got the carry of one sample, expected the carry of a batch. .*pb.stack"
        for name, call in {
            r"carries\[1\]": lambda: pb.concat([batch, one]),
            "samples": lambda: pb.scatter(batch, [0], one),
            "carry": lambda: pb.scatter(one, [0], batch),
        }.items():
            with pytest.raises(BatchSizeError, match=f"^{name}: {needs_a_batch}"):
                call()
        with pytest.raises(BatchSizeError, match=r"carries\[1\]: got the carry of 3 samples .* pb\.unstack"):
            pb.stack([one, batch])

    def test_samples_that_share_and_samples_that_do_not(self, seed: int) -> None:
        together = bench("delayed", seed).start("vmap")
        apart = pb.apart(together)
        share, have = "samples that share their past.write_ptr", "samples that have a past.write_ptr each"
        for carries, got, want in (([together, apart], have, share), ([apart, together], share, have)):
            text = rf"carries\[1\]: got {got}, expected {want}, as in carries\[0\]. Apply pb\.apart to each"
            with pytest.raises(StructureError, match=text):
                pb.concat(carries)
        pb.concat([apart, pb.apart(together)])

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            (lambda x: x.astype(np.float32), r"got float32\[7\] mV, expected float64\[7\] mV, as in carries\[0\]"),
            (u.get_mantissa, r"got float64\[7\], expected float64\[7\] mV"),
            (lambda x: x[:, :2], r"got float64\[2\] mV, expected float64\[7\] mV"),
            (lambda x: x[:2], r"got shape \(2, 7\), expected \(B=3, \.\.\.\)"),
        ],
    )
    def test_another_kind_of_leaf(self, change: Any, text: str, seed: int) -> None:
        carry = bench("tutorial", seed).start("vmap")
        other = carry._replace(hidden={**carry.hidden, "neu.V": change(carry.hidden["neu.V"])})
        with pytest.raises(pb.PureBatchingError, match=rf"^carries\[1\]\.hidden\['neu\.V'\]: {text}"):
            pb.concat([carry, other])

    def test_arrays_of_numpy(self, seed: int) -> None:
        """As they come out of a file."""
        carry = after(bench("tutorial", seed))
        loaded = jax.tree.map(np.asarray, carry)
        assert_identical(pb.scatter(loaded, ORDER, pb.gather(loaded, ORDER)), carry)

    @pytest.mark.parametrize("call", [pb.stack, pb.concat])
    def test_one_carry(self, call: Any, seed: int) -> None:
        with pytest.raises(StructureError, match=r"got one carry, expected a list of carries"):
            call(bench("tutorial", seed).start("vmap"))

    @pytest.mark.parametrize("call", [lambda aux: pb.gather(aux, [0]), lambda aux: pb.concat([aux])])
    def test_what_a_carry_came_with(self, call: Any, seed: int) -> None:
        with pytest.raises(StructureError, match=r"got Aux, expected a Carry\. .*aux\.carry"):
            call(bench("tutorial", seed).result(Request("vmap")).aux)

    @pytest.mark.parametrize(
        "call",
        [
            lambda one, _: pb.stack(one.update_count),
            lambda one, _: pb.concat(3),
            lambda one, _: pb.concat([one, one]),
            lambda _, many: pb.split(many, [1.0, 2.0]),
            lambda _, many: pb.gather(many, None),
            lambda _, many: pb.gather(many, slice(0, 2)),
            lambda _, many: pb.permute(many, "012"),
            lambda _, many: pb.gather(many, [2**70]),
            lambda _, many: pb.gather(many._replace(hidden=3), [0]),
            lambda _, many: pb.gather(many._replace(update_count=None), [0]),
            lambda _, many: pb.gather(many._replace(update_count=1.0 * many.update_count), [0]),
            lambda _, many: pb.concat([many, many._replace(other=None)]),
            lambda _, many: pb.split(many, [[1], [1, 1]]),
            lambda _, many: pb.split(many, None),
            lambda _, many: pb.apart(many.hidden),
            lambda _, many: pb.apart(many._replace(other=3)),
        ],
    )
    def test_what_is_nothing_of_the_kind(self, call: Any, seed: int) -> None:
        made = bench("LSTMCell", seed)
        with pytest.raises(pb.PureBatchingError, match=r"got .*, expected"):
            call(made.start(None), made.start("vmap"))
