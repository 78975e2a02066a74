"""Inputs, targets, flags and params that do not fit a sequence."""

import brainscale
import brainunit as u
import numpy as np

from pure_batching.errors import BatchSizeError, DtypeError, ShapeError, StructureError, UnitError

from .provoke import FLAGS, Refusal, first, fractions_for_whole_numbers, gradient, mantissas, without

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
        "targets of one step",
        lambda seed: gradient(seed, targets=lambda targets: targets[0]),
        ShapeError,
        "targets: got shape (3,), expected (T=6, B=3). Add an axis; T and B lead. What is the same",
    ),
    Refusal(
        "targets of one step with features",
        lambda seed: gradient(seed, targets=lambda targets: np.zeros((*targets[0].shape, 7))),
        ShapeError,
        "targets: got shape (3, 7), expected (T=6, B=3). Add the time axis in front; T and B lead. What is the same",
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
        "fractions for a model that was captured with integers",
        lambda _: fractions_for_whole_numbers(),
        DtypeError,
        "inputs[0]: got float64, expected int64. Capture the module with an example of dtype float64",
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
