"""The rules and strategies that growth and models are measured with."""

from collections.abc import Mapping

from _cases import Strategy
from _floors import DECAY

import pure_batching as pb

RULES: Mapping[str, pb.Algorithm] = {
    "ES_D_RTRL": pb.ES_D_RTRL(DECAY),
    "D_RTRL published": pb.D_RTRL(rule="published"),
    "D_RTRL default": pb.D_RTRL(),
    "BPTT": pb.BPTT(),
}
STRATEGIES: Mapping[str, Strategy] = {"manual": pb.manual, "vmap": pb.vmap}
