"""`capture` and `capture_function`: one step as a learner of one sample, and its trainable values."""

from collections.abc import Callable
from typing import Any

import jax

from ._algorithms.base import Algorithm
from ._algorithms.checking import check_rule, is_own
from ._conform import check_floats, check_numbers
from ._learning.learner import Learner
from ._numerics import without_mesh
from ._program import Params
from ._sources.capture import ModuleSource
from ._sources.function import FunctionSource
from ._sources.partition import Partition
from ._strategies.alone import Alone
from ._tree import Tree, is_key
from .errors import OptionError, StructureError


def capture(
    net: Any,
    *example_inputs: Tree,
    algorithm: Algorithm,
    environ: dict[str, Any] | None = None,
    axis_name: str | None = None,
) -> tuple[Learner, Params]:
    """Read a module of BrainScale or BrainTrace as a learner of one sample, and take its trainable values.

    The module is read and left as it was. Its hidden states must be `HiddenState`s. Its traced weights are BrainScale's
    `ETraceParam`s, and plain `ParamState`s that an operation of BrainTrace reads (`braintrace.matmul`, say, which the
    layers of `braintrace.nn` call). `NonTempParam` and other `ParamState` weights get the ordinary gradient of each
    step. `pb.explain` says which weight learns in which way.

    Args:
      net: a `brainstate.nn.Module` whose `update(*inputs)` is one step.
      example_inputs: the arguments of one step of one sample, without a batch axis; only their shapes, dtypes and units
        are used.
      algorithm: the learning rule, such as `pb.ES_D_RTRL(0.9)`.
      environ: settings (`dt`, `fit`) on top of those in force; the learner keeps them.
      axis_name: the name of the axis along which the module's own code reaches the other samples of a batch
        (`BatchNorm1d(..., axis_name="batch")`, `jax.lax.pmean`). The samples are coupled then, alike in `pb.vmap` and
        `pb.manual`; a learner of one sample is a batch of one. The gradient of a sample is its share of the batch's.

    Returns:
      the learner, and a dictionary of every trainable value by its path.

    Raises:
      CaptureError: the module cannot be traced or compiled; the text quotes the reason.
      StructureError: no algorithm.
      DtypeError: an example that is no array of numbers.
      OptionError: an `environ` that is no mapping from names, or an axis name that is none; a rule that keeps traces in
        64 bits where JAX has none.
      AlgorithmError: the rule cannot follow the module; a method of a rule of your own raises, or returns what a
        learner cannot use.
    """
    _check_algorithm(algorithm)
    if axis_name is not None and not (isinstance(axis_name, str) and axis_name):
        raise OptionError(
            "axis_name", got=repr(axis_name), expected="a name", repair="Pass the one that the module's code uses."
        )
    check_numbers(example_inputs, "example_inputs")
    with without_mesh():
        source = ModuleSource(net, example_inputs, environ, axis_name, is_strict=algorithm.is_complete)
        return _checked(Learner.of(source, algorithm, Alone())), source.params()


def capture_function(
    step: Callable[..., tuple[Tree, Tree]],
    params: Tree,
    state: Tree,
    *example_inputs: Tree,
    algorithm: Algorithm,
    trace: Callable[[str], bool] | None = None,
    hidden: Callable[[str], bool] | None = None,
) -> tuple[Learner, Tree]:
    """Read a plain JAX function as a learner of one sample.

    A weight has a trace wherever it meets inputs or states, by an operation whose result can be followed to hidden
    states, element by element; `pb.explain` says where, and why not elsewhere. A lookup by an index from the data is
    such an operation. Every float leaf of the state is a hidden state. Integers, booleans and random keys are carried
    along.

    Args:
      step: `(params, state, *inputs) -> (state, output)` of one sample, a function without side effects. `pb.manual`
        calls it on arrays with a batch axis.
      params: the trainable values, a tree of arrays of floats. Of an `equinox.Module`, whole or inside another
        container, the arrays of floats are trained, as `equinox.partition(module, equinox.is_inexact_array)` finds
        them; its other leaves (functions, integers, random keys) stay as they are, and the step gets the whole module.
      state: the state before the first step, a tree of arrays. A typed random key in it stands for one of each sample,
        which is drawn from the `key=` of a fresh start.
      example_inputs: the inputs of one step of one sample, without a batch axis; only their shapes, dtypes and units
        are used.
      algorithm: the learning rule, such as `pb.D_RTRL(rule="published")`.
      trace: whether the weight at a path, such as `"params.cell.weight_hh"`, may have a trace; by default each may.
      hidden: whether the floats at a path of the state, such as `"state[0]"`, are a hidden state; by default they are.

    Returns:
      the learner, and a copy of `params` in the same structure, in which gradients come too. In a module of equinox,
      None stands for each leaf that is not trained, so that optimizers take it, and `equinox.combine(params, module)`
      is the module with these params.

    Raises:
      CaptureError: the function cannot be traced, changes what it was given, or returns a state of another structure,
        shape or dtype; the text quotes the reason.
      StructureError: no algorithm.
      DtypeError: an example or a state that is no array of numbers, or a parameter that is no array of floats.
      AlgorithmError: the rule cannot follow the function; a method of a rule of your own raises, or returns what a
        learner cannot use.
      OptionError: a rule that keeps traces in 64 bits where JAX has none.
    """
    _check_algorithm(algorithm)
    numbers = [leaf for leaf in jax.tree.leaves(state) if not is_key(getattr(leaf, "dtype", None))]
    with without_mesh():
        partition = Partition.of(params)
        check_floats(partition.given(), "params")
        for name, tree in (("state", numbers), ("example_inputs", example_inputs)):
            check_numbers(tree, name)
        source = FunctionSource(step, partition, state, example_inputs, trace or _always, hidden or _always)
        return _checked(Learner.of(source, algorithm, Alone())), source.params()


def _checked(learner: Learner) -> Learner:
    """The learner, whose rule, if it is a user's own, has methods that return what a learner needs."""
    if is_own(learner.algorithm):
        with learner.source.numerics.in_force():
            check_rule(learner.algorithm, learner.program)
    return learner


def _always(path: str) -> bool:
    del path
    return True


def _check_algorithm(algorithm: object) -> None:
    if not isinstance(algorithm, Algorithm):
        raise StructureError(
            "algorithm",
            got=f"the class {algorithm.__name__}" if isinstance(algorithm, type) else type(algorithm).__name__,
            expected="an algorithm",
            repair="Pass an instance: pb.ES_D_RTRL(0.9), say.",
        )
