"""Learner: a source with a learning rule and a strategy, and pure functions of explicit arrays."""

import copy
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._algorithms.base import Algorithm, kept as trace_kept
from .._algorithms.checking import check_trace_dtype
from .._conform import Axes, conform
from .._keys import mappable
from .._program import Params, Perturbation, Program, States, Step
from .._sources.base import Source
from .._strategies.alone import OneOf
from .._strategies.base import MapSamples, SampleAxes, Strategy
from .._tree import Tree, is_key, spec_text, with_lead
from .._wording import count
from ..errors import CarryError, DtypeError, PureBatchingError, ShapeError, StructureError
from .carry import Carry, apart
from .checked import checked
from .compiled import compiled, in_shares, kept
from .sharding import on_own_mesh
from .step import differentiable_step


class Learner(eqx.Module):
    """A captured step with a learning rule and a strategy; it owns no State.

    A learner passes through `jax.jit` as a constant, and equal learners share what was compiled. Its only arrays are
    those that a user gave as hyperparameters of the rule.

    Attributes:
      source: the captured thing, from which programs are traced.
      program: the step of one sample among those of the strategy.
      algorithm: the learning rule.
      strategy: how functions of one sample are run for one sample or for a batch.
    """

    source: Source = eqx.field(static=True)
    program: Program = eqx.field(static=True)
    algorithm: Algorithm
    strategy: Strategy = eqx.field(static=True)

    @classmethod
    def of(cls, source: Source, algorithm: Algorithm, strategy: Strategy) -> "Learner":
        """A learner whose program is traced now, so that a source that the strategy cannot run is refused now.

        Raises:
          StrategyError: the strategy cannot run the source.
          AlgorithmError: the rule cannot follow the source.
          OptionError: the rule keeps traces in 64 bits, and JAX had none at capture.
        """
        program = strategy.program(source)
        check_trace_dtype(algorithm, source.numerics)
        algorithm.check(program)
        return cls(source, program, algorithm, strategy)

    def run_by(self, strategy: Strategy) -> "Learner":
        """The same source and algorithm under another strategy.

        Nothing is asked about the samples: `pb.manual` does that before it calls this.

        Raises:
          StrategyError: the strategy cannot run the source.
        """
        return Learner.of(self.source, self.algorithm, strategy)

    def at_once(self) -> "Learner":
        """The learner of samples that run at once; where the strategy shares a batch out, a share of it."""
        return self if self.strategy.within is self.strategy else self.run_by(self.strategy.within)

    def one_of_its_samples(self) -> "Learner":
        """The learner of one sample for a function that `each`, or another mapping, runs for all samples."""
        return self.run_by(OneOf(self.batch_size or 1))

    def detached(self) -> "Learner":
        """The same learner, which does not lead to what was compiled for it."""
        source = copy.copy(self.source)
        source.memory = {}
        return Learner(source, self.program, self.algorithm, self.strategy)

    def parted(self) -> tuple[Algorithm, "Learner"]:
        """The leaves of the rule, its arrays and what was put in their place, and the learner without them."""
        numbers, others = eqx.partition(self.algorithm, lambda _: True)
        return numbers, Learner(self.source, self.program, others, self.strategy)

    def with_numbers(self, numbers: Algorithm) -> "Learner":
        """The inverse of `parted`."""
        return Learner(self.source, self.program, eqx.combine(numbers, self.algorithm), self.strategy)

    def __reduce__(self) -> tuple[Any, ...]:
        """The step is captured again where a learner is unpickled; PickleError where it cannot be."""
        return _captured_again, (*self.source.recipe(), self.algorithm, self.strategy)

    def __copy__(self) -> "Learner":
        return self

    def __deepcopy__(self, memo: Any) -> "Learner":
        """The same: a learner is a value, and cannot change."""
        return self

    def __repr__(self) -> str:
        inputs = ", ".join(spec_text(spec) for spec in self.program.inputs)
        batch = "one sample" if self.batch_size is None else f"{self.strategy.name} of {self.batch_size} samples"
        return f"Learner({self.algorithm}, {batch}, inputs=({inputs}), output={spec_text(self.program.output)})"

    @property
    def batch_size(self) -> int | None:
        """`B`, None for one sample."""
        return self.strategy.batch_size

    @property
    def lead(self) -> tuple[int, ...]:
        """The sizes of the leading axes of every leaf that belongs to a sample: `(B,)`, or `()` for one sample."""
        return () if self.batch_size is None else (self.batch_size,)

    def axes(self, *before: tuple[str, int | None]) -> tuple[tuple[str, int | None], ...]:
        """The names and sizes of the leading axes of such a leaf, after the axes `before`."""
        return before if self.batch_size is None else (*before, ("B", self.batch_size))

    def init(self, key: jax.Array | None = None) -> Carry:
        """Make a fresh carry.

        Args:
          key: a random key, typed or raw, for random initial states and random steps; None stands for
            `jax.random.key(0)`. Sample `i` of a batch gets `jax.random.fold_in(key, i)`.

        Returns:
          the carry before the first step, the same leaves in every strategy.

        Raises:
          DtypeError: no random key.
        """
        with self.source.numerics.in_force(), on_own_mesh(self.strategy):
            run = compiled(self, _begun, axes=SampleAxes((None,), Carry.sample_axes()))
            return run(check_key(jax.random.key(0) if key is None else key))

    def step(self, params: Tree, carry: Carry, *inputs: Tree) -> tuple[Carry, Tree]:
        """Run one step.

        `jax.grad` through it with respect to `params` gives the online gradient of this step, and with respect to
        `inputs` the ordinary one. No gradient flows through the carry.

        Args:
          params: trainable values, as `pb.capture` or `pb.capture_function` returned them.
          carry: the carry that the last step returned, or `init()`.
          inputs: the module's arguments, `[...]` or `[B, ...]`.

        Returns:
          the next carry and the module's output, `[...]` or `[B, ...]`.

        Raises:
          StructureError, ShapeError, BatchSizeError, DtypeError, UnitError: an argument does not fit.
          CarryError: the carry belongs to another learner.
          DeviceError: arguments on different devices, but under `pb.sharded`, which copies them to its own.
          StrategyError: inside `jax.jit`, an argument whose type names another mesh than that of `pb.sharded`.
          AlgorithmError: a second derivative by an online rule, or one by a number of the rule, such as its decay.
        """
        arguments = checked(self, _check_step, params, carry, inputs)
        with self.source.numerics.in_force():
            return compiled(self, _stepped, axes=_STEP_AXES)(*arguments)

    def execute(self, params: Params, states: States, inputs: tuple[Tree, ...], perturbation: Perturbation) -> Step:
        """`Program.execute` for all samples, with the derivatives that the rule needs."""
        done = self.strategy.execute(self.source, params, states, inputs, perturbation)
        make = self.algorithm.derivatives
        if make is None:
            return done

        def own(common: tuple[Params, Any], states: States, *args: Any) -> Any:
            whole = states._replace(shared=common[1])
            return make(self.program, common[0], whole, *args)

        apart = self.each(own)((params, states.shared), states._replace(shared={}), inputs, done.jacobians)
        return done._replace(jacobians=apart)

    @property
    def each(self) -> MapSamples:
        """The mapping of a function of one sample over all samples."""
        return self.strategy.each(self.source)

    def fresh(self, keys: jax.Array) -> Carry:
        """The carry before the first step of samples with these keys; see `sample_keys`."""
        of_one = keys if self.batch_size is None else keys[0]  # what samples share is the same whatever the key
        return self.fresh_samples(keys)._replace(shared=self._fresh_sample(of_one).shared)

    def sample_keys(self, key: jax.Array) -> jax.Array:
        """The random key of each sample, `[B]`: `jax.random.fold_in(key, i)`; for one sample the key itself."""
        if self.batch_size is None:
            return key
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(self.batch_size))

    def fresh_samples(self, keys: jax.Array) -> Carry:
        """The carry of samples that start with these keys, `[B]`; every leaf leads with the samples."""
        return self._fresh_sample(keys) if self.batch_size is None else jax.vmap(self._fresh_sample)(keys)

    def _fresh_sample(self, key: jax.Array) -> Carry:
        states = self.source.fresh(key)
        trace = trace_kept(self.algorithm, self.algorithm.init(self.program))
        return Carry(*states, trace=trace, update_count=jnp.zeros((), jnp.int32))

    def carry_spec(self, *, is_apart: bool = False) -> Carry:
        """Shapes and dtypes of a carry.

        Args:
          is_apart: whether each sample has its own of the states that the source shares.
        """
        return kept(self, lambda: self._carry_spec(is_apart=is_apart), "carry_spec", is_apart)

    def _carry_spec(self, *, is_apart: bool) -> Carry:
        trace = jax.eval_shape(lambda: trace_kept(self.algorithm, self.algorithm.init(self.program)))
        update_count: Any = jax.ShapeDtypeStruct((), jnp.int32)
        own = Carry(*self.program.states, trace=trace, update_count=update_count)
        together = with_lead(own, self.lead)._replace(shared=self.program.states.shared)
        return jax.eval_shape(apart, together) if is_apart else together

    def zero_perturbation(self) -> Perturbation:
        """A perturbation of zeros for all samples."""
        is_complete = self.algorithm.is_complete and self.algorithm.credit == "trace"
        zeros = self.program.zero_perturbation(is_complete=is_complete)
        return jax.tree.map(lambda zero: jnp.zeros((*self.lead, *zero.shape), zero.dtype), zeros)

    def check_params(self, params: Tree) -> Params:
        """`params` by path, in the captured units and dtypes."""
        try:
            return self.source.checked_params(params)
        except ShapeError as error:
            repair = "Pass the params that capture() returned with this learner."
            raise ShapeError(error.where, got=error.got, expected=error.expected, repair=repair) from error

    def check_carry(self, carry: Carry) -> Carry:
        """`carry` in the captured units, or CarryError."""
        if not isinstance(carry, Carry):
            raise CarryError(
                "carry", got=type(carry).__name__, expected="a Carry", repair="Pass learner.init() or aux.carry."
            )
        is_apart = bool(self.program.states.shared) and not carry.shared
        try:
            return conform(carry, self.carry_spec(is_apart=is_apart), "carry")
        except PureBatchingError as error:
            raise CarryError(
                error.where,
                got=error.got,
                expected=error.expected,
                repair=_repair_of_carry(error),
            ) from error

    def check_inputs(self, inputs: tuple[Tree, ...], axes: Axes | None = None) -> tuple[Tree, ...]:
        """`inputs` in the captured units and dtypes, behind `axes`, which are by default those of the batch."""
        if len(inputs) != len(self.program.inputs):
            raise StructureError(
                "inputs",
                got=count(len(inputs), "argument"),
                expected=f"{len(self.program.inputs)}",
                repair="Pass the arguments that capture() saw as examples.",
            )
        return conform(inputs, self.program.inputs, "inputs", self.axes() if axes is None else axes)


def _repair_of_carry(error: PureBatchingError) -> str:
    """What to do about a carry that does not fit; where nothing but the float type of a trace does, it is converted."""
    dtypes = [one for one in (error.got, error.expected) if isinstance(one, np.dtype)]
    floats = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    if error.where.startswith("carry.trace") and len(floats) == len(("got", "expected")):
        return (
            "The rule of the learner that made the carry has another trace_dtype. Give both rules the same, or convert "
            f"the trace: carry._replace(trace=jax.tree.map(lambda eps: eps.astype('{error.expected}'), carry.trace))."
        )
    return "The carry belongs to another learner or another batch size; start from init()."


_STEP_AXES = SampleAxes((None, Carry.sample_axes(), 0), (Carry.sample_axes(), 0))


def _begun(learner: Learner, key: jax.Array) -> Carry:
    """The carry before the first step, from the key of all samples."""
    axes = SampleAxes((0,), Carry.sample_axes())
    return in_shares(learner, Learner.fresh, axes=axes)(learner.sample_keys(key))


def _check_step(learner: Learner, params: Tree, carry: Carry, inputs: tuple[Tree, ...]) -> tuple[Any, ...]:
    return learner.check_params(params), learner.check_carry(carry), learner.check_inputs(inputs)


def _stepped(learner: Learner, params: Params, carry: Carry, inputs: tuple[Tree, ...]) -> tuple[Carry, Tree]:
    return in_shares(learner, differentiable_step, axes=_STEP_AXES)(params, carry, inputs)


def _captured_again(make: Any, arguments: tuple[Any, ...], algorithm: Algorithm, strategy: Strategy) -> Learner:
    return Learner.of(make(*arguments), algorithm, strategy)


def check_key(key: Any) -> jax.Array:
    """The value as one typed random key that may be mapped, which any other becomes, or DtypeError."""
    is_array = isinstance(key, (jax.Array, np.ndarray))
    is_typed = is_array and is_key(key.dtype) and key.shape == ()
    is_raw = is_array and key.dtype == "uint32" and key.shape == jax.random.key_data(jax.random.key(0)).shape
    if not is_typed and not is_raw:
        raise DtypeError(
            "key",
            got=f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key),
            expected="one random key",
            repair="Pass jax.random.key(seed); each sample gets a key of its own from it.",
        )
    return mappable(jax.random.wrap_key_data(jnp.asarray(key)) if is_raw else jnp.asarray(key))


def check_learner(learner: object, name: str) -> None:
    """Raise StructureError for a value that is no learner."""
    if not isinstance(learner, Learner):
        raise StructureError(
            f"pb.{name}",
            got=type(learner).__name__,
            expected="a Learner",
            repair="pb.capture returns a learner and its params; pass the first.",
        )
