"""The strategies: a learner of one sample becomes the learner of a batch."""

from collections.abc import Mapping
from typing import Any, Protocol

from jax.sharding import Mesh

from ._independence.agreement import first_difference
from ._independence.leaves import leaf_verdicts
from ._independence.verdicts import Verdict
from ._learning.learner import Learner, check_learner
from ._options import check_flag, is_count
from ._reader.checks import check_numbers
from ._strategies.chunked import Chunked
from ._strategies.loop import Loop
from ._strategies.manual import Manual
from ._strategies.sharded import Sharded, devices_along
from ._strategies.vmap import Vmap
from ._wording import count, listed
from .errors import BatchSizeError, OptionError, SampleCouplingError, StrategyError


class BatchedBy(Protocol):
    """`by(learner, batch_size)`: a strategy, such as `pb.vmap`, or one whose options `functools.partial` has bound."""

    def __call__(self, learner: Learner, batch_size: int, /) -> Learner:
        """The learner of a batch."""
        ...


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
      StructureError: no learner.
      StrategyError: the learner has a batch already, its samples reach each other along an axis, or the step has an
        `io_callback` that keeps its order, which JAX leaves out of a loop that has a derivative.
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
      StructureError: no learner.
      StrategyError: the learner has a batch already, or the step has an `io_callback` that keeps its order.
      BatchSizeError: not a positive integer.
    """
    size = _check(learner, batch_size, "vmap")
    return learner.run_by(Vmap(size))


def manual(learner: Learner, batch_size: int, *, allow_coupling: bool = False) -> Learner:
    """Run a batch by tracing the module again, on `(B, ...)` arrays; its meaning is `pb.loop`.

    Each sample draws random numbers with its own key, and draws what it draws under `pb.loop`. The module draws as many
    times with a batch axis as without one, each time an array with the batch axis in front or one of the shape of a
    single sample's, which each sample then has for itself. Numbers of the gamma distribution, and of others that
    are made of it (beta), agree with `pb.loop` up to rounding; those of the other samplers agree bit for bit.

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
      StructureError: no learner.
      StrategyError: the learner has a batch already, or the module's own code does not carry a batch axis; the text
        names the state or output that came out wrong, the line of a number that is made of the number of samples, the
        weights that are used in another way, or the setting of BrainState that was set after the capture.
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


def chunked(learner: Learner, batch_size: int, *, chunk: int, by: BatchedBy = vmap) -> Learner:
    """Run a batch a few samples at a time, one chunk after the other; its meaning is `pb.loop`.

    Windows, their records and the traces that a rule builds take the memory of one chunk. The arguments and the results
    (data, carry, losses, gradients per sample) are those of the whole batch, and the drivers are called as ever:
    gradients are added up over chunks in the dtype in which gradients are added up. The last chunk has what is left of
    the batch; it is compiled besides. Samples that lie on several devices are gathered, and each device runs every
    chunk; `pb.sharded`, whose `by` may be this strategy, lets each run its own. Samples that reach each other, which
    `by=functools.partial(pb.manual, allow_coupling=True)` accepts, do so within their chunk: the result then depends on
    the chunk.

        batched = pb.chunked(learner, 1000, chunk=128)
        batched = pb.chunked(learner, 1000, chunk=128, by=pb.manual)

    Args:
      learner: a learner of one sample.
      batch_size: `B`.
      chunk: the number of samples that run at once, at most `B`.
      by: the strategy of a chunk, `(learner, chunk) -> learner`; options are bound by `functools.partial`.

    Returns:
      a learner whose inputs, outputs and carry lead with the axis `B`.

    Raises:
      StructureError: no learner.
      StrategyError: the learner has a batch already, its samples reach each other along an axis, `by` shards, or the
        strategy of a chunk refuses the learner (SampleCouplingError and RandomnessError are such errors).
      BatchSizeError: a batch size that is no positive integer.
      OptionError: a chunk that is no integer from 1 to `B`, or a `by` that is no strategy.
    """
    size = _check(learner, batch_size, "chunked")
    _refuse_axis(learner, Chunked.name, "samples that can be run one chunk after the other")
    if not is_count(chunk) or chunk > size:
        raise OptionError(
            "chunk",
            got=_short(chunk),
            expected=f"an integer from 1 to the batch size {size}",
            repair="Give the number of samples that run at once.",
        )
    inner = batched_by(by, learner, int(chunk)).strategy
    if isinstance(inner, Sharded):
        raise StrategyError(
            Chunked.name,
            got="chunks by pb.sharded",
            expected="chunks on each device: every device would fetch parts of each chunk from the others",
            repair="Nest them the other way: pb.sharded(..., by=functools.partial(pb.chunked, chunk=...)).",
        )
    return learner.run_by(Chunked(size, inner))


def sharded(
    learner: Learner, batch_size: int, *, mesh: Mesh, axis: str | tuple[str, ...] = "batch", by: BatchedBy = vmap
) -> Learner:
    """Run a batch on several devices, equal shares of the samples on each; its meaning is `pb.loop`.

    Each device runs its own samples, by `jax.shard_map`. Summed gradients are reduced across the devices once, all
    weights together in the widest of their types, and nothing else crosses devices: not the data, the carry, the losses
    or gradients per sample, which stay where their samples are. Params are the same on every device; where other,
    automatic axes of the mesh shard them, they stay so.

        mesh = jax.make_mesh((8,), ("batch",))
        batched = pb.sharded(learner, 128, mesh=mesh)
        batched = pb.sharded(learner, 128, mesh=mesh, by=functools.partial(pb.chunked, chunk=4, by=pb.manual))

    The devices share the samples evenly: a batch size that they do not divide is refused. Bring a batch to the next
    multiple with samples that a `mask=` of False leaves out: `reduction="sum"` does not see them, but a mean divides by
    a `B` that counts them. Arguments that were put on other devices are copied to those of the
    mesh. Inside `jax.jit`, where JAX alone knows where an array lies, they must lie there; an argument whose type names
    another mesh is a StrategyError.

    Samples that reach each other, which `by=functools.partial(pb.manual, allow_coupling=True)` accepts, do so within
    their share: the result then depends on the number of devices.

    Args:
      learner: a learner of one sample.
      batch_size: `B`, a multiple of the number of devices along `axis`.
      mesh: the devices, of one process or of several.
      axis: the name of the mesh's axis along which the samples lie, or several names.
      by: the strategy of one device's samples, `(learner, share) -> learner`.

    Returns:
      a learner whose inputs, outputs and carry lead with the axis `B`.

    Raises:
      StructureError: no learner.
      StrategyError: the learner has a batch already, its samples reach each other along an axis, `by` shards too, the
        step has a callback that keeps its order, or the strategy of a share refuses the learner (SampleCouplingError
        and RandomnessError are such errors).
      BatchSizeError: a batch size that is no positive integer, or that the devices do not divide.
      OptionError: no mesh, a mesh without the axis, or a `by` that is no strategy.
    """
    size = _check(learner, batch_size, "sharded")
    _refuse_axis(learner, Sharded.name, "samples that the devices can run each for itself")
    names = _check_mesh(mesh, axis)
    devices = devices_along(mesh, names)
    if size % devices:
        raise BatchSizeError(
            Sharded.name,
            got=f"batch size {size} on {devices} devices",
            expected=f"a multiple of {devices}",
            repair=f"Add {count(-size % devices, 'sample')} that mask= leaves out; they count in the B of a mean.",
        )
    inner = batched_by(by, learner, size // devices).strategy
    if isinstance(inner, Sharded):
        raise StrategyError(
            Sharded.name,
            got="shares by pb.sharded",
            expected="one strategy that shards",
            repair="Name all axes of the mesh along which the samples lie: axis=('host', 'device').",
        )
    return learner.run_by(Sharded(size, inner, mesh, names))


def _check_mesh(mesh: object, axis: Any) -> tuple[str, ...]:
    """The names of the axes along which the samples lie."""
    if not isinstance(mesh, Mesh):
        repair = 'Pass jax.make_mesh((jax.device_count(),), ("batch",)).'
        raise OptionError("mesh", got=type(mesh).__name__, expected="a jax.sharding.Mesh", repair=repair)
    names = axis if isinstance(axis, tuple) else (axis,)
    if not names or any(name not in mesh.axis_names or names.count(name) > 1 for name in names):
        raise OptionError(
            "axis",
            got=repr(axis),
            expected=f"one of {listed([repr(name) for name in mesh.axis_names])}, or a tuple of some",
            repair="Give the axis of the mesh along which the samples lie.",
        )
    return names


def batched_by(by: BatchedBy, learner: Learner, size: int) -> Learner:
    """The learner of a number of samples by any strategy.

    Raises:
      OptionError: what was given as a strategy gives no such learner.
      PureBatchingError: the strategy refuses the learner.
    """
    made, got = _called(by, learner, size)
    if not isinstance(made, Learner) or made.batch_size != size or made.source is not learner.source:
        raise OptionError(
            "by",
            got=got,
            expected=f"a strategy: by(learner, {size}) is the learner of {size} samples",
            repair="Pass pb.vmap, pb.manual, pb.loop or pb.chunked, with options bound by functools.partial.",
        )
    return made


def _called(by: Any, learner: Learner, size: int) -> tuple[Any, str]:
    """What `by` gives, and how an error calls it."""
    if not callable(by):
        return None, repr(by)
    try:
        made = by(learner, size)
    except TypeError as reason:  # that of a function which is no strategy
        return None, f"a function that raises TypeError: {reason}"
    if isinstance(made, Learner):
        return made, f"a function that gives the learner of {count(made.batch_size or 1, 'sample')}"
    return made, f"a function that gives {type(made).__name__}"


def _refuse_axis(learner: Learner, name: str, expected: str) -> None:
    """Raise StrategyError where the samples of different shares would have to reach each other."""
    if learner.source.axis_name is not None:
        raise StrategyError(
            name,
            got=f"a learner whose samples reach each other along the axis {learner.source.axis_name!r}",
            expected=expected,
            repair="Use pb.vmap or pb.manual.",
        )


def _refuse_coupling(batched: Learner) -> None:
    # One sample has no neighbour; a coupling that holds at every batch size is seen with two.
    checked = batched if batched.lead[0] > 1 else batched.run_by(Manual(2))
    source, size = checked.source, checked.lead[0]
    if source.axis_name is None:
        _refuse_coupled_leaves(leaf_verdicts(checked))
        check_numbers(source.own_step(size), source.own_step(size + 1), size, source.name)
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
