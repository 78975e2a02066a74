"""`loop`, `vmap` and `manual`: a learner of one sample becomes the learner of a batch."""

from collections.abc import Mapping

from ._independence.agreement import first_difference
from ._independence.leaves import leaf_verdicts
from ._independence.verdicts import Verdict
from ._learning.learner import Learner, check_learner
from ._options import check_flag, is_count
from ._strategies.loop import Loop
from ._strategies.manual import Manual
from ._strategies.vmap import Vmap
from ._wording import listed
from .errors import BatchSizeError, SampleCouplingError, StrategyError


def loop(learner: Learner, batch_size: int) -> Learner:
    """Run a batch by `jax.lax.map` over samples: slow, but it defines what `pb.manual` and `pb.vmap` mean.

        def step(params, carries, inputs):
            return [learner.step(params, carries[i], inputs[i]) for i in range(B)]

    Args:
      learner: a learner of one sample.
      batch_size: `B`.

    Returns:
      a learner whose inputs, outputs and carry lead with the axis `B`.

    Raises:
      StrategyError: the learner has a batch already, or its samples reach each other along an axis.
      BatchSizeError: not a positive integer.
    """
    size = _check(learner, batch_size, "loop")
    return learner.run_by(Loop(size))


def vmap(learner: Learner, batch_size: int) -> Learner:
    """Run a batch by `jax.vmap` of the single-sample program; its meaning is `pb.loop`.

    Where the learner was captured with an `axis_name`, samples reach each other along it.

    Args:
      learner: a learner of one sample.
      batch_size: `B`.

    Returns:
      a learner whose inputs, outputs and carry lead with the axis `B`.

    Raises:
      StrategyError: the learner has a batch already.
      BatchSizeError: not a positive integer.
    """
    size = _check(learner, batch_size, "vmap")
    return learner.run_by(Vmap(size))


def manual(learner: Learner, batch_size: int, *, allow_coupling: bool = False) -> Learner:
    """Run a batch by tracing the module again, on `(B, ...)` arrays; its meaning is `pb.loop`.

    Each sample draws random numbers with its own key, and draws what it draws under `pb.loop`. The module draws as many
    times with a batch axis as without one, each time an array with the batch axis in front or one of the shape of a
    single sample's, which each sample then has for itself.

    Args:
      learner: a learner of one sample.
      batch_size: `B`.
      allow_coupling: accept a module whose own code lets samples reach each other, as batch normalisation does. The
        result is no longer that of `pb.loop`, and what is computed sample by sample (`reduction="none"` for weights
        without a trace or by backpropagation, and norms) is that of each sample alone; a learner captured with an
        `axis_name` has neither limit. A state that the module keeps once for the batch is still `[B, ...]` in
        the carry: the module is given that of sample 0, and every sample gets the new one.

    Returns:
      a learner whose inputs, outputs and carry lead with the axis `B`.

    Raises:
      StrategyError: the learner has a batch already, or the module's own code does not carry a batch axis; the text
        names the state or output that came out wrong.
      SampleCouplingError: the module's own code couples the samples; the text names the leaf, the operation and its
        source line. `pb.audit` shows all of them. With an `axis_name`, samples may be coupled, but as in `pb.vmap`: the
        module's own code has to reduce its batch axis wherever it reduces the named one, as batch normalisation does.
      RandomnessError: a random draw of the step cannot be made with each sample's own key; the text names its line.
      BatchSizeError: not a positive integer.
      OptionError: an `allow_coupling` that is no flag.
    """
    size = _check(learner, batch_size, "manual")
    check_flag("allow_coupling", allow_coupling)
    batched = learner.run_by(Manual(size))
    if not allow_coupling:
        _refuse_coupling(batched)
    return batched


def _refuse_coupling(batched: Learner) -> None:
    # One sample has no neighbour; a coupling that holds at every batch size is seen with two.
    checked = batched if batched.lead[0] > 1 else batched.run_by(Manual(2))
    if batched.source.axis_name is None:
        _refuse_coupled_leaves(leaf_verdicts(checked))
    else:
        _refuse_other_numbers(checked)


def _refuse_coupled_leaves(found: Mapping[str, Verdict]) -> None:
    coupled = {name: verdict for name, verdict in found.items() if verdict.kind == "coupled"}
    if not coupled:
        return
    (name, verdict), *others = coupled.items()
    also = f" (also in {listed([other for other, _ in others])})" if others else ""
    raise SampleCouplingError(
        f"pb.manual: {name}",
        got=f"samples coupled by {verdict.cause}{also}",
        expected="samples that do not reach each other",
        repair="Use pb.vmap, which runs the step of one sample, or pass allow_coupling=True to accept it.",
    )


def _refuse_other_numbers(batched: Learner) -> None:
    """Along a named axis samples may reach each other, but in `manual` as in `vmap`."""
    name = first_difference(batched)
    if name is not None:
        raise SampleCouplingError(
            f"pb.manual: {name}",
            got=f"other numbers than pb.vmap gives along the axis {batched.source.axis_name!r}",
            expected="the same",
            repair="Reduce the module's own batch axis wherever it reduces the named one, or use pb.vmap.",
        )


def _check(learner: Learner, batch_size: object, name: str) -> int:
    """The batch size as an int, or an error that says why this learner cannot get one."""
    check_learner(learner, name)
    if learner.batch_size is not None:
        raise StrategyError(
            f"pb.{name}",
            got=f"a learner batched by {learner.strategy.name}",
            expected="a learner of one sample",
            repair="Apply one strategy to what pb.capture returned.",
        )
    if not is_count(batch_size):
        raise BatchSizeError(
            f"pb.{name}",
            got=f"batch size {_short(batch_size)}",
            expected="an integer >= 1",
            repair="Give the number of samples.",
        )
    return int(batch_size)


def _short(value: object) -> str:
    """The text of a value: an array by its shape."""
    shape = getattr(value, "shape", ())
    return f"of shape {tuple(shape)}" if shape else repr(value)
