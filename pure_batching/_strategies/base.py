"""What every strategy checks before it adds a batch of samples."""

from .._learning.learner import Learner, check_learner
from .._options import is_count
from ..errors import BatchSizeError, StrategyError


def _short(value: object) -> str:
    """An array by its shape."""
    shape = getattr(value, "shape", ())
    return f"of shape {tuple(shape)}" if shape else repr(value)


def check_unbatched(learner: Learner, batch_size: object, name: str) -> int:
    """The batch size as an int, or an error that says why this learner cannot get one."""
    check_learner(learner, name)
    if learner.batch_size is not None:
        raise StrategyError(
            f"pb.{name}",
            got=f"a learner batched by {learner.execution.name}",
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
