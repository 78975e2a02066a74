"""D_RTRL on the tutorial's network: both rules, the two strategies, and BrainScale's manual mode.

    python benchmarks/d_rtrl.py --rounds 10

BrainScale's own strategies take part in the environment of requirements-parity.lock. Its manual mode divides by the
largest entry of the batch, ours by the sample's, and the published rule does not divide, so that numbers differ.
"""

from functools import partial

import brainscale
from _cases import brainscale_manual, brainscale_runs_here, brainscale_vmap, ours
from _common import Bar, Build, run_benchmark

import pure_batching as pb

PUBLISHED, NORMALISED = pb.D_RTRL(rule="published"), pb.D_RTRL()

CASES: dict[str, Build] = {
    "published, manual": partial(ours, pb.manual, PUBLISHED, None),
    "published, vmap": partial(ours, pb.vmap, PUBLISHED, None),
    "brainscale rule, manual": partial(ours, pb.manual, NORMALISED, None),
    "brainscale rule, vmap": partial(ours, pb.vmap, NORMALISED, None),
}
SPEED_BARS = [Bar("published, vmap", "published, manual", 1.10)]

if brainscale_runs_here():
    CASES["BrainScale manual"] = partial(brainscale_manual, brainscale.D_RTRL)
    CASES["BrainScale vmap"] = partial(brainscale_vmap, brainscale.D_RTRL)
    SPEED_BARS += [
        Bar("BrainScale manual", "published, manual", 100.0, is_upper=False),
        Bar("BrainScale manual", "brainscale rule, manual", 3.0, is_upper=False),
        Bar("BrainScale vmap", "brainscale rule, vmap", 3.0, is_upper=False),
    ]

if __name__ == "__main__":
    run_benchmark(__file__, CASES, SPEED_BARS, is_same_work=False)
