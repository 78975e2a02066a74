"""The time to one first gradient, in this process: `python benchmarks/_first.py NAME` prints seconds as JSON."""

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import brainscale
import jax
from _braintrace import IS_INSTALLED, braintraces, traced_problem
from _cases import Strategy, brainscale_manual, brainscale_runs_here, brainscale_vmap, ours
from _floors import DECAY
from _measuring import Run
from _problem import Problem, Sizes, make_problem

import pure_batching as pb
from pure_batching._tutorial.training import loss

ES = pb.ES_D_RTRL(DECAY)

# Makes data and weights, and returns what is timed.
Prepare = Callable[[], Callable[[], Any]]


def of(make: Callable[[Problem], Run], problem: Callable[[], Problem] = make_problem) -> Prepare:
    """A gradient of a problem."""

    def prepare() -> Callable[[], Any]:
        made = problem()

        def first() -> Any:
            run = make(made)
            return run()

        return first

    return prepare


def by_ours(strategy: Strategy, algorithm: pb.Algorithm) -> Prepare:
    """This library's."""
    return of(functools.partial(ours, strategy, algorithm))


def second(strategy: Strategy, sizes: Sizes) -> Prepare:
    """A gradient of a learner that has given one with another strategy, or another batch size."""

    def prepare() -> Callable[[], Any]:
        net, data = make_problem()
        learner, params = pb.capture(net, data.inputs[0, 0], algorithm=ES)
        _once(learner, params, pb.manual, data)
        other = make_problem(sizes).data
        return lambda: _once(learner, params, strategy, other)

    return prepare


def _once(learner: pb.Learner, params: Any, strategy: Strategy, data: Any) -> Any:
    grad_fn = pb.sequence_grad(strategy(learner, len(data.labels)), loss)
    targets = brainscale.SingleStepData(data.labels)
    return jax.jit(lambda params, inputs: grad_fn(params, None, inputs, targets)[0])(params, data.inputs)


def _firsts() -> dict[str, Prepare]:
    cases = {
        "ES_D_RTRL, manual": by_ours(pb.manual, ES),
        "ES_D_RTRL, vmap": by_ours(pb.vmap, ES),
        "D_RTRL published, manual": by_ours(pb.manual, pb.D_RTRL(rule="published")),
        "D_RTRL default, manual": by_ours(pb.manual, pb.D_RTRL()),
        "D_RTRL default, vmap": by_ours(pb.vmap, pb.D_RTRL()),
        "BPTT, manual": by_ours(pb.manual, pb.BPTT()),
    }
    if brainscale_runs_here():
        make = functools.partial(brainscale.ES_D_RTRL, decay_or_rank=DECAY)
        for rule, algorithm in (("ES_D_RTRL", make), ("D_RTRL", brainscale.D_RTRL)):
            cases[f"BrainScale {rule}, manual"] = of(functools.partial(brainscale_manual, algorithm))
            cases[f"BrainScale {rule}, vmap"] = of(functools.partial(brainscale_vmap, algorithm))
    if IS_INSTALLED:
        for how in ("manual", "vmap"):
            es = functools.partial(braintraces, "pp_prop", vmap=how == "vmap", decay_or_rank=DECAY)
            cases[f"BrainTrace ES_D_RTRL, {how}"] = of(es, traced_problem)
            cases[f"BrainTrace D_RTRL, {how}"] = of(
                functools.partial(braintraces, "d_rtrl", vmap=how == "vmap"), traced_problem
            )
    return cases


FIRSTS: Mapping[str, Prepare] = _firsts()
SECONDS: Mapping[str, Prepare] = {
    "another strategy": second(pb.vmap, Sizes()),
    "another batch size": second(pb.manual, Sizes(samples=64)),
}


def main(name: str) -> None:
    """Print the seconds in all, and those of XLA's compiler."""
    compiling: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            compiling.append(duration)

    run = {**FIRSTS, **SECONDS}[name]()
    jax.monitoring.register_event_duration_secs_listener(listen)
    start = time.perf_counter()
    jax.block_until_ready(run())
    total = time.perf_counter() - start
    print(json.dumps({"total": total, "compiling": sum(compiling)}))


if __name__ == "__main__":
    main(sys.argv[1])
