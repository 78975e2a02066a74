"""ES_D_RTRL on the tutorial's network: the two strategies against each other, and against BrainScale's own.

    python benchmarks/es_d_rtrl.py

BrainScale's own strategies take part in the environment of requirements-parity.lock.
"""

from functools import partial

import brainscale
from _cases import brainscale_manual, brainscale_runs_here, brainscale_vmap, ours, ours_outside_jit
from _common import Bar, Build, LIFNet, run_benchmark

import pure_batching as pb

ALGORITHM = pb.ES_D_RTRL(0.9)


def brainscales(net: LIFNet, **mode: object) -> brainscale.ES_D_RTRL:
    """BrainScale's algorithm."""
    return brainscale.ES_D_RTRL(net, decay_or_rank=0.9, **mode)


CASES: dict[str, Build] = {
    "manual": partial(ours, pb.manual, ALGORITHM, None),
    "vmap": partial(ours, pb.vmap, ALGORITHM, None),
    "manual, window=1": partial(ours, pb.manual, ALGORITHM, 1),
    "vmap, window=1": partial(ours, pb.vmap, ALGORITHM, 1),
    "manual, outside jit": partial(ours_outside_jit, pb.manual, ALGORITHM, None),
    "BPTT, vmap": partial(ours, pb.vmap, pb.BPTT(), None),
}
SPEED_BARS = [Bar("vmap", "manual", 1.10), Bar("vmap, window=1", "manual, window=1", 1.10)]
FIRST_BARS = [Bar("vmap", "manual", 1.1)]

if brainscale_runs_here():
    CASES["BrainScale manual"] = partial(brainscale_manual, brainscales)
    CASES["BrainScale vmap"] = partial(brainscale_vmap, brainscales)
    SPEED_BARS += [Bar("manual", "BrainScale manual", 1.15), Bar("BrainScale vmap", "vmap", 3.0, is_upper=False)]
    FIRST_BARS += [Bar("manual", "BrainScale manual", 0.9), Bar("vmap", "BrainScale vmap", 0.9)]

if __name__ == "__main__":
    run_benchmark(__file__, CASES, SPEED_BARS, FIRST_BARS)
