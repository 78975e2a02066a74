"""Rules of a user's own whose methods return what no learner can use."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import pure_batching as pb
from pure_batching.errors import AlgorithmError, OptionError
from pure_batching.rules import Factors, Jacobians, Params, Parts, Program, Relation, Signal

from ..bench import bench
from ..models import MODELS
from .provoke import Refusal, captured, one_input, same

N_IN, N_REC = 3, 4
PARAMS = {"w": jnp.ones((N_IN, N_REC)), "b": jnp.ones(N_REC)}


def step(params: Any, hidden: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A leaky layer of one sample."""
    hidden = 0.9 * hidden + x @ params["w"] + params["b"]
    return hidden, hidden


def learner_of(rule: pb.Algorithm) -> tuple[pb.Learner, Any]:
    """A learner of the layer."""
    return pb.capture_function(step, PARAMS, jnp.zeros(N_REC), jnp.ones(N_IN), algorithm=rule)


class Own(pb.Algorithm):
    """The gradient of a decaying input; what a method returns is changed before it returns.

    Attributes:
      of_init, of_step, of_uses: the changes.
      way: the credit.
      kept_in: the type of traces.
    """

    of_init: Callable[..., Any] = eqx.field(static=True, default=same)
    of_step: Callable[..., Any] = eqx.field(static=True, default=lambda trace, record: (trace, record))
    of_uses: Callable[..., Any] = eqx.field(static=True, default=same)
    way: Any = eqx.field(static=True, default="trace")
    kept_in: Any = eqx.field(static=True, default=None)

    @property
    def credit(self) -> Any:
        return self.way

    @property
    def trace_dtype(self) -> Any:
        return self.kept_in

    def init(self, program: Program) -> Any:
        return self.of_init(
            {name: jnp.zeros(x.spec.shape, x.spec.dtype) for name, x in program.weight_inputs().items()}
        )

    def step(
        self, program: Program, params: Params, trace: Any, jacobians: Jacobians, signal: Signal, count: jax.Array
    ) -> Any:
        xs = {name: 0.5 * eps + jacobians.xs[name] for name, eps in trace.items()}
        dys = {
            one.name: (
                sum(
                    ((jacobians.dfs[k.df] * k.seen(signal.new[k.group.name])).sum(-1) for k in one.links),
                    start=jnp.zeros((), one.links[0].group.dtype),
                ),
            )
            for one in program.relations
        }
        return self.of_step(xs, (Factors(xs, dys),))

    def traces_of(self, relation: Relation, trace: Any) -> Any:
        return self.of_uses({} if relation.x is None else {"x": trace[relation.x.name]})


class Windowed(Own):
    """The same, which makes the gradient and the trace of a window itself.

    Attributes:
      of_window: `(trace_before, records) -> parts`.
      of_end: `(trace_before, trace_after) -> trace`.
      of_trace: `trace -> parts`.
      made: `jacobians -> jacobians`.
    """

    of_window: Callable[..., Any] = eqx.field(static=True, default=lambda _, records: Parts(records, {}))
    of_end: Callable[..., Any] = eqx.field(static=True, default=lambda _, after: after)
    of_trace: Callable[..., Any] = eqx.field(static=True, default=lambda _: Parts((), {}))
    made: Callable[..., Any] = eqx.field(static=True, default=same)

    @property
    def derivatives(self) -> Any:
        return lambda program, params, states, inputs, jacobians: self.made(jacobians)

    def window_trace(self, program: Program, params: Params, trace_before: Any, trace_after: Any, records: Any) -> Any:
        return self.of_end(trace_before, trace_after)

    def window_gradient(self, program: Program, params: Params, trace_before: Any, records: Any) -> Any:
        return self.of_window(trace_before, records)

    def gradient_of_trace(self, program: Program, params: Params, trace: Any, signal: Signal, count: jax.Array) -> Any:
        return self.of_trace(trace)


class Named(Own):
    """A rule with a field that holds no numbers."""

    name: str = "mine"


def of_trace(change: Callable[[Any], Any]) -> Own:
    """A rule whose step returns another trace."""
    return Own(of_step=lambda trace, record: (change(trace), record))


def of_record(change: Callable[[Any], Any]) -> Own:
    """A rule whose step returns another record."""
    return Own(of_step=lambda trace, record: (trace, change(record)))


def of_dys(change: Callable[[Any], Any]) -> Own:
    """A rule whose factors have other derivatives of products."""
    return of_record(lambda record: (record[0]._replace(dys={k: change(dy) for k, (dy,) in record[0].dys.items()}),))


def of_dense(dense: Any) -> Windowed:
    """A rule with such a dense part."""
    return Windowed(of_window=lambda _, records: Parts(records, dense))


def each(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change of every array of a tree."""
    return lambda tree: jax.tree.map(change, tree)


def first(array: jax.Array) -> jax.Array:
    return array[:1]


def in_single_precision(rule: pb.Algorithm) -> Any:
    """A capture where JAX has no 64-bit numbers."""
    with jax.enable_x64(new_val=False):
        params, hidden, x = ({"w": jnp.ones((N_IN, N_REC)), "b": jnp.ones(N_REC)}, jnp.zeros(N_REC), jnp.ones(N_IN))
        return pb.capture_function(step, params, hidden, x, algorithm=rule)


def failing(*_: Any) -> Any:
    raise RuntimeError("no way\nthrough")


# What every text says of a trace.
LIKE_INIT = ". Return a trace with the structure, the shapes and the dtypes that init gives."
ONE_K = ", expected one number of steps in front of all of them. Give each array the axis of steps."
PARTS = "Parts(factors, dense, of_trace)"
FRESH = f", expected {PARTS}, also with trace_before=None, for a fresh start. Change what the message"
IN_A_TUPLE = ", expected a tuple of Factors. Put the Factors into a tuple, (factors,);"

WRONG: tuple[tuple[str, pb.Algorithm, str], ...] = (
    (
        "init: fails",
        Own(of_init=failing),
        "Own.init: got RuntimeError: no way, expected a trace, which is a tree of arrays. Change what the message",
    ),
    (
        "init: text in a trace",
        Own(of_init=lambda trace: {**trace, "how": "fast"}),
        "Own.init: got trace['how'] = 'fast', expected an array. Keep what is no array in a static field",
    ),
    (
        "derivatives: a number",
        Windowed(made=lambda _: 3),
        "Windowed.derivatives: got int, expected Jacobians. Return Jacobians,",
    ),
    (
        "step: a trace of another shape",
        of_trace(each(lambda eps: eps[:1])),
        "Own.step: got trace['params.w'] of float64[1], expected float64[3], as init gives it" + LIKE_INIT,
    ),
    (
        "step: a trace of another dtype",
        of_trace(each(lambda eps: eps.astype("float32"))),
        "Own.step: got trace['params.w'] of float32[3], expected float64[3], as init gives it" + LIKE_INIT,
    ),
    (
        "step: a trace with other names",
        of_trace(lambda trace: {"eps": trace["params.w"]}),
        "Own.step: got a trace with trace['eps'] and without trace['params.w'], expected the structure that init gives"
        + LIKE_INIT,
    ),
    (
        "step: a trace in other containers",
        of_trace(OrderedDict),
        "Own.step: got a trace in other containers, OrderedDict(~), expected the structure that init gives, "
        "{'params.w': float64[3]}" + LIKE_INIT,
    ),
    (
        "step: one result",
        Own(of_step=lambda trace, _: trace),
        "Own.step: got dict, expected a pair of the trace after the step and the record of the step. Return both",
    ),
    ("step: bare Factors", of_record(lambda record: record[0]), "Own.step: got the record = Factors" + IN_A_TUPLE),
    (
        "step: no Factors",
        of_record(lambda record: record[0].dys),
        "Own.step: got the record = dict" + IN_A_TUPLE + " a rule with another record has to define window_gradient.",
    ),
    (
        "step: text in a record",
        of_record(lambda record: (*record, "fast")),
        "Own.step: got record[1] = 'fast', expected an array. Keep",
    ),
    (
        "step: an input is missing",
        of_record(lambda record: (record[0]._replace(xs={}),)),
        "Own.step: got no xs['params.w'], expected the input of 'params.w', which dys has. Give the factors the input",
    ),
    (
        "step: an input of another shape",
        of_record(lambda record: (record[0]._replace(xs=each(lambda x: x[None])(record[0].xs)),)),
        "Own.step: got xs['params.w'] of float64[1, 3], expected float64[3]. Give what jacobians.xs has",
    ),
    (
        "step: inputs without names",
        of_record(lambda record: (record[0]._replace(xs=[*record[0].xs.values()]),)),
        "Own.step: got xs = list, expected a dictionary by name. See the docstring of Factors.",
    ),
    (
        "step: a relation that is none",
        of_record(lambda record: (record[0]._replace(dys={"w": record[0].dys["params.w"]}),)),
        "Own.step: got dys['w'], expected names of relations: params.~, params.~. Use relation.name",
    ),
    (
        "step: an array for a tuple",
        of_dys(same),
        "Own.step: got dys['params.~'] = float64[4], expected a tuple of one array. Give (dy,), with the comma",
    ),
    (
        "step: two arrays for one",
        of_dys(lambda dy: (dy, dy)),
        "Own.step: got dys['params.~'] of 2 arrays, expected a tuple of one array. Give (dy,), with the comma",
    ),
    (
        "step: a product of another shape",
        of_dys(lambda dy: (dy[:2],)),
        "Own.step: got dys['params.~'][0] of float64[2], expected float64[4]. Sum over the states of each group",
    ),
    (
        "step: a product of another dtype",
        of_dys(lambda dy: (dy.astype("float32"),)),
        "Own.step: got dys['params.~'][0] of float32[4], expected float64[4]. Sum over the states of each group",
    ),
    (
        "step: a product that is a number",
        of_dys(lambda _: (1.0,)),
        "Own.step: got dys['params.~'][0] of float64[], expected float64[4]. Sum over the states of each group",
    ),
    (
        "window_gradient: bare Factors",
        Windowed(of_window=lambda _, records: records[0]),
        f"Windowed.window_gradient: got Factors, expected {PARTS}. Return Parts((factors,), {{}})",
    ),
    (
        "window_gradient: bare Factors in Parts",
        Windowed(of_window=lambda _, records: Parts(records[0], {})),
        "Windowed.window_gradient: got Parts.factors = Factors" + IN_A_TUPLE,
    ),
    (
        "window_gradient: a sum over the steps",
        Windowed(of_window=lambda _, records: Parts(each(lambda x: x.sum(0))(records), {})),
        "Windowed.window_gradient: got dys['params.~'][0] of float64[4], expected float64[K, 4], with the steps ~",
    ),
    (
        "window_gradient: two numbers of steps",
        Windowed(of_window=lambda _, records: Parts((records[0]._replace(xs=each(first)(records[0].xs)),), {})),
        "Windowed.window_gradient: got Factors.xs['params.w'] with [1], Factors.dys['params.~'][0] with [2], ~" + ONE_K,
    ),
    (
        "window_gradient: a trace in the place of its records",
        Windowed(of_window=lambda before, records: Parts((records[0]._replace(xs=before),), {})),
        "Windowed.window_gradient: got xs['params.w'] of float64[3], expected float64[K, 3], with",
    ),
    (
        "window_gradient: no fresh start",
        Windowed(of_window=lambda before, records: Parts(records[: len(before)], {})),
        "Windowed.window_gradient: got TypeError: object of type 'NoneType' has no len()" + FRESH,
    ),
    (
        "window_gradient: a gradient of another shape",
        of_dense({"params.w": jnp.zeros(N_REC)}),
        "Windowed.window_gradient: got dense['params.w'] of float64[4], expected float64[3, 4], as the weight is. Give",
    ),
    (
        "window_gradient: a weight that is none",
        of_dense({"w": jnp.zeros(N_REC)}),
        "Windowed.window_gradient: got dense['w'], expected paths of weights: params.b, params.w. Give the gradient by",
    ),
    (
        "window_gradient: no dense part",
        of_dense(None),
        "Windowed.window_gradient: got Parts.dense = NoneType, expected {path: gradient}. Give the gradient by",
    ),
    (
        "window_trace: nothing",
        Windowed(of_end=lambda *_: None),
        "Windowed.window_trace: got a trace without trace['params.w'], expected the structure that init gives"
        + LIKE_INIT,
    ),
    (
        "gradient_of_trace: a step with the axis of a window",
        Windowed(
            way="window",
            of_trace=lambda trace: Parts(
                (Factors(each(lambda x: x[None])(trace), {"params.w": (jnp.zeros(N_REC),)}),), {}
            ),
        ),
        "Windowed.gradient_of_trace: got xs['params.w'] of float64[1, 3], expected float64[3]. Give",
    ),
    (
        "gradient_of_trace: not defined",
        Own(way="window"),
        f"Own.gradient_of_trace: got NotImplementedError, expected {PARTS}, which a rule with credit ~",
    ),
    (
        "credit: unknown",
        Own(way="both"),
        "Own.credit: got 'both', expected 'trace' or 'window'. Choose one of them.",
    ),
    (
        "traces_of: a list",
        Own(of_uses=lambda uses: [*uses.values()]),
        "Own.traces_of: got list, expected {name: array} of one use of a weight. Name each array",
    ),
    (
        "a field of text",
        Named(),
        "Named.name: got 'mine', expected a number or an array, or a field that is static. Declare the field with eqx",
    ),
)


OWN_RULES = (
    *(
        Refusal(f"own rule, {name}", lambda _, rule=rule: learner_of(rule), AlgorithmError, text)
        for name, rule, text in WRONG
    ),
    Refusal(
        "own rule of a module, one array for each of two",
        lambda _: captured(MODELS["LSTMCell"].build(0), one_input(), algorithm=of_dys(lambda dy: (dy, dy, dy))),
        AlgorithmError,
        "Own.step: got dys['~'] of 3 arrays, expected a tuple of one array, or of 2, for each array of the weight. ~",
    ),
    *(
        Refusal(
            f"64-bit traces where there are none, {name}",
            lambda seed, capture=capture: capture(seed),
            OptionError,
            "trace_dtype: got float64 where JAX has no 64-bit numbers, expected a float type of 32 bits at most. Call "
            'jax.config.update("jax_enable_x64", True) before the capture, or leave trace_dtype out.',
        )
        for name, capture in {
            "a rule": lambda _: in_single_precision(pb.D_RTRL(trace_dtype=jnp.float64)),
            "an own rule": lambda _: in_single_precision(Own(kept_in=float)),
            "a module": lambda seed: bench("tutorial", seed, pb.OTTT(0.9, "float64"), precision=32),
        }.items()
    ),
)
