"""`check_finite` finds the sample and the step of what is not finite, and what is not finite stays in its sample."""

from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import pure_batching as pb
from pure_batching.errors import NonFiniteError, StructureError

from . import around
from .bench import ONLINE_RULES, RULES, SAMPLES, STEPS, STRATEGIES, Request, bench
from .trees import assert_identical, named, sample

Tree = Any

# A module with a traced weight, one that learns by the gradient of the step, and an ordinary one.
MODEL = "readouts"
BROKEN, STEP = 1, 4


def found(tree: Tree, axes: str = "", **names: str) -> NonFiniteError:
    """The error of a tree."""
    with pytest.raises(NonFiniteError) as caught:
        pb.check_finite(tree, axes, **names)
    return caught.value


class TestPlaces:
    """Where a number stands that is not finite; the texts are among the refusals."""

    def test_what_is_finite_comes_back(self) -> None:
        made = bench("tutorial", 0)
        gradients, aux = made.grad_fn(Request())(made.params, None, *made.data(STEPS, SAMPLES))
        for tree, axes in ((aux, ""), ((gradients, aux), ""), (gradients, "B"), (aux.losses, "TB"), (aux.carry, "")):
            assert pb.check_finite(tree, axes) is tree

    def test_what_has_no_such_numbers(self) -> None:
        keys = {"typed": jax.random.key(0), "raw": jax.random.PRNGKey(0)}
        tree = (keys, jnp.arange(3), np.array([True]), None, 7, np.zeros((0, 3)), jnp.zeros((2, 0)), [])
        assert pb.check_finite(tree) is tree

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
    def test_every_type(self, dtype: str) -> None:
        fine = jnp.ones((3, 2), dtype)
        assert pb.check_finite(fine, "B") is fine
        assert found(fine.at[2, 1].set(jnp.nan), "B").sample == 2
        assert "an infinity in sample 1" in str(found(fine.at[1, 0].set(-jnp.inf), "B"))

    def test_large_numbers_of_numpy(self) -> None:
        """Where JAX has 32 bits, a number of 64 is not taken for infinity."""
        with jax.enable_x64(new_val=False):
            pb.check_finite({"a": np.array([1e300])})

    @pytest.mark.parametrize("axes", ["", "T", "B", "TB"])
    def test_the_axes(self, axes: str) -> None:
        array = np.zeros((5, 4, 3))
        array[3:, 2:, 1] = np.inf
        error = found(u.Quantity(array, unit=u.mV), axes, name="currents")
        first = dict(zip(axes, (3, 2), strict=False))
        assert (error.where, error.step, error.sample) == ("currents", first.get("T"), first.get("B"))

    def test_carries_and_results_anywhere_in_a_tree(self) -> None:
        learner, params = around.captured(RULES["ES_D_RTRL"])
        inputs, targets = around.data()
        inputs, key = inputs.at[6, 3].set(jnp.nan), jax.random.key(0)
        alone = pb.sequence_grad(learner, around.loss)(params, None, inputs[:, 3], targets[:, 3], key=key)
        batched = pb.vmap(learner, around.SAMPLES)
        results = {
            "alone": alone,
            "batched": pb.sequence_grad(batched, around.loss, outputs=True)(params, None, inputs, targets, key=key),
            "norms": pb.sample_norms(batched, around.loss)(params, None, inputs, targets, key=key),
            "clipped": pb.clipped_grad(batched, around.loss, 1.0)(params, None, inputs, targets, key=key),
        }
        for name, result in results.items():
            error = found(result)
            assert (error.where, error.step) == ("tree[1].losses", 6)
            assert error.sample == (None if name == "alone" else 3)
            assert found([result[1].carry]).where == "tree[0].hidden['state.h']"
            assert found([result[1].carry]).sample == error.sample
        later = results["clipped"][1]._replace(losses=jnp.zeros((around.STEPS, around.SAMPLES)))
        assert found(later, name="found").where == "found.carry.hidden['state.h']"
        assert found(results["norms"][0], "B").sample == 3

    def test_samples_on_several_devices(self) -> None:
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((2,), ("b",), axis_types=(kind,), devices=jax.devices()[:2])
            losses = jax.device_put(jnp.zeros((3, 4)).at[2, 3].set(jnp.nan), NamedSharding(mesh, P(None, "b")))
            error = found(losses, "TB")
            assert (error.step, error.sample) == (2, 3)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", ONLINE_RULES)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf], ids=str)
def test_it_stays_in_its_sample(rule: str, strategy: str, poison: float) -> None:
    """In the carry, the losses, the outputs and the gradients of the others no bit changes, and the check names it."""
    made, request = bench(MODEL, 0, RULES[rule]), Request(strategy)
    data, want = made.data(STEPS, SAMPLES), made.result(request)
    inputs = jax.tree.map(lambda x: jnp.asarray(x).at[STEP, BROKEN].set(poison), data.inputs)
    got = made.run(request, None, data._replace(inputs=inputs))
    for i in (i for i in range(SAMPLES) if i != BROKEN):
        assert_identical(sample(got.gradients, i), sample(want.gradients, i))
        assert_identical(pb.unstack(got.aux.carry)[i], pb.unstack(want.aux.carry)[i])
        assert_identical(sample(got.aux[1:], i, 1), sample(want.aux[1:], i, 1))
    assert_identical(got.aux.losses[:STEP], want.aux.losses[:STEP])
    assert pb.check_finite(want.aux) is want.aux
    for error in (found(got.aux), found(got.aux.losses, "TB", name="losses")):
        assert (error.sample, error.step) == (BROKEN, STEP)
    for error in (found(got.aux.carry), found(got.gradients, "B")):
        assert (error.sample, error.step) == (BROKEN, None)
    broken = {name for name, leaf in named(got.gradients) if not np.isfinite(leaf).all()}
    assert broken == {name for name, _ in named(want.gradients)}


class TestSlots:
    """In a table of slots, the session is named, whatever slot it lies in."""

    @staticmethod
    def spoilt() -> Any:
        """Slots, and a table after a step in which the session 42 was given what is no number."""
        made = bench(MODEL, 0)
        slots = pb.Slots(made.learner, 3)
        table = slots.admit(slots.admit(slots.empty(), -7), 42)
        inputs = jax.tree.map(lambda x: np.array(x[0, :2]), made.data(STEPS, SAMPLES)[0])
        jax.tree.leaves(inputs)[0][0] = np.nan
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        return made, slots, table, inputs

    def test_the_session_is_named(self) -> None:
        made, slots, table, inputs = self.spoilt()
        assert pb.check_finite(table) is table
        table, outputs = slots.step(made.params, table, [42, -7], *inputs)
        error = found((table, outputs), name="step")
        assert (error.session, error.sample, error.step) == (42, 1, None)
        assert str(error).startswith("step[0].carry.hidden[")
        assert "got NaN in session 42, slot 1, expected finite numbers" in str(error)
        left = slots.evict(table, [42])
        assert pb.check_finite(left) is left

    def test_what_comes_with_a_gradient(self) -> None:
        made, slots, table, inputs = self.spoilt()
        targets = jax.tree.map(lambda x: x[0, :2], made.data(STEPS, SAMPLES)[1])
        _, aux = slots.gradient(made.params, table, [42, -7], inputs, targets, loss=made.model.loss)
        assert "aux.table.carry." in str(found(aux))
        error = found(aux._replace(table=table))
        assert (error.where, error.sample, error.session) == ("aux.losses", 0, None)

    def test_a_vacant_slot(self) -> None:
        _, _, table, _ = self.spoilt()
        carry = jax.tree.map(lambda x: x.at[2].set(np.nan) if x.dtype == "float64" else x, table.carry)
        assert "got NaN in the vacant slot 2, expected" in str(found(table._replace(carry=carry)))

    def test_a_table_whose_ids_are_those_of_other_slots(self) -> None:
        _, _, table, _ = self.spoilt()
        with pytest.raises(StructureError, match=r"^table\.ids: got int32\[2\], expected int32\[C=3\]"):
            pb.check_finite(table._replace(ids=table.ids[:2]))
