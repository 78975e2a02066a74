"""Learners that a strategy refuses."""

import pure_batching as pb
from pure_batching.errors import BatchSizeError, RandomnessError, SampleCouplingError, StrategyError, StructureError

from ..bench import SAMPLES, STRATEGIES, bench
from ..models import squared
from .provoke import Flattened, Refusal, Remembering, Summed, Thinned, captured, one_input, tutorial

STRATEGY = (
    *(
        Refusal(
            f"{name} of {size!r}",
            lambda seed, name=name, size=size: STRATEGIES[name](bench("tutorial", seed).learner, size),
            BatchSizeError,
            f"pb.{name}: got batch size {size!r}, expected an integer >= 1. Give the number of samples.",
        )
        for name in STRATEGIES
        for size in (0, -1, True, 2.5)
    ),
    *(
        Refusal(
            f"{name} of all that capture returns",
            lambda _, call=call: call((captured(tutorial(), one_input()), {})),
            StructureError,
            f"pb.{name}: got tuple, expected a Learner. ~ pass the first.",
        )
        for name, call in {
            "sequence_grad": lambda both: pb.sequence_grad(both, squared),
            "sample_norms": lambda both: pb.sample_norms(both, squared),
            "clipped_grad": lambda both: pb.clipped_grad(both, squared, 1.0),
        }.items()
    ),
    Refusal(
        "a strategy on all that capture returns",
        lambda _: pb.vmap((captured(tutorial(), one_input()), {}), SAMPLES),
        StructureError,
        "pb.vmap: got tuple, expected a Learner. ~ pass the first.",
    ),
    Refusal(
        "a strategy on a strategy",
        lambda seed: pb.vmap(bench("tutorial", seed).batched("loop"), SAMPLES),
        StrategyError,
        "pb.vmap: got a learner batched by pb.loop, expected a learner of one sample. Apply one strategy to",
    ),
    Refusal(
        "manual with random numbers that the samples share",
        lambda _: pb.manual(captured(Thinned(), one_input()), SAMPLES),
        RandomnessError,
        "pb.manual: got a draw that the samples share, until gather at provoke.py: ~ (Thinned.update) brings it "
        "together with the samples, expected ~ the batch axis in front ~ Use pb.vmap, which",
    ),
    Refusal(
        "manual with an output that forgets the batch axis",
        lambda _: pb.manual(captured(Summed(), one_input()), SAMPLES),
        StrategyError,
        "Summed: output: got shape () when traced with 3 samples, expected (3,). ~ use pb.vmap.",
    ),
    Refusal(
        "manual with a state that is summed over the batch",
        lambda _: pb.manual(captured(Remembering(), one_input()), SAMPLES),
        SampleCouplingError,
        "pb.manual: other['memory']: got samples coupled by reduce_sum at provoke.py: ~ (Remembering.update), "
        "expected samples that do not reach each other. Use pb.vmap, ~ or pass allow_coupling=True",
    ),
    Refusal(
        "manual with code that knows no batch axis",
        lambda _: pb.manual(captured(Flattened(), one_input()), SAMPLES),
        StrategyError,
        "Flattened: got TypeError with a batch axis: cannot reshape ~ (3, 5) ~ expected ~ carries a batch axis. Use "
        "pb.vmap",
    ),
)
