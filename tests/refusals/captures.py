"""Modules that cannot be captured."""

import brainscale
import brainstate
import brainunit as u
import numpy as np

import pure_batching as pb
from pure_batching.errors import CaptureError, DtypeError, OptionError, StructureError

from .. import modules
from ..models import N_IN, N_REC
from .provoke import ES, Growing, Impassable, Refusal, TwoShapes, Typed, captured, one_input, same, tutorial

# What every text says of a module that cannot be compiled.
ONE_STEP = ", expected a module whose update() is one step of one sample that BrainScale can compile; ~ without T and B"

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
        "a hidden state of complex numbers",
        lambda _: captured(Typed(complex), one_input()),
        CaptureError,
        "Typed: h: got a hidden state of dtype complex128, expected real numbers, which have a derivative. "
        "Keep the real and the imaginary part as two states, as brainscale.nn.LRUCell does.",
    ),
    Refusal(
        "a hidden state of whole numbers",
        lambda _: captured(Typed(int), one_input()),
        CaptureError,
        "Typed: h: got a hidden state of dtype int64, expected real numbers, which have a derivative. "
        "Keep it in a brainstate.ShortTermState, or leave it out (ref_var=False in brainpy.state).",
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
