"""Learner: a program and an algorithm, and the differentiable step."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from ._algorithms.base import Algorithm, Trace, contract
from ._capture import capture_program
from ._errors import CarryError, StructureError
from ._program import Jacobians, Params, Perturbation, Program, States, Step
from ._tree import Tree, conform, named_leaves, spec_of, with_lead


class Carry(NamedTuple):
    """What one step hands to the next.

    Every leaf but those of `shared` has a leading axis `[B, ...]` in a batch.

    Attributes:
      hidden: the hidden states by path, in their units.
      other: other states of a sample (short-term states, statistics, delay buffers) by path.
      keys: random keys by path.
      shared: states that are the same for every sample (write pointers, counters) by path.
      trace: the algorithm's eligibility traces.
      step_count: how many steps were made, `[]` int32.
    """

    hidden: Mapping[str, Tree]
    other: Mapping[str, Tree]
    keys: Mapping[str, jax.Array]
    shared: Mapping[str, Tree]
    trace: Trace
    step_count: jax.Array

    @property
    def states(self) -> States:
        """The module's part of the carry."""
        return States(self.hidden, self.other, self.keys, self.shared)


Execute = Callable[[Params, States, tuple[Tree, ...], Perturbation], Step]
Each = Callable[[Callable[..., Any]], Callable[..., Any]]


class Execution(NamedTuple):
    """How a step is run for the samples of a learner.

    Attributes:
      name: the strategy's name.
      batch_size: `B`, None for one sample.
      execute: `Program.execute` for all samples.
      each: makes `f(shared, *own)` of one sample a function of all samples, whose `own` arguments lead with `B`.
    """

    name: str
    batch_size: int | None
    execute: Execute
    each: Each

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes in front of every leaf that belongs to a sample."""
        return () if self.batch_size is None else (self.batch_size,)


class Learner(eqx.Module):
    """A program with an algorithm: pure functions that own no arrays and no State.

    Attributes:
      program: the step of one sample.
      algorithm: the learning rule.
      execution: how the step is run for one sample or a batch of them.
    """

    program: Program = eqx.field(static=True)
    algorithm: Algorithm = eqx.field(static=True)
    execution: Execution = eqx.field(static=True)

    @property
    def batch_size(self) -> int | None:
        """`B`, None for one sample."""
        return self.execution.batch_size

    def init(self, key: jax.Array | None = None) -> Carry:
        """A fresh carry.

        Args:
          key: a random key, typed or raw, for random initial states and random steps; None stands for
            `jax.random.key(0)`. Sample `i` of a batch gets `jax.random.fold_in(key, i)`.

        Returns:
          the carry before the first step, the same leaves in every strategy.
        """
        return _init(self, jax.random.key(0) if key is None else key)

    def step(self, params: Params, carry: Carry, *inputs: Tree) -> tuple[Carry, Tree]:
        """One step.

        `jax.grad` through it with respect to `params` gives the online gradient of this step, and with respect to
        `inputs` the ordinary one. No gradient flows through the carry.

        Args:
          params: trainable values by path.
          carry: what the last step returned, or `init()`.
          inputs: the module's arguments, `[...]` or `[B, ...]`.

        Returns:
          the next carry and the module's output.

        Raises:
          StructureError, ShapeError, BatchSizeError, DtypeError, UnitError: an argument does not fit.
          CarryError: the carry belongs to another learner.
        """
        return _step(self, self.check_params(params), self.check_carry(carry), self.check_inputs(inputs))

    def check_params(self, params: Params) -> Params:
        """`params` in the captured units and dtypes."""
        return conform(params, self.program.params, "params")

    def check_carry(self, carry: Carry) -> Carry:
        """`carry` itself, or CarryError."""
        expected = named_leaves(carry_spec(self), "carry")
        got = named_leaves(spec_of(carry), "carry") if isinstance(carry, Carry) else []
        wrong = [name for name, spec in got if (name, spec) not in expected]
        if not isinstance(carry, Carry) or wrong or len(got) != len(expected):
            raise _carry_error(carry, wrong, dict(got), dict(expected))
        return carry

    def axes(self, *lead: tuple[str, int]) -> tuple[tuple[str, int], ...]:
        """The axes in front of every leaf that belongs to a sample, after those of `lead`."""
        return lead if self.batch_size is None else (*lead, ("B", self.batch_size))

    def check_inputs(self, inputs: tuple[Tree, ...]) -> tuple[Tree, ...]:
        """`inputs` in the captured units and dtypes."""
        if len(inputs) != len(self.program.inputs):
            raise StructureError(
                "inputs",
                got=f"{len(inputs)} arguments",
                expected=f"{len(self.program.inputs)}",
                repair="Pass the arguments that capture() saw as examples.",
            )
        return conform(inputs, self.program.inputs, "inputs", self.axes())


def capture(
    net: Any, *example_inputs: Tree, algorithm: Algorithm, environ: dict[str, Any] | None = None
) -> tuple[Learner, Params]:
    """A BrainScale module as a learner of one sample, and its trainable values.

    The module is read and left as it was. Its hidden states must be `HiddenState`s and its traced weights
    `ETraceParam`s; `NonTempParam` and plain `ParamState` weights get the ordinary gradient of each step.

    Args:
      net: a `brainstate.nn.Module` whose `update(*inputs)` is one step.
      example_inputs: the arguments of one step of one sample, without a batch axis; only their shapes, dtypes and units
        are used.
      algorithm: the learning rule, such as `pb.ES_D_RTRL(0.9)`.
      environ: settings (`dt`, `fit`) on top of those in force; the learner keeps them.

    Returns:
      the learner, and `{path: value}` of every trainable value.

    Raises:
      CaptureError: the module cannot be traced or compiled; the text quotes the reason.
    """
    if not isinstance(algorithm, Algorithm):
        raise StructureError(
            "algorithm", got=type(algorithm).__name__, expected="an algorithm", repair="Pass pb.ES_D_RTRL(0.9), say."
        )
    program, params = capture_program(net, example_inputs, environ)
    return Learner(program, algorithm, Execution("one sample", None, program.execute, lambda fun: fun)), params


def carry_spec(learner: Learner) -> Carry:
    """The shapes and dtypes of a learner's carry."""
    states, trace = learner.program.states, jax.eval_shape(lambda: learner.algorithm.init(learner.program))
    step_count: Any = jax.ShapeDtypeStruct((), jnp.int32)
    own = Carry(*states, trace=trace, step_count=step_count)
    return with_lead(own, learner.execution.lead)._replace(shared=states.shared)


def advance(learner: Learner, carry: Carry, states: States, jacobians: Jacobians) -> Carry:
    """The next carry: the new states, the trace one step on, the count one higher."""

    def update(_: None, trace: Trace, step_jacobians: Jacobians) -> Trace:
        return learner.algorithm.update(learner.program, trace, step_jacobians)

    trace = learner.execution.each(update)(None, carry.trace, jacobians)
    return Carry(*states, trace=trace, step_count=carry.step_count + 1)


def signal_factors(learner: Learner, trace: Trace, jacobians: Jacobians, signal: Any, count: jax.Array) -> Any:
    """The algorithm's factors of one step, for every sample."""

    def factors(_: None, *own: Any) -> Any:
        return learner.algorithm.factors(learner.program, *own)

    return learner.execution.each(factors)(None, trace, jacobians, signal, count)


def zero_perturbation(learner: Learner) -> Perturbation:
    """Zeros for the hidden states of every sample."""
    zeros = learner.program.zero_perturbation()
    return {path: jnp.zeros((*learner.execution.lead, *zero.shape), zero.dtype) for path, zero in zeros.items()}


def add_gradients(total: Params, *parts: Params) -> Params:
    """`total` with partial gradients, each of some of its weights, added."""
    for part in parts:
        total = total | {path: jax.tree.map(jnp.add, total[path], value) for path, value in part.items()}
    return total


@partial(jax.jit, static_argnums=0)
def _init(learner: Learner, key: jax.Array) -> Carry:
    def fresh(sample_key: jax.Array) -> Carry:
        states = learner.program.initial(sample_key)
        return Carry(*states, trace=learner.algorithm.init(learner.program), step_count=jnp.zeros((), jnp.int32))

    if learner.batch_size is None:
        return fresh(key)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(learner.batch_size))
    shared = fresh(key).shared
    return jax.vmap(fresh)(keys)._replace(shared=shared)


@partial(jax.jit, static_argnums=0)
def _step(learner: Learner, params: Params, carry: Carry, inputs: tuple[Tree, ...]) -> tuple[Carry, Tree]:
    @jax.custom_vjp
    def step(params: Params, carry: Carry, inputs: tuple[Tree, ...]) -> tuple[Carry, Tree]:
        return forward(params, carry, inputs)[0]

    def forward(params: Params, carry: Carry, inputs: tuple[Tree, ...]) -> Any:
        def run(direct: Params, inputs: tuple[Tree, ...], perturbation: Perturbation) -> Any:
            done = learner.execution.execute(params | direct, carry.states, inputs, perturbation)
            return done.output, (done.states, done.jacobians)

        direct = {path: params[path] for path in learner.program.direct}
        output, pullback, (states, jacobians) = jax.vjp(run, direct, inputs, zero_perturbation(learner), has_aux=True)
        new = advance(learner, carry, states, jacobians)
        return (new, output), (pullback, params, new.trace, jacobians, carry.step_count)

    def backward(residuals: Any, cotangent: tuple[Carry, Tree]) -> Any:
        pullback, params, trace, jacobians, count = residuals
        direct, inputs, perturbation = pullback(cotangent[1])
        signal = learner.program.signal(perturbation)
        factors = signal_factors(learner, trace, jacobians, signal, count)
        if learner.batch_size is None:
            factors = jax.tree.map(lambda x: x[None], factors)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return add_gradients(zeros, contract(learner.program, params, factors), direct), None, inputs

    step.defvjp(forward, backward)
    return step(params, carry, inputs)


def _carry_error(carry: Any, wrong: list[str], got: dict[str, Any], expected: dict[str, Any]) -> CarryError:
    if not isinstance(carry, Carry):
        return CarryError(
            "carry", got=type(carry).__name__, expected="a Carry", repair="Start from learner.init() or carry=None."
        )
    name = (wrong or sorted(set(expected) - set(got)))[0]
    return CarryError(
        name,
        got=got.get(name, "nothing"),
        expected=expected.get(name, "no such leaf"),
        repair="The carry belongs to another learner, batch size or step; start from this learner's init().",
    )
