"""Every error by its text: where, got, expected, repair; and nothing half changed."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any

import brainscale
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import HiddenState, ShortTermState
from brainstate.nn import Module

import pure_batching as pb
from pure_batching import _errors
from pure_batching._errors import (
    AlgorithmError,
    BatchSizeError,
    CaptureError,
    CarryError,
    DtypeError,
    LossError,
    NativeError,
    OptionError,
    PureBatchingError,
    RandomnessError,
    SampleCouplingError,
    ShapeError,
    StrategyError,
    StructureError,
    UnitError,
)
from pure_batching.testing import assert_interchangeable

from . import modules
from .bench import SAMPLES, STEPS, STRATEGIES, Request, bench
from .models import MODELS, N_IN, N_REC, squared
from .trees import assert_close, assert_identical, named

Tree = Any
Change = Callable[[Any], Any]

ES = pb.ES_D_RTRL(0.9)
SETTINGS = {"dt": 1.0 * u.ms}
FLAGS = np.ones((STEPS, SAMPLES), bool)

# What every text says of a carry that does not fit, of a loss, of a module that cannot be compiled.
OTHER_LEARNER = " ~ another learner ~ init()"
ONE_NUMBER = ", expected one real number without a unit for the output and target of one sample ~ inside the loss"
ONE_STEP = ", expected a module whose update() is one step of one sample that BrainScale can compile; ~ without T and B"
RANKS = ", expected a float with 0 < decay < 1, or an integer rank >= 1. ~ 0.9"
RULES = ", expected 'brainscale' or 'published'. Choose one of them."
VJPS = ", expected 'single-step' or 'multi-step'. Choose one of them."


def same(value: Any) -> Any:
    return value


def first(change: Change) -> Change:
    """A change of the only argument."""
    return lambda inputs: (change(inputs[0]),)


def gradient(
    seed: int,
    name: str = "tutorial",
    *,
    inputs: Change = same,
    targets: Change = same,
    params: Change = same,
    carry: Any = None,
    precision: int = 64,
    **flags: Any,
) -> Any:
    """The gradient of a model whose arguments are changed."""
    made = bench(name, seed, precision=precision)
    given, wanted = made.data(STEPS, SAMPLES)
    return made.grad_fn(Request("vmap"))(params(made.params), carry, inputs(given), targets(wanted), **flags)


def step(
    seed: int,
    name: str = "tutorial",
    *,
    strategy: str | None = "vmap",
    inputs: Change = same,
    params: Change = same,
    carry: Change = same,
) -> Any:
    """A step of a model whose arguments are changed."""
    made = bench(name, seed)
    given, _ = made.data(*() if strategy is None else (SAMPLES,))
    return made.batched(strategy).step(params(made.params), carry(made.start(strategy)), *inputs(given))


def with_loss(seed: int, loss: Callable[..., Any]) -> Any:
    """A gradient of another loss."""
    made = bench("tutorial", seed)
    return pb.sequence_grad(made.batched("vmap"), loss)(made.params, None, *made.data(STEPS, SAMPLES))


def captured(net: Any, *examples: Tree, algorithm: Any = ES, environ: Any = SETTINGS) -> pb.Learner:
    return pb.capture(net, *examples, algorithm=algorithm, environ=environ)[0]


def forgotten_carry(seed: int) -> Any:
    """Inputs in the carry's place."""
    made = bench("tutorial", seed)
    return made.grad_fn(Request("vmap"))(made.params, *made.data(STEPS, SAMPLES))


def tutorial() -> Module:
    return MODELS["tutorial"].build(0)


def one_input() -> np.ndarray:
    return np.zeros(N_IN)


def other_start(seed: int, name: str, algorithm: pb.Algorithm | None = None, samples: int = SAMPLES) -> pb.Carry:
    return bench(name, seed, algorithm).start("vmap", samples)


def without(name: str) -> Change:
    return lambda tree: {key: value for key, value in tree.items() if key != name}


def mantissas(tree: Tree) -> Tree:
    return jax.tree.map(u.get_mantissa, tree, is_leaf=u.math.is_quantity)


def in_volts(tree: Tree) -> Tree:
    """The same quantities in another scale."""

    def convert(leaf: Any) -> Any:
        return leaf.in_unit(u.volt) if u.get_unit(leaf) == u.mV else leaf

    return jax.tree.map(convert, tree, is_leaf=u.math.is_quantity)


class _OneLayer(Module):
    """A cell, and what a kind of module does with it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = brainscale.nn.MinimalRNNCell(N_IN, N_REC)


class Growing(_OneLayer):
    """A state comes out of a step in another shape."""

    def init_state(self, *_: Any, **__: Any) -> None:
        self.memory = ShortTermState(jnp.zeros(()))

    def update(self, x: jax.Array) -> jax.Array:
        self.memory.value = self.memory.value + x
        return self.cell(x)


class Impassable(Module):
    """A step that fails."""

    def update(self, x: jax.Array) -> jax.Array:
        raise RuntimeError("no way through")


class TwoShapes(Module):
    """One use of a weight before hidden states of two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = brainscale.nn.Linear(N_IN, N_REC)

    def init_state(self, *_: Any, **__: Any) -> None:
        self.one, self.many = HiddenState(jnp.zeros(N_REC)), HiddenState(jnp.zeros((2, N_REC)))

    def update(self, x: jax.Array) -> jax.Array:
        y = self.inp(x)
        self.one.value, self.many.value = 0.5 * self.one.value + y, 0.5 * self.many.value + y
        return self.one.value


class Summed(_OneLayer):
    """An output that forgets the batch axis."""

    def update(self, x: jax.Array) -> jax.Array:
        return self.cell(x).sum()


class Remembering(_OneLayer):
    """A state that forgets the batch axis."""

    def init_state(self, *_: Any, **__: Any) -> None:
        self.memory = ShortTermState(jnp.zeros(N_IN))

    def update(self, x: jax.Array) -> jax.Array:
        self.memory.value = jnp.atleast_2d(0.5 * self.memory.value + x).sum(0)
        return self.cell(x)


class Flattened(_OneLayer):
    """Code that knows no batch axis."""

    def update(self, x: jax.Array) -> jax.Array:
        return self.cell(x.reshape(N_IN))


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What goes wrong, the error, and the beginning of its text, with `~` where some of it is left out."""

    name: str
    provoke: Callable[[int], Any]
    error: type[PureBatchingError]
    text: str

    @property
    def pattern(self) -> str:
        return "(?s)^" + ".*".join(map(re.escape, re.split(" ?~ ?", self.text)))


DATA = (
    Refusal(
        "feature size",
        lambda seed: gradient(seed, inputs=first(lambda x: x[..., :4])),
        ShapeError,
        "inputs[0]: got shape (6, 3, 4), expected (T=6, B=3, 5). Use the feature sizes of the captured example.",
    ),
    Refusal(
        "two inputs in the wrong order",
        lambda seed: gradient(seed, "two_inputs", inputs=lambda inputs: inputs[::-1]),
        ShapeError,
        "inputs[0]: got shape (6, 3, 7), expected (T=6, B=3, 5). Use the feature sizes",
    ),
    Refusal(
        "no batch axis",
        lambda seed: gradient(seed, inputs=first(lambda x: x[:, 0])),
        ShapeError,
        "inputs[0]: got shape (6, 5), expected (T=6, B=3, 5). Add an axis; T and B lead.",
    ),
    Refusal(
        "an axis too many",
        lambda seed: gradient(seed, inputs=first(lambda x: x[..., None])),
        ShapeError,
        "inputs[0]: got shape (6, 3, 5, 1), expected (T=6, B=3, 5). Remove an axis; T and B lead.",
    ),
    Refusal(
        "batch size",
        lambda seed: gradient(seed, inputs=first(lambda x: x[:, :2])),
        BatchSizeError,
        "inputs[0]: got shape (6, 2, 5), expected (T=6, B=3, 5). Use a batch of the size that the strategy was built",
    ),
    Refusal(
        "batch size of targets",
        lambda seed: gradient(seed, targets=lambda y: y[:, :2]),
        BatchSizeError,
        "targets: got shape (6, 2), expected (T=6, B=3). Use a batch of the size that the strategy was built for.",
    ),
    Refusal(
        "no batch axis in targets",
        lambda seed: gradient(seed, targets=lambda y: y[:, 0]),
        ShapeError,
        "targets: got shape (6,), expected (T=6, B=3). Add an axis; T and B lead.",
    ),
    Refusal(
        "no steps",
        lambda seed: gradient(seed, inputs=first(lambda x: x[:0]), targets=lambda y: y[:0]),
        ShapeError,
        "inputs: got T = 0 steps, expected leaves [T, ...] with T >= 1. Pass at least one step",
    ),
    Refusal(
        "no time axis at all",
        lambda seed: gradient(
            seed,
            inputs=first(lambda x: brainscale.SingleStepData(x[0])),
            targets=lambda y: brainscale.SingleStepData(y[0]),
        ),
        ShapeError,
        "inputs: got no leaf with a time axis, expected leaves [T, ...] with T >= 1. ~ time is the first axis.",
    ),
    Refusal(
        "a number for a sequence",
        lambda seed: gradient(seed, inputs=first(lambda _: np.float64(1.0))),
        ShapeError,
        "inputs[0]: got shape (), expected (T=6, B=3, 5). Add an axis; T and B lead. ~ goes into brainscale",
    ),
    Refusal(
        "no time axis in inputs",
        lambda seed: gradient(seed, inputs=first(lambda x: x[0])),
        ShapeError,
        "inputs[0]: got shape (3, 5), expected (T=6, B=3, 5). Add an axis; T and B lead. ~ goes into brainscale",
    ),
    Refusal(
        "no time axis in inputs and targets",
        lambda seed: gradient(seed, inputs=first(lambda x: x[0]), targets=lambda y: y[0]),
        ShapeError,
        "inputs[0]: got shape (3, 5), expected (T, B=3, 5). Add an axis; T and B lead. What is the same",
    ),
    Refusal(
        "no time axis in the first input of two",
        lambda seed: gradient(seed, "two_inputs", inputs=lambda inputs: (inputs[0][0], inputs[1])),
        ShapeError,
        "inputs[0]: got shape (3, 5), expected (T=6, B=3, 5). Add an axis; T and B lead.",
    ),
    Refusal(
        "no time axis in targets, nor in inputs that stay the same",
        lambda seed: gradient(seed, inputs=first(lambda x: brainscale.SingleStepData(x[0])), targets=lambda y: y[0]),
        ShapeError,
        "targets: got shape (3,), expected (T, B=3). Add an axis; T and B lead. What is the same",
    ),
    Refusal(
        "a time axis in inputs that stay the same",
        lambda seed: gradient(seed, inputs=first(brainscale.SingleStepData)),
        ShapeError,
        "inputs[0]: got shape (6, 3, 5), expected (B=3, 5). What is in brainscale.SingleStepData has no time axis: [B",
    ),
    Refusal(
        "a time axis in targets that stay the same",
        lambda seed: gradient(seed, targets=brainscale.SingleStepData),
        BatchSizeError,
        "targets: got shape (6, 3), expected (B=3, 3). What is in brainscale.SingleStepData has no time axis: [B, ...]",
    ),
    Refusal(
        "time and samples the other way round in inputs",
        lambda seed: gradient(seed, inputs=first(lambda x: x.swapaxes(0, 1))),
        BatchSizeError,
        "inputs[0]: got shape (3, 6, 5), expected (T=6, B=3, 5). Swap the first two axes: time leads",
    ),
    Refusal(
        "time and samples the other way round in everything",
        lambda seed: gradient(seed, inputs=first(lambda x: x.swapaxes(0, 1)), targets=np.transpose),
        BatchSizeError,
        "inputs[0]: got shape (3, 6, 5), expected (T, B=3, 5). Swap the first two axes: time leads",
    ),
    Refusal(
        "another batch in everything",
        lambda seed: gradient(seed, inputs=first(lambda x: x[:, 1:]), targets=lambda y: y[:, 1:]),
        BatchSizeError,
        "inputs[0]: got shape (6, 2, 5), expected (T, B=3, 5). Use a batch of the size that the strategy",
    ),
    Refusal(
        "inputs in nested lists",
        lambda seed: gradient(seed, inputs=first(np.ndarray.tolist)),
        StructureError,
        "inputs[0]: got 90 leaves, expected one array. Pass an array; jnp.asarray makes one of nested lists.",
    ),
    Refusal(
        "targets in nested lists",
        lambda seed: gradient(seed, targets=np.ndarray.tolist),
        StructureError,
        "targets: got 18 leaves, expected one array. Pass an array; jnp.asarray makes one of nested lists.",
    ),
    Refusal(
        "a mask in nested lists",
        lambda seed: gradient(seed, mask=FLAGS.tolist()),
        StructureError,
        "mask: got list, expected an array [T, B] of bool. Give a flag to every step of every sample",
    ),
    Refusal(
        "more targets than inputs",
        lambda seed: gradient(seed, inputs=first(lambda x: x[:4])),
        ShapeError,
        "targets: got shape (6, 3), expected (T=4, B=3).",
    ),
    Refusal(
        "two inputs of different lengths",
        lambda seed: gradient(seed, "two_inputs", inputs=lambda inputs: (inputs[0], inputs[1][:4])),
        ShapeError,
        "inputs[1]: got shape (4, 3, 7), expected (T=6, B=3, 7).",
    ),
    Refusal(
        "double precision for a single precision model",
        lambda seed: gradient(seed, precision=32, inputs=first(lambda x: x.astype(np.float64))),
        DtypeError,
        "inputs[0]: got float64, expected float32. Convert it with .astype('float32'), or capture the module with",
    ),
    Refusal(
        "complex numbers",
        lambda seed: gradient(seed, inputs=first(lambda x: x + 0j)),
        DtypeError,
        "inputs[0]: got complex128, expected float64. Convert it with .astype('float64')",
    ),
    *(
        Refusal(
            f"{name} that are {kind}",
            lambda seed, change=change: gradient(seed, **change),
            DtypeError,
            f"{where}: got {got}, expected an array of numbers. Pass what jnp.asarray takes.",
        )
        for kind, value, got in (("a word", "x", "str"), ("words", np.array(["x"]), "an array of dtype <U1"))
        for name, where, change in (
            ("inputs", "inputs[0]", {"inputs": first(lambda _, value=value: value)}),
            ("targets", "targets", {"targets": lambda _, value=value: value}),
            ("flags", "mask", {"mask": value}),
        )
    ),
    Refusal(
        "a unit where there was none",
        lambda seed: gradient(seed, inputs=first(lambda x: x * u.mV)),
        UnitError,
        "inputs[0]: got unit mV, expected ~ Give it the unit that it had at capture.",
    ),
    Refusal(
        "another dimension",
        lambda seed: gradient(
            seed, "trees", inputs=first(lambda x: {**x, "current": u.get_mantissa(x["current"]) * u.mV})
        ),
        UnitError,
        "inputs[0]['current']: got unit mV, expected unit mA. Give it the unit that it had at capture.",
    ),
    Refusal(
        "no unit where there was one",
        lambda seed: gradient(seed, "trees", inputs=mantissas),
        UnitError,
        "inputs[0]['current']: got ~ expected unit mA. Give it the unit that it had at capture.",
    ),
    Refusal(
        "one input of two",
        lambda seed: gradient(seed, "two_inputs", inputs=lambda inputs: inputs[0]),
        StructureError,
        "inputs: got ndarray, expected a tuple of 2 arguments. Pass the arguments that capture() saw as examples",
    ),
    Refusal(
        "a tuple of one input of two",
        lambda seed: gradient(seed, "two_inputs", inputs=lambda inputs: inputs[:1]),
        StructureError,
        "inputs: got 1 argument, expected a tuple of 2 arguments. Pass the arguments that capture() saw as examples",
    ),
    Refusal(
        "two inputs for one",
        lambda seed: gradient(seed, inputs=lambda inputs: inputs * 2),
        StructureError,
        "inputs: got 2 arguments, expected a tuple of 1 argument. Pass the arguments that",
    ),
    Refusal(
        "a leaf too few",
        lambda seed: gradient(seed, "trees", inputs=first(without("others"))),
        StructureError,
        "inputs[0]['others'][0]: got nothing, expected float64[T=6, B=3, 5]. Pass a tree of the captured structure.",
    ),
    Refusal(
        "a leaf under another name",
        lambda seed: gradient(seed, "trees", inputs=first(lambda x: {"curent": x["current"], "others": x["others"]})),
        StructureError,
        "inputs[0]['curent']: got ~ mA, expected no such leaf. ~ Missing: inputs[0]['current'].",
    ),
    Refusal(
        "flags of another length",
        lambda seed: gradient(seed, mask=FLAGS[1:]),
        ShapeError,
        "mask: got shape (5, 3), expected (T=6, B=3). Give inputs, targets, mask and reset the same number of steps.",
    ),
    Refusal(
        "flags of another batch",
        lambda seed: gradient(seed, reset=FLAGS[:, 1:]),
        BatchSizeError,
        "reset: got shape (6, 2), expected (T=6, B=3).",
    ),
    Refusal(
        "flags without a batch axis",
        lambda seed: gradient(seed, mask=FLAGS[:, 0]),
        ShapeError,
        "mask: got shape (6,), expected (T=6, B=3). Give a flag to every step of every sample, in one array",
    ),
    Refusal(
        "one flag",
        lambda seed: gradient(seed, reset=True),
        ShapeError,
        "reset: got shape (), expected (T=6, B=3). Give a flag to every step of every sample, in one array",
    ),
    Refusal(
        "flags of one step",
        lambda seed: gradient(seed, mask=brainscale.SingleStepData(FLAGS[0])),
        StructureError,
        "mask: got SingleStepData, expected an array [T, B] of bool. Give a flag to every step",
    ),
    Refusal(
        "flags of samples and steps",
        lambda seed: gradient(seed, mask=FLAGS.T),
        BatchSizeError,
        "mask: got shape (3, 6), expected (T=6, B=3). Swap the first two axes",
    ),
    *(
        Refusal(
            f"inputs that are {value}",
            lambda seed, value=value: gradient(seed, inputs=lambda _: value),
            StructureError,
            "inputs[0]: got nothing, expected float64[T=6, B=3, 5]. Pass arrays; None and empty containers hold none.",
        )
        for value in (None, {}, [])
    ),
    Refusal(
        "flags that are numbers",
        lambda seed: gradient(seed, mask=FLAGS.astype(float)),
        DtypeError,
        "mask: got float64, expected bool. Convert it with .astype('bool')",
    ),
)

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

CAPTURE = (
    Refusal(
        "a function",
        lambda _: captured(same, one_input()),
        CaptureError,
        "net: got function, expected a brainstate.nn.Module. Pass an instance of a Module whose update() is one",
    ),
    Refusal(
        "no dt",
        lambda _: captured(tutorial(), one_input(), environ=None),
        CaptureError,
        "LIFNet: got KeyError: ~ 'dt' not found ~" + ONE_STEP + ". Set it: settings such as dt and fit go into capture",
    ),
    Refusal(
        "a setting under another name",
        lambda _: captured(tutorial(), one_input(), environ={"Dt": 1.0 * u.ms}),
        CaptureError,
        "LIFNet: got KeyError: ~ 'dt' not found ~ Set it: ~ environ={...}); in force are Dt, precision.",
    ),
    Refusal(
        "no fit",
        lambda _: captured(brainstate.nn.Sequential(brainscale.nn.BatchNorm0d((N_IN,)), tutorial()), one_input()),
        CaptureError,
        "Sequential: got KeyError: Key 'fit' not found ~" + ONE_STEP + ". Say whether this is training: "
        "capture(..., environ={'fit': False}), or True for ~ It was raised in BatchNorm0d.update().",
    ),
    Refusal(
        "settings that are a number",
        lambda _: captured(tutorial(), one_input(), environ=1.0),
        OptionError,
        "environ: got 1.0, expected None or {name: value}. Pass the settings of the step, such as",
    ),
    Refusal(
        "settings without names",
        lambda _: captured(tutorial(), one_input(), environ={1: 2.0}),
        OptionError,
        "environ: got the names [1], expected None or {name: value}. Pass the settings",
    ),
    Refusal(
        "no example",
        lambda _: captured(tutorial()),
        CaptureError,
        "LIFNet: got TypeError: LIFNet.update() missing 1 required positional argument: 'x'" + ONE_STEP,
    ),
    Refusal(
        "a step that fails",
        lambda _: captured(Impassable(), one_input()),
        CaptureError,
        "Impassable: got RuntimeError: no way through" + ONE_STEP + ". Change what the message names",
    ),
    Refusal(
        "what BrainScale cannot compile",
        lambda _: captured(modules.Broken(N_IN, N_REC), one_input()),
        CaptureError,
        "Broken: got NotImplementedError: ~ hidden states are computed within a cond function. ~"
        + ONE_STEP
        + ". BrainScale does not follow",
    ),
    Refusal(
        "a state that changes its shape",
        lambda _: captured(Growing(), one_input()),
        CaptureError,
        "Growing: memory: got shape (5,) after one step, expected (), the shape before. Initialise the state",
    ),
    Refusal(
        "a weight before states of two shapes",
        lambda _: captured(TwoShapes(), one_input()),
        CaptureError,
        "inp.weight_op: got hidden states of the shapes [(2, 7), (7,)] ~ expected hidden states of one shape. Use a",
    ),
    Refusal(
        "an example that is no array",
        lambda _: captured(tutorial(), "a"),
        DtypeError,
        "example_inputs[0]: got str, expected an array of numbers. Pass what jnp.asarray takes.",
    ),
    Refusal(
        "an example of words",
        lambda _: captured(tutorial(), np.array(["a"])),
        DtypeError,
        "example_inputs[0]: got an array of dtype <U1, expected an array of numbers. Pass",
    ),
    Refusal(
        "an axis without a name",
        lambda _: pb.capture(tutorial(), one_input(), algorithm=ES, axis_name=""),
        OptionError,
        "axis_name: got '', expected a name. Pass the one that the module's code uses.",
    ),
    Refusal(
        "no algorithm",
        lambda _: captured(tutorial(), one_input(), algorithm="D_RTRL"),
        StructureError,
        "algorithm: got str, expected an algorithm. Pass an instance: pb.ES_D_RTRL(0.9), say.",
    ),
)

STRATEGY = (
    *(
        Refusal(
            f"{name} of {size!r}",
            lambda seed, name=name, size=size: STRATEGIES[name](bench("tutorial", seed).learner, size),
            BatchSizeError,
            f"pb.{name}: got batch size {size!r}, expected an integer >= 1. Give the number of samples.",
        )
        for name in STRATEGIES
        for size in (0, -1, True, 2.5)
    ),
    *(
        Refusal(
            f"{name} of all that capture returns",
            lambda _, call=call: call((captured(tutorial(), one_input()), {})),
            StructureError,
            f"pb.{name}: got tuple, expected a Learner. ~ pass the first.",
        )
        for name, call in {
            "sequence_grad": lambda both: pb.sequence_grad(both, squared),
            "sample_norms": lambda both: pb.sample_norms(both, squared),
            "clipped_grad": lambda both: pb.clipped_grad(both, squared, 1.0),
        }.items()
    ),
    Refusal(
        "a strategy on all that capture returns",
        lambda _: pb.vmap((captured(tutorial(), one_input()), {}), SAMPLES),
        StructureError,
        "pb.vmap: got tuple, expected a Learner. ~ pass the first.",
    ),
    Refusal(
        "a strategy on a strategy",
        lambda seed: pb.vmap(bench("tutorial", seed).batched("loop"), SAMPLES),
        StrategyError,
        "pb.vmap: got a learner batched by pb.loop, expected a learner of one sample. Apply one strategy to",
    ),
    Refusal(
        "manual with random numbers",
        lambda seed: pb.manual(bench("noisy", seed).learner, SAMPLES),
        RandomnessError,
        "pb.manual: got a module that draws from the random key 'random' inside its step, expected ~ Use pb.vmap",
    ),
    Refusal(
        "manual with an output that forgets the batch axis",
        lambda _: pb.manual(captured(Summed(), one_input()), SAMPLES),
        StrategyError,
        "Summed: output: got shape () when traced with 3 samples, expected (3,). ~ use pb.vmap.",
    ),
    Refusal(
        "manual with a state that is summed over the batch",
        lambda _: pb.manual(captured(Remembering(), one_input()), SAMPLES),
        SampleCouplingError,
        "pb.manual: other['memory']: got samples coupled by reduce_sum at test_errors.py: ~ (Remembering.update), "
        "expected samples that do not reach each other. Use pb.vmap, ~ or pass allow_coupling=True",
    ),
    Refusal(
        "manual with code that knows no batch axis",
        lambda _: pb.manual(captured(Flattened(), one_input()), SAMPLES),
        StrategyError,
        "Flattened: got TypeError with a batch axis: cannot reshape ~ (3, 5) ~ expected ~ carries a batch axis. Use "
        "pb.vmap",
    ),
)

OPTIONS = (
    *(
        Refusal(
            f"{algorithm.__name__}({value!r})",
            lambda _, algorithm=algorithm, value=value: algorithm(value),
            AlgorithmError,
            f"decay_or_rank: got {value!r}" + RANKS,
        )
        for algorithm in (pb.ES_D_RTRL, pb.Hybrid)
        for value in (1.0, 0, 0.0, -0.1, -1, True, "0.9", float("nan"))
    ),
    *(
        Refusal(
            f"{name} with {option}",
            lambda _, make=make, option=option: make(**{option: "exact"}),
            AlgorithmError,
            f"{option}: got 'exact'" + text,
        )
        for name, make in {
            "ES_D_RTRL": lambda **options: pb.ES_D_RTRL(0.9, **options),
            "D_RTRL": pb.D_RTRL,
            "Hybrid": lambda **options: pb.Hybrid(0.9, **options),
        }.items()
        for option, text in {"rule": RULES, "vjp": VJPS}.items()
    ),
    Refusal(
        "BPTT(checkpoint=3)",
        lambda _: pb.BPTT(checkpoint=3),
        AlgorithmError,
        "checkpoint: got 3, expected False or True. Choose one of them.",
    ),
    *(
        Refusal(
            f"reduction {value!r}",
            lambda seed, value=value: pb.sequence_grad(bench("tutorial", seed).learner, squared, reduction=value),
            OptionError,
            f"reduction: got {value!r}, expected 'mean' or 'sum' or 'none'. Choose one of them.",
        )
        for value in ("average", None)
    ),
    *(
        Refusal(
            f"window {value!r}",
            lambda seed, value=value: pb.sequence_grad(bench("tutorial", seed).learner, squared, window=value),
            OptionError,
            f"window: got {value!r}, expected None or an integer >= 1. Give a number of steps.",
        )
        for value in (0, -3, True, 2.5)
    ),
    *(
        Refusal(f"a loss that is {name}", lambda seed, loss=loss: with_loss(seed, loss), LossError, text + ONE_NUMBER)
        for name, loss, text in (
            ("a vector", lambda out, _: out, "loss: got float64[2]"),
            ("an array of one", lambda out, _: out.sum()[None], "loss: got float64[1]"),
            ("a quantity", lambda out, _: out.sum() * u.mV, "loss: got float64[] mV"),
            ("an integer", lambda out, _: out.argmax(), "loss: got int64[]"),
            ("a truth value", lambda out, _: out.sum() > 0, "loss: got bool[]"),
            ("complex", lambda out, _: out.sum() + 0j, "loss: got complex128[]"),
            ("a pair", lambda out, _: (out.sum(), out), "loss: got (float64[], float64[2])"),
            ("nothing", lambda out, _: None, "loss: got None"),
        )
    ),
    *(
        Refusal(
            f"{name} that is no flag",
            lambda seed, call=call: call(bench("tutorial", seed)),
            OptionError,
            f"{name}: got 'yes', expected False or True. Choose one of them.",
        )
        for name, call in {
            "allow_coupling": lambda made: pb.manual(made.learner, SAMPLES, allow_coupling="yes"),
            "outputs": lambda made: pb.sequence_grad(made.learner, squared, outputs="yes"),
            "probe": lambda made: pb.audit(made.learner, probe="yes"),
            "spikes": lambda made: assert_interchangeable(tutorial, ES, *made.data(STEPS, SAMPLES), None, spikes="yes"),
        }.items()
    ),
    *(
        Refusal(
            f"bound {value!r}",
            lambda seed, value=value: pb.clipped_grad(bench("tutorial", seed).batched("vmap"), squared, value),
            OptionError,
            f"bound: got {value!r}, expected a number above 0. Give the largest norm.",
        )
        for value in (0.0, -1, True, np.True_, "1", None, 1j, np.complex64(1), np.array("1"), float("nan"), np.ones(2))
    ),
    Refusal(
        "params of an audit that are a number",
        lambda seed: pb.audit(bench("tutorial", seed).batched("vmap"), params=3),
        StructureError,
        "params: got int, expected {path: value}.",
    ),
    Refusal(
        "params of an audit that are of another module",
        lambda seed: pb.audit(bench("tutorial", seed).batched("vmap"), params=bench("GRUCell", seed).params),
        StructureError,
        "params[~ expected no such leaf.",
    ),
    *(
        Refusal(
            f"a number for the module of {name}",
            lambda _, call=call: call(3),
            StructureError,
            "net: got int, expected a brainstate.nn.Module. Pass the module whose states are meant.",
        )
        for name, call in {"read_states": pb.read_states, "write_states": lambda net: pb.write_states(net, {})}.items()
    ),
    Refusal(
        "a number for states",
        lambda _: pb.write_states(tutorial(), 3),
        StructureError,
        "tree: got int, expected {path: value}. Pass what read_states gave, or a part of it.",
    ),
    *(
        Refusal(
            f"interchangeable: {name}",
            lambda _, factory=factory, inputs=inputs, laws=laws: assert_interchangeable(
                factory, ES, inputs, one_input(), squared, environ=SETTINGS, laws=laws
            ),
            error,
            text,
        )
        for name, factory, inputs, laws, error, text in (
            (
                *("a module", tutorial(), one_input(), None, StructureError),
                "net_factory: got one ~Net, expected a function () -> module. Pass what makes the module",
            ),
            ("a number", tutorial, 3, None, ShapeError, "inputs[0]: got shape (), expected (T, B, ...). Time leads"),
            ("no batch", tutorial, one_input(), None, ShapeError, "inputs[0]: got shape (5,), expected (T, B, ...)."),
            ("text", tutorial, "x", None, DtypeError, "inputs[0]: got str, expected an array of numbers."),
            ("no law", tutorial, 3, ["x"], OptionError, "laws: got 'x', expected 'init' or ~ Choose one of them."),
        )
    ),
    Refusal(
        "an algorithm that is not compiled",
        lambda seed: pb.from_native(bench("tutorial", seed).learner, object()),
        NativeError,
        "algorithm: got object, expected a compiled brainscale algorithm. Call algorithm.compile_graph(*inputs) first.",
    ),
)

REFUSALS = (*DATA, *STEP, *CAPTURE, *STRATEGY, *OPTIONS)


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
        assert pb.sequence_grad(made.learner, squared, window=integer).window == 2

    def test_a_dimensionless_loss(self, seed: int) -> None:
        got = with_loss(seed, lambda out, _: out.sum() * u.mV / u.volt)
        assert_close(got, with_loss(seed, lambda out, _: out.sum() / 1000))


class TestNothingIsHalfChanged:
    @pytest.mark.parametrize("refusal", [one for one in DATA if one.error is not OptionError], ids=lambda one: one.name)
    def test_no_loss_was_asked_for(self, refusal: Refusal, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """The data is checked before anything is traced."""
        monkeypatch.setattr("pure_batching._sequence.run_sequence", unreachable)
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

    @pytest.mark.parametrize("make", [tutorial, Impassable, Growing, TwoShapes, lambda: modules.Broken(N_IN, N_REC)])
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
