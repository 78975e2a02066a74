"""Arguments that do not fit a step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pure_batching as pb
from pure_batching.errors import (
    BatchSizeError,
    CarryError,
    DtypeError,
    LossError,
    ShapeError,
    StructureError,
    UnitError,
)

from ..bench import SAMPLES, STEPS, Request, bench
from .provoke import (
    ES,
    FLAGS,
    Change,
    Refusal,
    first,
    forgotten_carry,
    gradient,
    mantissas,
    other_start,
    step,
    with_loss,
    without,
)

# What every text says of a carry that does not fit.
OTHER_LEARNER = " ~ another learner ~ init()"


def wide(made: Any) -> pb.Carry:
    """The fresh carry of the same rule, which keeps traces as they are computed."""
    return other_start(made.seed, "tutorial", ES)


def with_trace(change: Change) -> Change:
    """A change of every array of a carry's trace."""
    return lambda carry: carry._replace(trace=jax.tree.map(change, carry.trace))


STEP = (
    Refusal(
        "no input",
        lambda seed: step(seed, inputs=lambda _: ()),
        StructureError,
        "inputs: got 0 arguments, expected 1. Pass the arguments that capture() saw as examples.",
    ),
    Refusal(
        "another batch",
        lambda seed: step(seed, inputs=first(lambda x: x[:2])),
        BatchSizeError,
        "inputs[0]: got shape (2, 5), expected (B=3, 5). Use a batch of the size that the strategy was built for.",
    ),
    Refusal(
        "a batch for one sample",
        lambda seed: step(seed, strategy=None, inputs=first(lambda x: np.stack([x] * SAMPLES))),
        ShapeError,
        "inputs[0]: got shape (3, 5), expected (5 ~ Remove an axis",
    ),
    Refusal(
        "a sequence",
        lambda seed: step(seed, inputs=first(lambda x: x[None])),
        ShapeError,
        "inputs[0]: got shape (1, 3, 5), expected (B=3, 5). Remove an axis",
    ),
    Refusal(
        "a weight too few",
        lambda seed: step(seed, params=without("out.weight_op")),
        StructureError,
        "params['out.weight_op']['weight']: got nothing, expected ~ Pass a tree of the captured",
    ),
    Refusal(
        "a weight too many",
        lambda seed: step(seed, params=lambda params: {**params, "more": jnp.ones(2)}),
        StructureError,
        "params['more']: got ~ expected no such leaf. Pass a tree of the captured structure.",
    ),
    Refusal(
        "a weight of another shape",
        lambda seed: step(seed, params=lambda params: jax.tree.map(lambda x: x[1:], params)),
        ShapeError,
        "params['out.weight_op']['weight']: got shape (6, 2), expected (7, 2).",
    ),
    Refusal(
        "a weight without its unit",
        lambda seed: step(seed, params=mantissas),
        UnitError,
        "params['syn.comm.weight_op']['bias']: got ~ expected unit mV. Give it the unit",
    ),
    Refusal(
        "all that capture returns as params",
        lambda seed: step(seed, params=lambda params: (None, params)),
        StructureError,
        "params: got tuple, expected {path: value}. ~ pass the second.",
    ),
    Refusal(
        "no carry",
        forgotten_carry,
        StructureError,
        "targets: got nothing, expected ~ The second argument is the carry: pass None for a fresh start",
    ),
    Refusal(
        "time and samples the other way round",
        lambda seed: gradient(seed, mask=FLAGS.T),
        BatchSizeError,
        "mask: got shape (3, 6), expected (T=6, B=3). Swap the first two axes: time leads",
    ),
    Refusal(
        "a number as a random key",
        lambda seed: bench("tutorial", seed).learner.init(4),
        DtypeError,
        "key: got 4, expected one random key. Pass jax.random.key(seed)",
    ),
    Refusal(
        "a loss that is none",
        lambda seed: pb.sequence_grad(bench("tutorial", seed).learner, None),
        LossError,
        "loss: got NoneType, expected a function (output, target) -> []. Pass the loss",
    ),
    Refusal(
        "a loss of one argument",
        lambda seed: with_loss(seed, lambda out: out.sum()),
        LossError,
        "loss: got TypeError: ~ takes 1 positional argument ~ expected a function of an output float64[2] and a target",
    ),
    Refusal(
        "a carry that is none",
        lambda seed: step(seed, carry=lambda carry: carry._asdict()),
        CarryError,
        "carry: got dict, expected a Carry. Pass learner.init() or aux.carry.",
    ),
    Refusal(
        "a carry of one sample",
        lambda seed: step(seed, carry=lambda _: bench("tutorial", seed).start(None)),
        CarryError,
        "carry.hidden['neu.V']: got ~ (7,) ~ expected ~ (3, 7)" + OTHER_LEARNER,
    ),
    Refusal(
        "a carry of another batch",
        lambda seed: step(seed, carry=lambda _: other_start(seed, "tutorial", samples=2)),
        CarryError,
        "carry.hidden['neu.V']: got ~ (2, 7) ~ expected ~ (3, 7) ~ batch size ~ init()",
    ),
    Refusal(
        "a carry of another module",
        lambda seed: gradient(seed, carry=other_start(seed, "GRUCell")),
        CarryError,
        "carry.hidden['h']: got float64[3, 7], expected no such leaf." + OTHER_LEARNER,
    ),
    Refusal(
        "a carry of another algorithm",
        lambda seed: gradient(seed, carry=other_start(seed, "tutorial", pb.D_RTRL())),
        CarryError,
        "carry.trace.weights['out.weight_op -> out.r']['weight']: got ~ expected no such leaf." + OTHER_LEARNER,
    ),
    Refusal(
        "a carry without its trace",
        lambda seed: step(seed, carry=lambda carry: carry._replace(trace=())),
        CarryError,
        "carry.trace.xs['out.weight_op']: got nothing, expected float64[3, 7]" + OTHER_LEARNER,
    ),
    *(
        Refusal(
            f"traces in float64 where the rule keeps {dtype}, {name}",
            lambda seed, call=call, dtype=dtype: call(bench("tutorial", seed, pb.ES_D_RTRL(0.9, trace_dtype=dtype))),
            CarryError,
            f"carry.trace.xs['out.weight_op']: got float64, expected {dtype}. The rule of the learner that made the "
            "carry has another trace_dtype. Give both rules the same, or convert the trace: "
            f"carry._replace(trace=jax.tree.map(lambda eps: eps.astype('{dtype}'), carry.trace)).",
        )
        for dtype in ("bfloat16", "float32")
        for name, call in {
            "a step": lambda made: made.batched("vmap").step(made.params, wide(made), *made.data(SAMPLES).inputs),
            "a sequence": lambda made: made.grad_fn(Request())(made.params, wide(made), *made.data(STEPS, SAMPLES)),
        }.items()
    ),
    Refusal(
        "complex numbers in the place of traces",
        lambda seed: step(seed, carry=with_trace(lambda eps: eps.astype(complex))),
        CarryError,
        "carry.trace.~: got complex128, expected float64" + OTHER_LEARNER,
    ),
    Refusal(
        "no numbers in the place of traces",
        lambda seed: step(seed, carry=with_trace(lambda _: "none")),
        CarryError,
        "carry.trace.xs['out.weight_op']: got str, expected an array of numbers" + OTHER_LEARNER,
    ),
    Refusal(
        "long integers for short ones",
        lambda seed: step(seed, carry=lambda carry: carry._replace(update_count=carry.update_count.astype("int64"))),
        CarryError,
        "carry.update_count: got int64, expected int32" + OTHER_LEARNER,
    ),
    Refusal(
        "a carry without units",
        lambda seed: step(seed, carry=mantissas),
        CarryError,
        "carry.hidden['neu.V']: got ~ expected ~ mV" + OTHER_LEARNER,
    ),
)
