"""The tutorial's network: every strategy, rule and window, against programs written by hand and other libraries.

    python benchmarks/tutorial.py

BrainScale's own strategies take part in the environment of requirements-parity.lock, BrainTrace's where it is
installed, and this library as it was at an earlier commit where the clone has that.
"""

import functools
from collections.abc import Callable
from typing import Any

import _floors
import _streams
import brainscale
import optax
from _bars import Bar, alike, ratio
from _before import earlier
from _braintrace import IS_INSTALLED, braintraces, traced_problem
from _cases import brainscale_manual, brainscale_runs_here, brainscale_vmap, by_driver, by_driver_of, ours
from _command import Section, main
from _floors import DECAY, by_hand
from _measuring import Run
from _problem import Problem, Sizes, make_problem

import pure_batching as pb

ES, ES_PUBLISHED = pb.ES_D_RTRL(DECAY), pb.ES_D_RTRL(DECAY, rule="published")
D, D_PUBLISHED = pb.D_RTRL(), pb.D_RTRL(rule="published")
STRATEGIES = {"manual": pb.manual, "vmap": pb.vmap}
OTHERS: dict[str, pb.Algorithm] = {
    "ES_D_RTRL multi-step": pb.ES_D_RTRL(DECAY, vjp="multi-step"),
    "D_RTRL published, multi-step": pb.D_RTRL(rule="published", vjp="multi-step"),
    "Hybrid published": pb.Hybrid(DECAY, rule="published"),
    "EProp": pb.EProp(0.8),
    "OTTT": pb.OTTT(DECAY),
}
LONG, WIDE, STREAM = Sizes(steps=256), Sizes(steps=64, samples=32, hidden=1024), Sizes(steps=1024, samples=1)


def by_strategy(name: str, algorithm: pb.Algorithm, problem: Problem, **options: Any) -> dict[str, Run]:
    """The gradient by both strategies, under names that begin alike."""
    return {f"{name}, {how}": ours(by, algorithm, problem, **options) for how, by in STRATEGIES.items()}


def whole() -> Section:
    """Gradients that need no trace of a weight's shape."""
    problem = make_problem()
    cases = {
        "forward, by hand": _floors.forward_by_hand(problem),
        **by_strategy("ES_D_RTRL", ES, problem),
        **by_strategy("ES_D_RTRL published", ES_PUBLISHED, problem),
        "ES_D_RTRL, by hand": by_hand(_floors.es_d_rtrl, problem),
        **by_strategy("D_RTRL published", D_PUBLISHED, problem),
        "D_RTRL published, by hand": by_hand(_floors.d_rtrl, problem),
        **by_strategy("BPTT", pb.BPTT(), problem),
        "BPTT, jax.grad by hand": by_hand(_floors.bptt, problem),
        "BPTT, contracted by hand": by_hand(_floors.bptt_contracted_once, problem),
        **_es_elsewhere(),
    }
    bars = [
        *(ratio(f"ES_D_RTRL, {how}", "ES_D_RTRL, by hand", at_most=1.0) for how in STRATEGIES),
        *(ratio(f"D_RTRL published, {how}", "D_RTRL published, by hand", at_most=1.0) for how in STRATEGIES),
        *(ratio(f"D_RTRL published, {how}", f"BPTT, {how}", at_most=0.62) for how in STRATEGIES),
        ratio("ES_D_RTRL, manual", "BrainScale ES_D_RTRL, manual", at_most=0.85),
        ratio("ES_D_RTRL, manual", "BrainTrace ES_D_RTRL, manual", at_most=0.90),
        ratio("ES_D_RTRL, vmap", "BrainTrace ES_D_RTRL, vmap", at_most=0.5),
        *_strategies_alike("ES_D_RTRL", "ES_D_RTRL published", "D_RTRL published", "BPTT"),
    ]
    same = [
        [f"ES_D_RTRL, {how}" for how in ("manual", "vmap", "by hand")]
        + [f"BrainScale ES_D_RTRL, {how}" for how in STRATEGIES],
        [f"ES_D_RTRL published, {how}" for how in STRATEGIES] + [f"BrainTrace ES_D_RTRL, {how}" for how in STRATEGIES],
        [f"D_RTRL published, {how}" for how in ("manual", "vmap", "by hand")],
        [f"BPTT, {how}" for how in ("manual", "vmap", "jax.grad by hand", "contracted by hand")],
    ]
    return Section("T=16, B=128, 100 -> 200 -> 10, whole sequence", cases, bars, same)


def _es_elsewhere() -> dict[str, Run]:
    cases = {}
    if brainscale_runs_here():
        make = functools.partial(brainscale.ES_D_RTRL, decay_or_rank=DECAY)
        cases["BrainScale ES_D_RTRL, manual"] = brainscale_manual(make, make_problem())
        cases["BrainScale ES_D_RTRL, vmap"] = brainscale_vmap(make, make_problem())
    if IS_INSTALLED:
        for how in STRATEGIES:
            run = braintraces("pp_prop", traced_problem(), vmap=how == "vmap", decay_or_rank=DECAY)
            cases[f"BrainTrace ES_D_RTRL, {how}"] = run
    return cases


def traces() -> Section:
    """D_RTRL by its default rule, and by what others have."""
    problem, before = make_problem(), earlier()
    cases = {
        **by_strategy("D_RTRL default", D, problem),
        **by_strategy("D_RTRL published", D_PUBLISHED, problem),
    }
    if before is not None:
        cases["D_RTRL default, before"] = _of_earlier(before)
    if brainscale_runs_here():
        cases["BrainScale D_RTRL, manual"] = brainscale_manual(brainscale.D_RTRL, make_problem())
        cases["BrainScale D_RTRL, vmap"] = brainscale_vmap(brainscale.D_RTRL, make_problem())
    if IS_INSTALLED:
        for how in STRATEGIES:
            cases[f"BrainTrace D_RTRL, {how}"] = braintraces("d_rtrl", traced_problem(), vmap=how == "vmap")
    theirs = [f"BrainTrace D_RTRL, {how}" for how in STRATEGIES]
    bars = [
        *(ratio(f"D_RTRL default, {how}", "D_RTRL default, before", at_most=0.25) for how in STRATEGIES),
        ratio("D_RTRL published, manual", *theirs, at_most=0.035),
        *_strategies_alike("D_RTRL default"),
    ]
    same = [
        ["D_RTRL default, manual", "D_RTRL default, vmap", "D_RTRL default, before"],
        ["D_RTRL published, manual", "D_RTRL published, vmap", *theirs],
    ]
    return Section("T=16, B=128, D_RTRL's default rule and traces of other libraries", cases, bars, same)


def _of_earlier(before: Any) -> Run:
    """The default rule of an earlier version."""
    return by_driver_of(before, before.sequence_grad, before.manual, before.D_RTRL(), make_problem())


def step_by_step() -> Section:
    """Published D_RTRL with its trace."""
    problem = make_problem()
    cases = {"D_RTRL published, whole, manual": ours(pb.manual, D_PUBLISHED, problem)}
    for window in (8, 1):
        cases |= by_strategy(f"D_RTRL published, window={window}", D_PUBLISHED, problem, window=window)
        cases |= by_strategy(f"ES_D_RTRL, window={window}", ES, problem, window=window)
    cases |= {
        "pb.online, every=1, vmap": by_driver(_online, pb.vmap, D_PUBLISHED, problem),
        "step by step, by hand": by_hand(_streams.d_rtrl_step_by_step, problem),
        "step by step, einsum by hand": by_hand(_streams.d_rtrl_by_einsum, problem),
    }
    bars: list[Bar] = []
    for floor in ("step by step, einsum by hand", "step by step, by hand"):
        bars.append(ratio("D_RTRL published, window=1, manual", floor, at_most=0.75))
        bars.append(ratio("D_RTRL published, window=8, manual", floor, at_most=0.15))
    bars.append(ratio("ES_D_RTRL, window=1, manual", "ES_D_RTRL, window=8, manual", at_most=1.05))
    bars += _strategies_alike(*(f"D_RTRL published, window={window}" for window in (8, 1)))
    bars += _strategies_alike(*(f"ES_D_RTRL, window={window}" for window in (8, 1)))
    windows = [f"D_RTRL published, window={window}, {how}" for window in (8, 1) for how in STRATEGIES]
    same = [["D_RTRL published, whole, manual", *windows, "step by step, by hand", "step by step, einsum by hand"]]
    return Section("T=16, B=128, in windows", cases, bars, same)


def _online(learner: Any, loss: Any) -> Callable[..., Any]:
    """An update after each step, with a rate of zero."""
    optimizer = optax.sgd(0.0)
    train = pb.online(learner, loss, optimizer, every=1)
    return lambda params, *data: train(params, optimizer.init(params), *data)


def others() -> Section:
    """The rules that have no floor here."""
    problem = make_problem()
    cases: dict[str, Run] = {}
    for name, algorithm in OTHERS.items():
        cases |= by_strategy(name, algorithm, problem)
    same = [[f"{name}, {how}" for how in STRATEGIES] for name in OTHERS]
    return Section("T=16, B=128, other rules", cases, _strategies_alike(*OTHERS), same)


def _strategies_alike(*names: str) -> list[Bar]:
    return [alike(f"{name}, vmap", f"{name}, manual") for name in names]


def long() -> Section:
    """A sequence whose window is a choice."""
    problem = make_problem(LONG)
    windows = (8, 16, 32, 64)
    cases = {
        "D_RTRL published, whole": ours(pb.manual, D_PUBLISHED, problem, 256),
        "D_RTRL published, default": ours(pb.manual, D_PUBLISHED, problem),
        "D_RTRL published, by hand": by_hand(_floors.d_rtrl, problem),
        "D_RTRL published, window=64": ours(pb.manual, D_PUBLISHED, problem, 64),
        "ES_D_RTRL, default": ours(pb.manual, ES, problem),
        "ES_D_RTRL, whole": ours(pb.manual, ES, problem, 256),
        "ES_D_RTRL, by hand": by_hand(_floors.es_d_rtrl, problem),
        **{f"ES_D_RTRL, window={window}": ours(pb.manual, ES, problem, window) for window in windows},
    }
    fixed = ["ES_D_RTRL, whole", *(f"ES_D_RTRL, window={window}" for window in windows)]
    bars = [
        ratio("D_RTRL published, window=64", "D_RTRL published, whole", at_most=1.5),
        ratio("ES_D_RTRL, default", *(f"ES_D_RTRL, window={window}" for window in (8, 16, 64)), at_most=1.05),
        ratio("ES_D_RTRL, default", *fixed, at_most=1.05),
    ]
    same = [
        [f"D_RTRL published, {how}" for how in ("whole", "default", "window=64", "by hand")],
        [*fixed, "ES_D_RTRL, by hand"],
    ]
    # In so many steps the order of a sum makes a spike or two come a step later.
    return Section("T=256, B=128, pb.manual", cases, bars, same, apart=1e-2)


def _against_hand(sizes: Sizes) -> Section:
    problem = make_problem(sizes)
    cases = {
        **by_strategy("ES_D_RTRL", ES, problem),
        "ES_D_RTRL, by hand": by_hand(_floors.es_d_rtrl, problem),
        **by_strategy("D_RTRL published", D_PUBLISHED, problem),
        "D_RTRL published, by hand": by_hand(_floors.d_rtrl, problem),
    }
    rules = ("ES_D_RTRL", "D_RTRL published")
    bars = [ratio(f"{rule}, {how}", f"{rule}, by hand", at_most=1.05) for rule in rules for how in STRATEGIES]
    same = [[f"{rule}, {how}" for how in (*STRATEGIES, "by hand")] for rule in rules]
    title = f"T={sizes.steps}, B={sizes.samples}, 100 -> {sizes.hidden} -> 10"
    return Section(title, cases, [*bars, *_strategies_alike(*rules)], same, apart=1e-2)


SECTIONS = {
    "whole": whole,
    "step by step": step_by_step,
    "traces": traces,
    "others": others,
    "long": long,
    "wide": functools.partial(_against_hand, WIDE),
    "stream": functools.partial(_against_hand, STREAM),
}

if __name__ == "__main__":
    main(SECTIONS)
