"""Sessions that cannot be admitted or found, and tables and rows that do not fit their slots."""

import pickle
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import pure_batching as pb
from pure_batching.errors import (
    BatchSizeError,
    CarryError,
    DtypeError,
    LossError,
    OptionError,
    PickleError,
    ShapeError,
    SlotError,
    StrategyError,
    StructureError,
)

from ..bench import RULES, Bench, bench
from ..models import N_IN
from .provoke import ES, SETTINGS, Refusal, one_input, tutorial

ADAM = optax.adam(1e-2)

Call = Callable[[Bench, pb.Slots, pb.SlotTable], Any]


def slots(call: Call, name: str = "LSTMCell") -> Callable[[int], Any]:
    """A call with a table of three slots, in two of which are the sessions 4 and -7."""

    def provoke(seed: int) -> Any:
        made = bench(name, seed, RULES["D_RTRL published"])
        three = pb.Slots(made.learner, 3)
        table = three.empty()
        for one in (4, -7):
            table = three.admit(table, one, jax.random.key(0))
        return call(made, three, table)

    return provoke


def step(ids: Any, size: int = 2, features: int = N_IN, **table: Any) -> Callable[[int], Any]:
    """A step of some sessions with a number of rows."""
    return slots(lambda made, three, t: three.step(made.params, t._replace(**table), ids, np.ones((size, features))))


def learn(ids: Any, *data: Any, loss: Any = None, optimizer: Any = None) -> Callable[[int], Any]:
    def call(made: Bench, three: pb.Slots, table: pb.SlotTable) -> Any:
        given = {"loss": loss or made.model.loss, "optimizer": optimizer}
        return three.learn(made.params, None, table, ids, *data, **given)

    return slots(call)


def new(*args: Any, name: str = "LSTMCell", **options: Any) -> Callable[[int], Any]:
    return lambda seed: pb.Slots(bench(name, seed).learner, *args, **options)


def on_two_devices(learner: pb.Learner, size: int) -> pb.Learner:
    return pb.sharded(learner, size, mesh=jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2]))


def along_an_axis() -> pb.Learner:
    return pb.capture(tutorial(), one_input(), algorithm=ES, environ=SETTINGS, axis_name="batch")[0]


NO_TABLE = "Pass slots.empty(), or the table that the last call returned."

SLOTS = (
    Refusal(
        "a full table",
        slots(lambda _, three, table: three.admit(three.admit(table, 0), 1)),
        SlotError,
        "table: got 3 sessions in as many slots, expected a vacant slot. Evict a session first, or make more slots",
    ),
    Refusal(
        "a session that is there",
        slots(lambda _, three, table: three.admit(table, -7)),
        SlotError,
        "id: got -7, which is in a slot, expected a session that is in none. Give it a fresh start with reset(), or",
    ),
    Refusal(
        "a session that is not there",
        step([4, 5, 6], 3),
        SlotError,
        "ids: got 5, 6, in no slot, expected sessions of the table: -7, 4. Admit it first.",
    ),
    Refusal(
        "a session of an empty table",
        slots(lambda _, three, __: three.snapshot(three.empty(), 0)),
        SlotError,
        "ids: got 0, in no slot, expected sessions of the table, which is empty. Admit it first.",
    ),
    Refusal(
        "a session twice",
        step([4, -7, 4], 3),
        SlotError,
        "ids: got session 4, 2 times, expected each session once. Leave out repetitions; the steps of one session come",
    ),
    Refusal(
        "no optimizer for sessions",
        learn([4], np.ones((1, N_IN)), np.ones(1), optimizer=1e-3),
        OptionError,
        "optimizer: got float, expected one with a method update(gradients, state, params). Pass an optimizer of optax",
    ),
    Refusal(
        "a mean over no session",
        slots(
            lambda made, three, table: three.gradient(
                made.params, table, [], np.ones((0, N_IN)), np.ones(0), loss=made.model.loss
            )
        ),
        SlotError,
        "ids: got no session, expected one or more. There is no mean over none; leave the call out.",
    ),
    Refusal(
        "a traced table",
        slots(lambda _, three, table: jax.jit(three.evict)(table, np.array([4]))),
        SlotError,
        "slots.evict: got a traced array, expected numbers, since ids are looked up on the host. Call it outside JAX's",
    ),
    Refusal(
        "ids with a fraction",
        step([4.0, -7.0]),
        DtypeError,
        "ids: got float64 numbers such as ~4.0~, expected integers of 32 bits. Give each session a number of your own",
    ),
    Refusal(
        "an id that is too large",
        slots(lambda _, three, table: three.admit(table, 2**31)),
        DtypeError,
        "id: got 2147483648, expected integers of 32 bits. Give each session a number",
    ),
    Refusal(
        "an id that is a word",
        slots(lambda _, three, table: three.admit(table, "anna")),
        DtypeError,
        "id: got 'anna', expected integers of 32 bits.",
    ),
    Refusal(
        "one id for a list", step(4), ShapeError, "ids: got shape (), expected integers [N]. Pass a list of sessions."
    ),
    Refusal(
        "a list for one id",
        slots(lambda _, three, table: three.snapshot(table, [4])),
        ShapeError,
        "id: got shape (1,), expected one integer. Name one session.",
    ),
    Refusal(
        "rows of other sessions",
        step([4], 2),
        BatchSizeError,
        "inputs[0]: got shape (2, 5), expected (N=1, 5). Give one row for each of the ids.",
    ),
    Refusal(
        "rows of other features",
        step([4], 1, 3),
        ShapeError,
        "inputs[0]: got shape (1, 3), expected (N=1, 5). Use the feature sizes of the captured example.",
    ),
    Refusal(
        "a row without the axis of the sessions",
        slots(lambda made, three, table: three.step(made.params, table, [4], np.ones(N_IN))),
        ShapeError,
        "inputs[0]: got shape (5,), expected (N=1, 5). Add an axis; N leads.",
    ),
    Refusal(
        "a sequence for a step of sessions",
        slots(lambda made, three, table: three.step(made.params, table, [4], np.ones((2, 1, N_IN)))),
        ShapeError,
        "inputs[0]: got shape (2, 1, 5), expected (N=1, 5). Remove an axis; N leads.",
    ),
    Refusal(
        "no input of a session",
        slots(lambda made, three, table: three.step(made.params, table, [4])),
        StructureError,
        "inputs: got 0 arguments, expected 1. Pass the arguments that capture() saw as examples.",
    ),
    Refusal(
        "targets of other sessions",
        learn([4], np.ones((1, N_IN)), np.ones(2), optimizer=ADAM),
        BatchSizeError,
        "targets: got shape (2,), expected (N=1). Give one row for each of the ids.",
    ),
    Refusal(
        "targets without the axis of the sessions",
        learn([4], np.ones((1, N_IN)), 1.0, optimizer=ADAM),
        ShapeError,
        "targets: got shape (), expected (N=1). Add an axis; N leads.",
    ),
    Refusal(
        "a loss of sessions that is no number",
        learn([4], np.ones((1, N_IN)), np.ones(1), loss=lambda out, _: out, optimizer=ADAM),
        LossError,
        "loss: got float64[7], expected one real number without a unit",
    ),
    Refusal(
        "an optimizer's state that belongs to nothing",
        learn([4], np.ones((1, N_IN)), np.ones(1), optimizer=ADAM),
        StructureError,
        "opt_state: got ~ expected a state of the optimizer that was passed, for these params. Pass optimizer.init(",
    ),
    Refusal(
        "a carry for a table",
        slots(lambda _, three, table: three.admit(table.carry, 1)),  # type: ignore[arg-type]
        StructureError,
        f"table: got Carry, expected a SlotTable. {NO_TABLE}",
    ),
    Refusal(
        "a table without ids",
        slots(lambda _, three, table: three.admit(table._replace(ids=None), 1)),
        StructureError,
        f"table.ids: got None, expected int32[C=3]. {NO_TABLE}",
    ),
    Refusal(
        "a table with ids for flags",
        step([4], 1, occupied=np.ones(3, np.int32)),
        StructureError,
        f"table.occupied: got int32[3], expected bool[C=3]. {NO_TABLE}",
    ),
    Refusal(
        "a table of other slots",
        slots(lambda made, three, _: three.admit(pb.Slots(made.learner, 2).empty(), 1)),
        CarryError,
        "table.carry~: got ~, expected ~. The table belongs to slots of another learner or capacity; begin with",
    ),
    Refusal(
        "a table of sessions that share a state",
        slots(lambda _, three, table: three.admit(table._replace(carry=three.batched.init()), 1), "delayed"),
        CarryError,
        "table.carry: got sessions that share their past.write_ptr, expected sessions that have one each. Apply",
    ),
    Refusal(
        "a session of another learner",
        slots(lambda _, three, table: three.admit(table, 1, carry=bench("tutorial", 0).start(None))),
        CarryError,
        "carry~: got ~, expected ~. The carry belongs to another learner or another batch size; start from init().",
    ),
    Refusal(
        "the carry of a batch for a session",
        slots(lambda _, three, table: three.admit(table, 1, carry=table.carry)),
        CarryError,
        "carry~: got ~, expected ~. The carry belongs to another learner or another batch size; start from init().",
    ),
    Refusal(
        "a key beside a carry",
        slots(lambda _, three, table: three.admit(table, 1, jax.random.key(0), three.snapshot(table, 4))),
        OptionError,
        "key: got a key beside a carry, expected one of them. A carry holds the key of its session; leave out key=.",
    ),
    Refusal(
        "no key for a session with noise",
        slots(lambda _, three, table: three.admit(table, 1), "noisy"),
        OptionError,
        "key: got None, expected a random key, since Noisy draws random numbers. Pass key=jax.random.key(seed)",
    ),
    Refusal(
        "no key for a random fresh start of a session",
        slots(lambda _, three, table: three.reset(table, [4]), "random_start"),
        OptionError,
        "key: got None, expected a random key, since RandomStart draws random numbers. Pass key=",
    ),
    Refusal(
        "no key but a number for a session",
        slots(lambda _, three, table: three.admit(table, 1, 7)),  # type: ignore[arg-type]
        DtypeError,
        "key: got 7, expected one random key. Pass jax.random.key(seed)",
    ),
    Refusal(
        "fewer slots",
        slots(lambda _, three, table: three.grow(table, 2)),
        OptionError,
        "capacity: got 2, expected an integer > 3. Slots only become more; to have fewer, admit snapshots to another",
    ),
    Refusal(
        "no slots",
        new(0),
        BatchSizeError,
        "capacity: got batch size 0, expected an integer >= 1. Give another number of slots; those that",
    ),
    Refusal(
        "slots that the devices do not divide",
        new(3, by=on_two_devices),
        BatchSizeError,
        "capacity: got batch size 3 on 2 devices, expected a multiple of 2. Give another number of slots; those that "
        "no session is in may stay vacant.",
    ),
    Refusal(
        "slots on devices in a pickle",
        lambda seed: pickle.dumps(new(4, by=on_two_devices)(seed)),
        PickleError,
        "pb.sharded: got a strategy with the devices of this process, expected what another process can make sense of. "
        "Send the learner of one sample",
    ),
    Refusal(
        "slots of nothing",
        lambda _: pb.Slots("net", 3),  # type: ignore[arg-type]
        StructureError,
        "pb.Slots: got str, expected a Learner. pb.capture returns a learner and its params; pass the first.",
    ),
    Refusal(
        "slots of a batch",
        lambda seed: pb.Slots(bench("LSTMCell", seed).batched("vmap"), 3),
        StrategyError,
        "pb.vmap: got a learner batched by pb.vmap, expected a learner of one sample.",
    ),
    Refusal(
        "slots by a word",
        new(3, by="vmap"),
        OptionError,
        "by: got 'vmap', expected a strategy: by(learner, 3) is the learner of 3 samples. Pass pb.vmap, pb.manual, "
        "pb.loop or pb.chunked",
    ),
    Refusal(
        "slots by what is no strategy",
        new(3, by=lambda learner, _: learner),
        OptionError,
        "by: got a function that gives the learner of 1 sample, expected a strategy: by(learner, 3) is",
    ),
    Refusal(
        "slots by JAX's own function",
        new(3, by=jax.vmap),
        OptionError,
        "by: got a function that raises TypeError: ~ expected a strategy: by(learner, 3) is the learner of 3 samples.",
    ),
    Refusal(
        "slots of samples that reach each other",
        lambda _: pb.Slots(along_an_axis(), 3),
        StrategyError,
        "pb.Slots: got a module whose samples reach each other along the axis 'batch', expected independent samples.",
    ),
)
