"""BrainScale asks an operation's own `xy_to_dw` too."""

from ..bench import Request
from ..test_own_derivative import straight
from ..trees import assert_close
from .brainscale_runs import by_input_output


def test_equals_each_sample_alone(seed: int) -> None:
    made = straight(seed, "ES_D_RTRL")
    want, got = by_input_output(made), made.result(Request("vmap"))
    assert_close(got.gradients, want.gradients, "native")
    assert_close(got.aux, want.aux, "native")
