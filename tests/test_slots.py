"""Sessions in slots are samples alone, whichever come, go and make a step; and one program runs them."""

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import pure_batching as pb
from pure_batching.errors import BatchSizeError, CarryError, SlotError

from .alive import assert_gradients_alive, assert_moving
from .bench import REPRESENTATIVE_RUNS, RULES, STRATEGIES, Bench, bench
from .trees import assert_close, assert_differ, assert_identical, assert_not_identical, joined, sample

CAPACITY, STEPS = 4, 5
OPTIMIZER = optax.adam(1e-2)

# Who makes each step: all orders, comings and goings; session 9 leaves after the third step, and 4 takes its slot.
SCHEDULE = ([9], [-7, 9], [2_000_000_000, -7, 9], [4, -7], [2_000_000_000, 4])

COMPILED: list[tuple[str, str | None]] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **known: COMPILED.append((event, known.get("fun_name")))
)


def programs() -> int:
    """How many programs were compiled so far."""
    return sum(event.endswith("backend_compile_duration") for event, _ in COMPILED)


def programs_of_slots() -> int:
    """How many of them are functions of a learner."""
    return sum(event.endswith("backend_compile_duration") and name == "jit(run)" for event, name in COMPILED)


@functools.cache
def slots_of(made: Bench, strategy: str = "vmap", capacity: int = CAPACITY) -> pb.Slots:
    return pb.Slots(made.learner, capacity, STRATEGIES[strategy])


def data_of(made: Bench) -> tuple[Any, Any]:
    """Inputs and targets `[T, C, ...]` of a step each; session `ids[k]` of a step takes row `k`."""
    return made.data(STEPS, CAPACITY)


def rows(tree: Any, t: int, number: int) -> Any:
    return jax.tree.map(lambda x: x[t, :number], tree)


def walked(made: Bench, slots: pb.Slots) -> Iterator[tuple[list[int], pb.SlotTable, Any]]:
    """The table and the outputs after each step of the schedule."""
    table = slots.empty()
    for t, ids in enumerate(SCHEDULE):
        for one in ids:
            if one not in np.asarray(table.ids)[np.asarray(table.occupied)]:
                table = slots.admit(table, one, jax.random.key(abs(one)))
        table, outputs = slots.step(made.params, table, ids, *rows(data_of(made)[0], t, len(ids)))
        yield ids, table, outputs
        if t == 2:
            table = slots.evict(table, [9])


def alone(made: Bench, name: int) -> tuple[pb.Carry, list[Any]]:
    """A session by itself, and its outputs."""
    carry, outputs = pb.apart(made.learner.init(jax.random.key(abs(name)))), []
    for t, ids in enumerate(SCHEDULE):
        if name in ids:
            own = sample(rows(data_of(made)[0], t, CAPACITY), ids.index(name))
            carry, output = made.learner.step(made.params, carry, *own)
            outputs.append(output)
    return carry, outputs


def after(made: Bench, slots: pb.Slots) -> pb.SlotTable:
    """The table at the end of the schedule."""
    *_, (_, table, _) = walked(made, slots)
    return table


@pytest.mark.parametrize(
    ("name", "strategy"), [*REPRESENTATIVE_RUNS, ("noisy", "vmap"), ("noisy", "loop"), ("random_start", "vmap")]
)
def test_a_session_is_a_sample_alone(name: str, strategy: str, seed: int) -> None:
    made = bench(name, seed)
    slots, seen = slots_of(made, strategy), {}
    table = slots.empty()
    for ids, table, outputs in walked(made, slots):
        for k, one in enumerate(ids):
            seen.setdefault(one, []).append(sample(outputs, k))
            last = slots.snapshot(table, one)
            if len(seen[one]) == sum(one in step for step in SCHEDULE):
                carry, want = alone(made, one)
                assert_moving(carry.hidden)
                assert_close(last, carry)
                assert_close(joined(seen[one]), joined(want))
    assert set(seen) == {9, -7, 2_000_000_000, 4}
    assert table.ids.tolist() == [4, -7, 2_000_000_000, 0]
    assert table.occupied.tolist() == [True, True, True, False]


def gradient(made: Bench, table: pb.SlotTable, ids: list[int], slots: pb.Slots, t: int = 0) -> Any:
    inputs, targets = rows(data_of(made), t, len(ids))
    return slots.gradient(made.params, table, ids, inputs, targets, loss=made.model.loss)


def learned(made: Bench, table: pb.SlotTable, ids: list[int], slots: pb.Slots, state: Any, params: Any) -> Any:
    inputs, targets = rows(data_of(made), 0, len(ids))
    given = {"loss": made.model.loss, "optimizer": OPTIMIZER}
    return slots.learn(params, state, table, ids, inputs, targets, **given)


def gradients_alone(made: Bench, table: pb.SlotTable, ids: list[int], slots: pb.Slots) -> tuple[Any, Any]:
    """The gradient of each session by itself, and what it came with, `[N, ...]`."""
    grad_fn = pb.sequence_grad(made.learner, made.model.loss, window=1, outputs=True)
    found = []
    for k, one in enumerate(ids):
        own = jax.tree.map(lambda x, k=k: x[:1, k], data_of(made))
        gradients, aux = grad_fn(made.params, slots.snapshot(table, one), *own)
        found.append((gradients, (aux.carry, aux.losses[0], sample(aux.outputs, 0))))
    return joined(found)


class TestLearning:
    @pytest.mark.parametrize("strategy", STRATEGIES)
    @pytest.mark.parametrize("rule", ["ES_D_RTRL", "D_RTRL published", "D_RTRL multi-step", "BPTT"])
    @pytest.mark.parametrize("name", ["LSTMCell", "delayed", "trees"])
    def test_the_mean_of_the_sessions_that_make_the_step(self, name: str, rule: str, strategy: str, seed: int) -> None:
        made, ids = bench(name, seed, RULES[rule]), [2_000_000_000, 4]
        slots = slots_of(made, strategy)
        table = after(made, slots)
        want, (carries, losses, outputs) = gradients_alone(made, table, ids, slots)
        got, aux = gradient(made, table, ids, slots)
        assert_gradients_alive(got)
        assert_close(got, jax.tree.map(lambda x: x.mean(0), want))
        assert_close((aux.losses, aux.outputs), (np.asarray(losses), jax.tree.map(np.asarray, outputs)))
        assert_close([slots.snapshot(aux.table, one) for one in ids], pb.unstack(carries))
        assert isinstance(aux.losses, np.ndarray)

    def test_neither_the_capacity_nor_what_rests_counts(self, seed: int) -> None:
        made, ids = bench("LSTMCell", seed, RULES["D_RTRL published"]), [4, -7]
        slots = slots_of(made)
        table = after(made, slots)
        larger, grown = slots.grow(table, 2 * CAPACITY)
        rested = slots.evict(table, [2_000_000_000])
        want = gradient(made, table, ids, slots)[0]
        assert_identical(gradient(made, rested, ids, slots)[0], want)
        assert_close(gradient(made, grown, ids, larger)[0], want)

    def test_updates_are_those_of_the_optimizer(self, seed: int) -> None:
        made, ids = bench("LSTMCell", seed, RULES["D_RTRL published"]), [4, -7]
        slots = slots_of(made)
        table, state, params = after(made, slots), OPTIMIZER.init(made.params), made.params
        for _ in range(2):
            inputs, targets = rows(data_of(made), 0, 2)
            slopes, want = slots.gradient(params, table, ids, inputs, targets, loss=made.model.loss)
            updates, expected = OPTIMIZER.update(slopes, state, params)
            trained, new, aux = learned(made, table, ids, slots, state, params)
            assert_close((trained, new, aux), (optax.apply_updates(params, updates), expected, want))
            assert_not_identical(trained, params)
            params, state, table = trained, new, aux.table

    def test_half_precision_does_not_overflow(self) -> None:
        """Where the mean of the sessions' gradients is a number, and their sum is none."""

        def step(p: Any, h: Any, x: Any) -> Any:
            new = (0.5 * h + p @ x).astype(jnp.float16)
            return new, new

        def steep(output: Any, target: Any) -> Any:
            return 1e4 * (output - target).sum().astype(jnp.float32)

        given = jnp.ones((2, 3), jnp.float16), jnp.zeros(2, jnp.float16), jnp.zeros(3, jnp.float16)
        learner, params = pb.capture_function(step, *given, algorithm=RULES["D_RTRL published"])
        slots, count = pb.Slots(learner, 12), 10
        table = slots.empty()
        for one in range(count):
            table = slots.admit(table, one)
        x, t = jnp.ones((count, 3), jnp.float16), jnp.zeros((count, 2), jnp.float16)
        gradients, _ = slots.gradient(params, table, range(count), x, t, loss=steep)
        np.testing.assert_allclose(gradients, 1e4, rtol=2e-3)

    def test_an_optimizer_that_takes_the_loss(self, seed: int) -> None:
        """It gets the mean over the sessions that make the step."""
        made, ids, optimizer = bench("LSTMCell", seed, RULES["D_RTRL published"]), [4, -7], optax.polyak_sgd()
        slots, state = slots_of(made), optimizer.init(made.params)
        table, data = after(made, slots), rows(data_of(made), 0, 2)
        slopes, aux = slots.gradient(made.params, table, ids, *data, loss=made.model.loss)
        updates, _ = optimizer.update(slopes, state, made.params, value=aux.losses.mean())
        options: Any = {"loss": made.model.loss, "optimizer": optimizer}
        trained, *_ = slots.learn(made.params, state, table, ids, *data, **options)
        assert_close(trained, optax.apply_updates(made.params, updates))
        assert_not_identical(trained, made.params)

    def test_all_sessions_at_once_are_one_step_of_online(self, seed: int) -> None:
        """With units on the weights."""
        made, ids = bench("tutorial", seed), [1, 2, 3, 4]
        slots, state = slots_of(made), OPTIMIZER.init(made.params)
        table = functools.reduce(slots.admit, ids, slots.empty())
        table, _ = slots.step(made.params, table, ids, *rows(data_of(made)[0], 1, CAPACITY))
        train = pb.online(slots.batched, made.model.loss, OPTIMIZER)
        data = jax.tree.map(lambda x: x[:1], data_of(made))
        params, new, want = train(made.params, state, table.carry, *data, mask=np.ones((1, CAPACITY), bool))
        trained, got, aux = learned(made, table, ids, slots, state, made.params)
        assert_close((trained, got, aux.table.carry), (params, new, want.carry))
        assert_close(aux.losses, np.asarray(want.losses[0]))

    def test_sessions_stay_apart_while_weights_move(self, seed: int) -> None:
        """Each of the sessions by itself, with the weights that were in force."""
        made, ids = bench("LSTMCell", seed, RULES["D_RTRL published"]), [4, -7]
        slots = slots_of(made)
        table, state, params = after(made, slots), OPTIMIZER.init(made.params), made.params
        singles = [slots.snapshot(table, one) for one in ids]
        for _ in range(3):
            inputs, _ = rows(data_of(made), 0, 2)
            singles = [made.learner.step(params, one, *sample(inputs, k))[0] for k, one in enumerate(singles)]
            params, state, aux = learned(made, table, ids, slots, state, params)
            table = aux.table
        assert_close([slots.snapshot(table, one) for one in ids], singles)


Act = Callable[[Bench, pb.Slots, pb.SlotTable], pb.SlotTable]

# What happens to session 4 alone.
ACTS: dict[str, Act] = {
    "step": lambda made, slots, table: slots.step(made.params, table, [4], *rows(data_of(made)[0], 0, 1))[0],
    "gradient": lambda made, slots, table: gradient(made, table, [4], slots)[1].table,
    "learn": lambda made, slots, table: (
        learned(made, table, [4], slots, OPTIMIZER.init(made.params), made.params)[2].table
    ),
    "reset": lambda made, slots, table: slots.reset(table, [4], jax.random.key(0)),
    "evict": lambda made, slots, table: slots.evict(table, [4]),
    "admit": lambda made, slots, table: slots.admit(table, 5, jax.random.key(5)),
}


class TestOthers:
    @pytest.mark.parametrize("act", ACTS)
    @pytest.mark.parametrize(("name", "strategy"), [("delayed", "manual"), ("noisy", "vmap"), ("tutorial", "loop")])
    def test_do_not_move(self, name: str, strategy: str, act: str, seed: int) -> None:
        made = bench(name, seed)
        slots = slots_of(made, strategy)
        before = after(made, slots)
        table = ACTS[act](made, slots, before)
        for one in (-7, 2_000_000_000):
            assert_identical(slots.snapshot(table, one), slots.snapshot(before, one))
        assert_not_identical(table, before)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_neighbours_are_not_seen(self, strategy: str, seed: int) -> None:
        """The session beside it is broken, or another one, or makes a step too; or there is none."""
        made = bench("LSTMCell", seed, RULES["D_RTRL published"])
        slots = slots_of(made, strategy)
        table = after(made, slots)
        tables = {
            "as it is": (table, [4]),
            "a step too": (table, [4, -7]),
            "gone": (slots.evict(table, [-7]), [4]),
            "anew": (slots.reset(table, [-7]), [4]),
            "not numbers": (table, [4, -7]),
        }
        results = {}
        for case, (one, ids) in tables.items():
            own = rows(data_of(made)[0], 0, len(ids))
            if case == "not numbers":
                own = jax.tree.map(lambda x: jnp.asarray(x).at[1].set(jnp.nan), own)
            new, outputs = slots.step(made.params, one, ids, *own)
            results[case] = slots.snapshot(new, 4), sample(outputs, 0)
        for case in tables:
            assert_identical(results[case], results["as it is"])

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_what_is_no_number_stays_in_its_session(self, strategy: str, seed: int) -> None:
        """Even where it was part of a gradient: the next one without it is finite, and the same."""
        made = bench("LSTMCell", seed, RULES["D_RTRL published"])
        slots = slots_of(made, strategy)
        sound = after(made, slots)
        inputs, targets = rows(data_of(made), 0, 2)
        ruined = jax.tree.map(lambda x: jnp.asarray(x).at[1].set(jnp.nan), inputs)
        slopes, aux = slots.gradient(made.params, sound, [4, -7], ruined, targets, loss=made.model.loss)
        assert all(np.isnan(leaf).any() for leaf in jax.tree.leaves(slopes))
        assert np.isnan(aux.losses).tolist() == [False, True]
        _, want = slots.gradient(made.params, sound, [4, -7], inputs, targets, loss=made.model.loss)
        assert np.isnan(np.asarray(jax.tree.leaves(slots.snapshot(aux.table, -7).hidden)[0])).all()
        assert_identical(slots.snapshot(aux.table, 4), slots.snapshot(want.table, 4))
        for ids in ([4], [2_000_000_000, 4]):
            got, after_it = gradient(made, aux.table, ids, slots), gradient(made, want.table, ids, slots)
            assert_gradients_alive(got[0])
            assert_identical((got[0], got[1].losses), (after_it[0], after_it[1].losses))
        healed = slots.reset(aux.table, [-7])
        assert_identical(slots.snapshot(healed, -7), pb.apart(made.learner.init()))


class TestComingAndGoing:
    @pytest.mark.parametrize("name", ["delayed", "noisy", "random_start"])
    def test_begins_as_the_learner_does(self, name: str, seed: int) -> None:
        made, key = bench(name, seed), jax.random.key(11)
        slots = slots_of(made)
        table = slots.admit(after(made, slots), 5, key)
        assert table.ids.tolist()[3] == 5
        assert_identical(slots.snapshot(table, 5), pb.apart(made.learner.init(key)))

    def test_the_number_of_a_session_says_nothing(self, seed: int) -> None:
        """0 is a session like any other."""
        made, ids = bench("LSTMCell", seed), [0, -(2**31), 2**31 - 1, 1]
        slots = slots_of(made)
        table = functools.reduce(slots.admit, ids, slots.empty())
        assert table.ids.tolist() == ids
        inputs = rows(data_of(made)[0], 0, CAPACITY)
        _, want = slots.step(
            made.params, functools.reduce(slots.admit, range(1, 5), slots.empty()), range(1, 5), *inputs
        )
        assert_identical(slots.step(made.params, table, ids, *inputs)[1], want)

    @pytest.mark.parametrize("name", ["delayed", "noisy", "random_start"])
    def test_nothing_is_left_of_a_session(self, name: str, seed: int) -> None:
        made = bench(name, seed)
        slots = slots_of(made)
        table = slots.evict(after(made, slots), [2_000_000_000, -7, 4])
        assert_identical(table, slots.empty())
        assert_identical(slots.admit(table, 4, jax.random.key(4)), slots.admit(slots.empty(), 4, jax.random.key(4)))

    def test_a_session_has_its_own_noise_in_any_slot(self, seed: int) -> None:
        made, key, other = bench("noisy", seed), jax.random.key(1), jax.random.key(2)
        slots = slots_of(made, "loop")
        inputs = jax.tree.map(lambda x: jnp.broadcast_to(x[0, :1], (2, *x.shape[2:])), data_of(made)[0])
        first = slots.admit(slots.admit(slots.empty(), 1, key), 2, other)
        second = slots.admit(slots.admit(slots.empty(), 2, other), 1, key)
        (_, one), (_, two) = (
            slots.step(made.params, first, [1, 2], *inputs),
            slots.step(made.params, second, [1, 2], *inputs),
        )
        assert_identical(one, two)
        assert_differ(one[0], one[1])

    @pytest.mark.parametrize("name", ["delayed", "noisy"])
    def test_a_fresh_start(self, name: str, seed: int) -> None:
        """The random key goes on, as with the resets of a sequence."""
        made = bench(name, seed)
        slots = slots_of(made)
        table = after(made, slots)
        before = slots.snapshot(table, -7)
        got = slots.snapshot(slots.reset(table, [4, -7]), -7)
        assert_not_identical(got, before)
        assert_identical(got, pb.apart(made.learner.init())._replace(keys=before.keys))

    def test_a_random_fresh_start_is_that_of_the_session(self, seed: int) -> None:
        """Whichever sessions start anew beside it, in whatever order, and in whatever slot."""
        made, key = bench("random_start", seed), jax.random.key(3)
        slots = slots_of(made)
        table = after(made, slots)
        both, turned = slots.reset(table, [4, -7], key), slots.reset(table, [-7, 4], key)
        one_by_one = slots.reset(slots.reset(table, [4], key), [-7], key)
        assert_identical(turned, both)
        assert_identical(one_by_one, both)
        elsewhere = slots.admit(slots.admit(slots.empty(), -7, key), 4, key)
        assert elsewhere.ids.tolist()[:2] != both.ids.tolist()[:2]
        for one in (4, -7):
            moved = slots.snapshot(slots.reset(elsewhere, [one], key), one)
            assert_identical(moved.hidden, slots.snapshot(both, one).hidden)
        hidden = [slots.snapshot(both, one).hidden for one in (4, -7)]
        assert_differ(*hidden)
        assert_not_identical(slots.reset(table, [4, -7], jax.random.key(4)), both)

    @pytest.mark.parametrize("name", ["delayed", "noisy"])
    def test_a_snapshot_goes_on_anywhere(self, name: str, seed: int) -> None:
        made = bench(name, seed)
        slots, others = slots_of(made), slots_of(made, "loop", 2)
        table, inputs = after(made, slots), rows(data_of(made)[0], 1, 1)
        taken = slots.snapshot(table, -7)
        here, there = slots.admit(table, 5, carry=taken), others.admit(others.empty(), 5, carry=taken)
        assert_identical(slots.snapshot(here, 5), taken)
        assert_identical(others.snapshot(there, 5), taken)
        want = made.learner.step(made.params, taken, *sample(inputs, 0))
        for where, one in ((slots, here), (others, there)):
            stepped, outputs = where.step(made.params, one, [5], *inputs)
            assert_close(where.snapshot(stepped, 5), want[0])
            assert_close(sample(outputs, 0), jax.tree.map(np.asarray, want[1]))

    def test_the_carry_of_a_learner_of_one_sample(self, seed: int) -> None:
        """Its shared states become the session's own."""
        made = bench("delayed", seed)
        carry, _ = made.learner.step(made.params, made.learner.init(), *made.data()[0])
        assert carry.shared
        slots = slots_of(made)
        assert_identical(slots.snapshot(slots.admit(slots.empty(), 0, carry=carry), 0), pb.apart(carry))


class TestMoreSlots:
    @pytest.mark.parametrize("name", ["delayed", "noisy"])
    def test_keep_every_session(self, name: str, seed: int) -> None:
        made = bench(name, seed)
        slots = slots_of(made)
        table = after(made, slots)
        larger, grown = slots.grow(table, 7)
        assert larger == pb.Slots(made.learner, 7, pb.vmap)
        for one in (4, -7, 2_000_000_000):
            assert_identical(larger.snapshot(grown, one), slots.snapshot(table, one))
        assert grown.ids.tolist() == [*table.ids.tolist(), 0, 0, 0]
        assert_identical(larger.evict(grown, [4, -7, 2_000_000_000]), larger.empty())
        full = functools.reduce(lambda t, one: larger.admit(t, one, jax.random.key(one)), range(10, 14), grown)
        assert full.occupied.all()

    def test_are_other_slots(self, seed: int) -> None:
        made = bench("LSTMCell", seed)
        slots = slots_of(made)
        _, grown = slots.grow(slots.empty(), 5)
        with pytest.raises(CarryError, match=r"^table\.carry.*got .*5.*, expected .*4.*slots of another learner or"):
            slots.admit(grown, 1)


class TestOneProgram:
    @pytest.mark.parametrize("strategy", ["vmap", "manual", "chunked", "sharded"])
    def test_whatever_comes_and_goes(self, strategy: str, seed: int) -> None:
        """Each function compiles when it runs first, one program, and nothing compiles later."""
        made = bench("LSTMCell", seed, RULES["D_RTRL published"])
        slots = slots_of(made, strategy, CAPACITY + 1)  # which no other test has compiled anything for
        made.learner.init()

        def day(ids: list[list[int]]) -> None:
            table, state, params = slots.empty(), OPTIMIZER.init(made.params), made.params
            for now in ids:
                for one in now:
                    table = slots.admit(table, one)
                table, _ = slots.step(params, table, now, *rows(data_of(made)[0], 0, len(now)))
                gradient(made, table, now, slots)
                params, state, aux = learned(made, table, now, slots, state, params)
                table = slots.reset(aux.table, now[:1])
                table = slots.admit(slots.evict(table, now), now[0], carry=slots.snapshot(table, now[0]))
                table = slots.evict(table, now[:1])
            slots.step(params, table, [], *rows(data_of(made)[0], 0, 0))
            slots.step(params, jax.tree.map(np.asarray, table), [], *rows(data_of(made)[0], 0, 0))  # of a file

        begun = programs_of_slots()
        day([[1, 2]])
        functions = (pb.Slots.empty, *ACTS, pb.Slots.snapshot)
        assert programs_of_slots() - begun == len(functions)
        before = programs()
        day([[3], [4, 1, 2, 5], [6, 7, 8], [9, 8]])
        assert programs() == before > 0

    def test_of_equal_slots(self, seed: int) -> None:
        made = bench("LSTMCell", seed, RULES["D_RTRL published"])

        def run() -> None:
            slots = pb.Slots(made.learner, 3, pb.manual)
            slots.step(made.params, slots.admit(slots.empty(), 1), [1], *rows(data_of(made)[0], 0, 1))

        run()
        before = programs()
        run()
        assert programs() == before
        assert pb.Slots(made.learner, 3, pb.manual) == pb.Slots(made.learner, 3, pb.manual)
        assert hash(pb.Slots(made.learner, 3)) == hash(pb.Slots(made.learner, 3, pb.vmap))
        assert pb.Slots(made.learner, 3) != pb.Slots(made.learner, 4)


def on_four_devices(made: Bench, capacity: int = CAPACITY, kind: AxisType = AxisType.Auto) -> pb.Slots:
    """One mesh, whatever the capacity."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(kind,), devices=jax.devices()[:4])
    return pb.Slots(made.learner, capacity, functools.partial(pb.sharded, mesh=mesh))


class TestOnDevices:
    @pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
    def test_every_table_lies_on_them(self, kind: AxisType, seed: int) -> None:
        """A session in each slot has a device, before and after every act, and with more slots too."""
        made = bench("delayed", seed, RULES["D_RTRL published"])
        slots = on_four_devices(made, kind=kind)
        table = after(made, slots)
        larger, grown = slots.grow(table, 2 * CAPACITY)
        saved = jax.tree.map(np.asarray, slots.snapshot(table, 4))
        held = [slots.empty(), table, slots.admit(table, 5, carry=saved), grown, larger.admit(grown, 5, carry=saved)]
        held += [act(made, slots, table) for act in ACTS.values()]
        for one in held:
            layouts = {leaf.sharding for leaf in jax.tree.leaves(one.carry)}
            assert {layout.device_set == {*jax.devices()[:4]} for layout in layouts} == {True}
            assert {tuple(layout.spec) for layout in layouts} == {("batch",)}
        for one in (4, -7, 2_000_000_000):
            assert_identical(jax.device_get(larger.snapshot(grown, one)), jax.device_get(slots.snapshot(table, one)))
        with pytest.raises(BatchSizeError, match=r"^capacity: got .*6 on 4 devices, .*multiple of 4\. Give another"):
            slots.grow(table, 6)


class TestArguments:
    @pytest.mark.parametrize("kind", [list, np.array, jnp.array, lambda ids: np.array(ids, np.int64)])
    def test_ids_of_any_kind(self, kind: Any, seed: int) -> None:
        made = bench("LSTMCell", seed)
        slots = slots_of(made)
        table = after(made, slots)
        inputs = rows(data_of(made)[0], 0, 2)
        got, want = (slots.step(made.params, table, ids, *inputs) for ids in (kind([4, -7]), [4, -7]))
        assert_identical(got, want)

    def test_no_session_makes_a_step(self, seed: int) -> None:
        made = bench("LSTMCell", seed)
        slots = slots_of(made)
        table = after(made, slots)
        new, outputs = slots.step(made.params, table, [], *rows(data_of(made)[0], 0, 0))
        assert_identical(new, table)
        assert outputs.shape == (0, *made.learner.program.output.shape)

    def test_of_numpy_and_of_a_file(self, seed: int) -> None:
        """A table is a tree of arrays."""
        made = bench("tutorial", seed)
        slots = slots_of(made)
        table = after(made, slots)
        loaded = jax.tree.map(np.asarray, table)
        inputs = rows(data_of(made)[0], 0, 1)
        got = slots.step(made.params, loaded, [4], *jax.tree.map(np.asarray, inputs))
        assert_identical(got, slots.step(made.params, table, [4], *jax.tree.map(jnp.asarray, inputs)))
        assert isinstance(jax.tree.leaves(got[1])[0], np.ndarray)

    def test_numbers_that_are_promoted(self, seed: int) -> None:
        """The module was captured in single precision, where the caller has double."""
        made = bench("LSTMCell", seed, RULES["D_RTRL published"], precision=32)
        slots = slots_of(made)
        table = after(made, slots)
        inputs, targets = rows(data_of(made), 0, 1)
        want = slots.gradient(made.params, table, [4], inputs, targets, loss=made.model.loss)
        whole = jax.tree.map(lambda x: (x > 0).astype(np.int8), inputs)
        floats = jax.tree.map(lambda x: (x > 0).astype(np.float32), inputs)
        assert_identical(*(slots.step(made.params, table, [4], *one) for one in (whole, floats)))
        assert {leaf.dtype for leaf in jax.tree.leaves(want[0])} == {np.dtype("float32")}

    def test_random_keys_among_the_inputs(self) -> None:
        def step(params: Any, h: Any, x: Any, key: Any) -> Any:
            h = jnp.tanh(0.5 * h + x @ params + jax.random.normal(key, h.shape))
            return h, h

        learner, params = pb.capture_function(
            step, jnp.eye(3), jnp.zeros(3), jnp.zeros(3), jax.random.key(0), algorithm=RULES["D_RTRL published"]
        )
        slots, keys = pb.Slots(learner, 3), jax.random.split(jax.random.key(1), 2)
        table = functools.reduce(slots.admit, [1, 2], slots.empty())
        _, outputs = slots.step(params, table, [2, 1], np.ones((2, 3)), keys)
        want = [learner.step(params, learner.init(), np.ones(3), key)[1] for key in keys]
        assert_close(outputs, np.stack(want))
        assert_differ(outputs[0], outputs[1])

    def test_samples_that_are_coupled_on_request(self) -> None:
        """A choice of the user, who then has the mean over all slots."""

        def step(params: Any, h: Any, x: Any) -> Any:
            h = jnp.tanh(0.5 * h + x @ params)
            return h, h - h.mean(0)  # of the features of one sample, or of the samples of a batch

        learner, params = pb.capture_function(
            step, jnp.eye(3), jnp.zeros(3), jnp.zeros(3), algorithm=RULES["D_RTRL published"]
        )
        with pytest.raises(pb.SampleCouplingError):
            pb.Slots(learner, 3, pb.manual)
        slots = pb.Slots(learner, 3, functools.partial(pb.manual, allow_coupling=True))
        table = functools.reduce(slots.admit, [1, 2], slots.empty())
        _, outputs = slots.step(params, table, [2, 1], np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.7]]))
        assert_differ(outputs[0], outputs[1])


class TestInsideATransform:
    def test_the_batched_learner_runs_the_table(self, seed: int) -> None:
        """As the docstring says: several steps in one call, with a mask of the slots."""
        made = bench("delayed", seed, RULES["D_RTRL published"])
        slots = slots_of(made)
        table = after(made, slots)
        grad_fn = pb.sequence_grad(slots.batched, made.model.loss)
        mask = np.broadcast_to(np.asarray(table.ids) == 4, (STEPS, CAPACITY))

        @jax.jit
        def many(params: Any, table: pb.SlotTable, data: Any) -> pb.SlotTable:
            return table._replace(carry=grad_fn(params, table.carry, *data, mask=mask)[1].carry)

        got, want = many(made.params, table, data_of(made)), table
        (place,) = np.flatnonzero(mask[0])
        for t in range(STEPS):
            own = jax.tree.map(lambda x, t=t: x[t, [place]], data_of(made)[0])
            want, _ = slots.step(made.params, want, [4], *own)
        assert_close(got.carry, want.carry)
        assert_not_identical(got, table)

    @pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
    def test_a_traced_argument_is_refused(self, transform: Any, seed: int) -> None:
        made = bench("LSTMCell", seed)
        slots = slots_of(made)
        table = after(made, slots)
        inputs = rows(data_of(made)[0], 0, 1)
        text = r"^slots\.\w+: got a traced array, expected numbers, .*Call it outside JAX's transforms\. Inside"
        for call in (
            lambda x: slots.step(made.params, table, [4], x[None])[1],
            lambda x: slots.admit(table, x[0].astype(int)),
            lambda x: slots.reset(table._replace(ids=x.astype(int)), [4]),
            lambda x: slots.evict(table, x.astype(int)),
            lambda x: slots.grow(table._replace(ids=x), 9),
        ):
            with pytest.raises(SlotError, match=text):
                transform(call)(jnp.ones((3, 5)) if transform is jax.vmap else inputs[0][0])


class TestNothingIsHalfChanged:
    def test_by_what_is_refused(self, seed: int) -> None:
        made = bench("LSTMCell", seed)
        slots = slots_of(made)
        table = after(made, slots)
        kept = jax.tree.map(np.array, table)
        inputs = rows(data_of(made)[0], 0, 2)
        for call in (
            lambda: slots.step(made.params, table, [4, 77], *inputs),
            lambda: slots.step(made.params, table, [4, 4], *inputs),
            lambda: slots.admit(table, 4),
            lambda: slots.admit(table, 5, carry=slots_of(made, "loop", 2).empty().carry),
            lambda: slots.evict(table, [4, 77]),
            lambda: slots.reset(table, [77]),
        ):
            with pytest.raises(pb.PureBatchingError):
                call()
        assert_identical(table, kept)


def leaky(params: jax.Array, h: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = 0.5 * h + params * x
    return h, h


def test_slots_that_ran_can_be_pickled() -> None:
    """What was compiled for them stays behind."""
    learner, params = pb.capture_function(leaky, jnp.ones(3), jnp.zeros(3), jnp.zeros(3), algorithm=pb.BPTT())
    slots = pb.Slots(learner, 2)
    table, inputs = slots.admit(slots.empty(), 7), np.full((1, 3), 2.0)
    want = slots.step(params, table, [7], inputs)
    again = pickle.loads(pickle.dumps(slots))
    assert_identical(again.step(params, table, [7], inputs), want)
    assert copy.copy(slots) is copy.deepcopy(slots) is slots
    assert (np.asarray(want[1]) == 2).all()
