"""What a rule has to return: every method of a user's own is run on specifications, before anything else runs."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._numerics import Numerics
from .._options import check_choice
from .._program import Jacobians, Params, Program, States
from .._relation import Relation
from .._tree import Tree, described, named_leaves, spec_text
from .._wording import listed
from ..errors import AlgorithmError, OptionError, PureBatchingError
from ._given_factors import check_factors, kind
from .base import Algorithm, Factors, Parts, Record, Trace, computed, kept

# The check runs on a window of so many steps.
_STEPS = 2

_EXPECTED: Mapping[str, str] = {
    "init": "a trace, which is a tree of arrays",
    "derivatives": "Jacobians",
    "step": "a pair of the trace after the step and the record of the step",
    "window_trace": "a trace like that of init",
    "window_gradient": "Parts(factors, dense, of_trace)",
    "trace_product": "{path: gradient}, which a rule has to give whose Parts have of_trace",
    "gradient_of_trace": 'Parts(factors, dense, of_trace), which a rule with credit "window" has to give',
    "traces_of": "{name: array} of one use of a weight",
}
_LIKE_INIT = "Return a trace with the structure, the shapes and the dtypes that init gives."


def check_trace_dtype(algorithm: Algorithm, numerics: Numerics) -> None:
    """Raise OptionError for a type of traces that JAX does not have under these settings, and would make narrower."""
    dtype = algorithm.trace_dtype
    if dtype is not None and not numerics.has(dtype):
        raise OptionError(
            "trace_dtype",
            got=f"{jnp.dtype(dtype)} where JAX has no 64-bit numbers",
            expected="a float type of 32 bits at most",
            repair='Call jax.config.update("jax_enable_x64", True) before the capture, or leave trace_dtype out.',
        )


def is_own(algorithm: Algorithm) -> bool:
    """Whether a rule is a user's own; those of this package pass the check in its tests."""
    return type(algorithm).__module__.partition(".")[0] != __name__.partition(".")[0]


def check_rule(algorithm: Algorithm, program: Program) -> None:
    """Run every method of a rule on the specifications of a program of one sample.

    Raises:
      AlgorithmError: a method raises, or returns what a learner cannot use. The error names the class and the method.
    """
    _check_fields(algorithm)
    specs = program.params, program.states, program.inputs, program.derivatives
    run = partial(_run, algorithm, program)
    # A mapping over nothing names the axis along which the samples of a program may reach each other.
    jax.eval_shape(jax.vmap(run, in_axes=None, axis_size=1, axis_name=program.axis_name), *specs)  # type: ignore[arg-type]


def _check_fields(algorithm: Algorithm) -> None:
    """Raise AlgorithmError for a field that JAX would take for an argument, but that holds no numbers."""
    for name, leaf in named_leaves(algorithm, type(algorithm).__name__):
        if not _is_number(leaf):
            raise AlgorithmError(
                name,
                got=repr(leaf),
                expected="a number or an array, or a field that is static",
                repair="Declare the field with eqx.field(static=True).",
            )


def _run(
    algorithm: Algorithm, program: Program, params: Params, states: States, inputs: tuple[Tree, ...], given: Jacobians
) -> None:
    """Every method, in the order in which a window calls them."""
    window = algorithm.credit == "window"
    check_choice(f"{type(algorithm).__name__}.credit", algorithm.credit, ("trace", "window"), AlgorithmError)
    rule = _Rule(algorithm, program, params)
    trace = rule.first_trace()
    jacobians = rule.derivatives(states, inputs, given)
    zero = program.zero_perturbation(is_complete=algorithm.is_complete and not window)
    signal, count = program.signal(zero), jnp.zeros((), jnp.int32)
    after, record = rule.step(trace, jacobians, signal, count)
    records = jax.tree.map(lambda leaf: jnp.stack([leaf] * _STEPS), record)
    for before in (trace,) if window else (trace, None):
        rule.window_trace(before, after, records)
        if not window or not algorithm.depends_on_window:
            rule.window_gradient(before, record, records)
    if window:
        other = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.inexact) else None, states.other)
        rule.gradient_of_trace(trace, signal._replace(other=other), count)
    for relation in program.relations:
        rule.traces_of(relation, trace)


class _Rule(NamedTuple):
    """The methods of a rule, each of which checks what it returns.

    Attributes:
      algorithm: the rule.
      program: the program of one sample.
      params: trainable values by path, without numbers.
    """

    algorithm: Algorithm
    program: Program
    params: Params

    def first_trace(self) -> Trace:
        """The trace of `init`, as the rule gets it from a carry."""
        trace = self._arrays("init", "trace", self._called("init", self.program))
        return computed(self.algorithm, self.program, kept(self.algorithm, trace))

    def derivatives(self, states: States, inputs: tuple[Tree, ...], given: Jacobians) -> Jacobians:
        """The derivatives that `step` is given."""
        make = self.algorithm.derivatives
        if make is None:
            return given
        made = self._called("derivatives", self.program, self.params, states, inputs, given)
        if not isinstance(made, Jacobians):
            raise self._error("derivatives", made, repair="Return Jacobians, from pure_batching.rules.")
        return made

    def step(self, trace: Trace, *own: Any) -> tuple[Trace, Record]:
        """The trace after a step, and its record."""
        done = self._called("step", self.program, self.params, trace, *own)
        if not (isinstance(done, tuple) and len(done) == len(("trace", "record"))):
            raise self._error("step", done, repair="Return both, also where the record is the empty tuple ().")
        after = self._like_init("step", done[0], trace)
        return after, self._arrays("step", "record", done[1])

    def window_trace(self, before: Trace, after: Trace, records: Record) -> None:
        """The trace after a window."""
        given = self.program, self.params, before, after, records
        self._like_init("window_trace", self._called("window_trace", *given, fresh=before is None), after)

    def window_gradient(self, before: Trace, record: Record, records: Record) -> None:
        """The gradient of a window; where the record is the gradient, the error is that of `step`."""
        if type(self.algorithm).window_gradient is Algorithm.window_gradient:
            self._check_factors("step", "the record", record, ())
            return
        given = self.program, self.params, before, records
        parts = self._called("window_gradient", *given, fresh=before is None)
        self._check_parts("window_gradient", parts, ("K",), before)

    def gradient_of_trace(self, trace: Trace, *own: Any) -> None:
        """The gradient of the trace before a window."""
        parts = self._called("gradient_of_trace", self.program, self.params, trace, *own)
        self._check_parts("gradient_of_trace", parts, (), trace)

    def traces_of(self, relation: Relation, trace: Trace) -> None:
        """What `pb.explain` shows."""
        found = self._called("traces_of", relation, trace)
        if not isinstance(found, dict) or not all(hasattr(array, "shape") for array in jax.tree.leaves(found)):
            raise self._error("traces_of", found, repair="Name each array of the trace that belongs to the use.")

    def _called(self, method: str, *args: Any, fresh: bool = False) -> Any:
        """What a method returns; AlgorithmError where it raises."""
        try:
            return getattr(self.algorithm, method)(*args)
        except PureBatchingError:
            raise
        except Exception as reason:
            lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
            raise AlgorithmError(
                self._where(method),
                got=": ".join([type(reason).__name__, *lines[:1]]),
                expected=_EXPECTED[method] + (", also with trace_before=None, for a fresh start" if fresh else ""),
                repair="Change what the message names; the method is run on shapes and dtypes, without numbers.",
            ) from reason

    def _where(self, method: str) -> str:
        return f"{type(self.algorithm).__name__}.{method}"

    def _error(self, method: str, got: Any, *, repair: str) -> AlgorithmError:
        return AlgorithmError(self._where(method), got=kind(got), expected=_EXPECTED[method], repair=repair)

    def _arrays(self, method: str, what: str, tree: Tree) -> Tree:
        """A tree whose leaves are arrays or numbers, as arrays."""
        for name, leaf in named_leaves(tree, what):
            if not _is_number(leaf):
                raise AlgorithmError(
                    self._where(method),
                    got=f"{name} = {leaf!r}",
                    expected="an array",
                    repair="Keep what is no array in a static field of the rule.",
                )
        return jax.tree.map(jnp.asarray, tree)

    def _like_init(self, method: str, trace: Trace, want: Trace) -> Trace:
        """A trace that has to be like another in structure, shapes and dtypes."""
        trace = kept(self.algorithm, self._arrays(method, "trace", trace))
        got, expected = dict(named_leaves(trace, "trace")), dict(named_leaves(kept(self.algorithm, want), "trace"))
        more, less = [name for name in got if name not in expected], [name for name in expected if name not in got]
        if more or less or jax.tree.structure(trace) != jax.tree.structure(want):
            texts = [f"with {listed(more)}"] * bool(more) + [f"without {listed(less)}"] * bool(less)
            raise AlgorithmError(
                self._where(method),
                got=f"a trace {' and '.join(texts) or f'in other containers, {spec_text(trace)}'}",
                expected="the structure that init gives" + ("" if texts else f", {spec_text(want)}"),
                repair=_LIKE_INIT,
            )
        for name, leaf in got.items():
            if (leaf.shape, leaf.dtype) != (expected[name].shape, expected[name].dtype):
                raise AlgorithmError(
                    self._where(method),
                    got=f"{name} of {described(leaf)}",
                    expected=f"{described(expected[name])}, as init gives it",
                    repair=_LIKE_INIT,
                )
        return computed(self.algorithm, self.program, trace)

    def _check_parts(self, method: str, parts: Any, lead: tuple[str, ...], trace: Trace) -> None:
        if not isinstance(parts, Parts):
            raise self._error(method, parts, repair="Return Parts((factors,), {}) of Factors, say.")
        self._check_factors(method, "Parts.factors", parts.factors, lead)
        self._check_dense(method, "Parts.dense", parts.dense)
        of_trace = self._arrays(method, "Parts.of_trace", parts.of_trace)
        if jax.tree.leaves(of_trace):
            product = self._called("trace_product", self.program, self.params, trace, of_trace)
            self._check_dense("trace_product", "the product", product)

    def _check_factors(self, method: str, what: str, several: Any, lead: tuple[str, ...]) -> None:
        is_one = isinstance(several, Factors) or not isinstance(several, (tuple, list))
        if is_one or not all(isinstance(one, Factors) for one in several):
            raise AlgorithmError(
                self._where(method),
                got=f"{what} = {kind(several)}",
                expected="a tuple of Factors",
                repair="Put the Factors into a tuple, (factors,); "
                "a rule with another record has to define window_gradient.",
            )
        for factors in several:
            check_factors(self._where(method), self.program, factors, lead)

    def _check_dense(self, method: str, what: str, dense: Any) -> None:
        """Arrays in the structure and the shape of a weight, by its path."""
        repair = "Give the gradient by the path of the weight, relation.weight; {} where there is none."
        if not isinstance(dense, dict):
            got, expected = f"{what} = {kind(dense)}", "{path: gradient}"
            raise AlgorithmError(self._where(method), got=got, expected=expected, repair=repair)
        for path, value in dense.items():
            want = self.params.get(path)
            if want is None or not _same_shapes(value, want):
                name = f"{what.removeprefix('Parts.')}[{path!r}]"
                got = name if want is None else f"{name} of {kind(value)}"
                paths = f"paths of weights: {listed([*self.params])}"
                expected = paths if want is None else f"{spec_text(want)}, as the weight is"
                raise AlgorithmError(self._where(method), got=got, expected=expected, repair=repair)


def _same_shapes(value: Any, want: Any) -> bool:
    if jax.tree.structure(value) != jax.tree.structure(want):
        return False
    pairs = zip(jax.tree.leaves(value), jax.tree.leaves(want), strict=True)
    return all(jnp.shape(one) == other.shape for one, other in pairs)


def _is_number(leaf: Any) -> bool:
    return hasattr(leaf, "shape") or isinstance(leaf, (bool, int, float, complex))
