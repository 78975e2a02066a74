"""The law that makes strategies interchangeable, for a captured model."""

from .alive import assert_alive
from .bench import Bench, Request
from .trees import assert_close


def assert_interchangeable(made: Bench, *, large_traces: bool = True) -> None:
    """Every strategy that runs the model gives the numbers of the loop, of each sample.

    Compared are gradients, losses, outputs and the carry. Some trace exceeds 1, unless `large_traces` says otherwise.
    """
    want = made.result(Request("loop"))
    assert_alive(made, Request("loop"), want, large_traces=large_traces)
    for strategy in made.model.runs_by(made.learner.algorithm):
        got = made.result(Request(strategy))
        assert_close(got.gradients, want.gradients)
        assert_close(got.aux, want.aux)
