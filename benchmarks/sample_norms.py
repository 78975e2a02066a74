"""Tools for each sample on the tutorial's network, against the summed gradient and against `jax.vmap` of `jax.grad`.

    python benchmarks/sample_norms.py

Results go to `build/benchmarks/`; `--help` lists the options.
"""

from functools import partial
from typing import Any

import brainunit as u
import jax
import jax.numpy as jnp
from _bars import alike, ratio
from _cases import Strategy, by_driver, ours
from _command import Section, main
from _floors import DECAY
from _measuring import Run, compiled
from _problem import Gradients, Problem, make_problem

import pure_batching as pb
from pure_batching._tutorial.net import Dataset
from pure_batching._tutorial.training import loss

RULES = {"ES_D_RTRL": pb.ES_D_RTRL(DECAY), "D_RTRL published": pb.D_RTRL(rule="published")}
STRATEGIES: dict[str, Strategy] = {"manual": pb.manual, "vmap": pb.vmap}
BOUND = 1.0


def mapped(algorithm: pb.Algorithm, problem: Problem, *, norms: bool) -> Run:
    """The gradient of each sample, or its norm, by `jax.vmap` of `jax.grad` of a scan of steps of one sample."""
    net, data = problem
    learner, params = pb.capture(net, data.inputs[0, 0], algorithm=algorithm)

    def total(params: Gradients, inputs: jax.Array, label: jax.Array) -> jax.Array:
        def step(carry: pb.Carry, x: jax.Array) -> tuple[pb.Carry, jax.Array]:
            carry, logits = learner.step(params, carry, x)
            return carry, loss(logits, label)

        return jax.lax.scan(step, learner.init(), inputs)[1].sum()

    def each(params: Gradients, data: Dataset) -> Any:
        gradients = jax.vmap(jax.grad(total), in_axes=(None, 1, 0))(params, data.inputs, data.labels)
        return jax.vmap(_norm)(gradients) if norms else gradients

    return compiled(each, params, data)


def _norm(gradient: Gradients) -> jax.Array:
    leaves = (u.get_mantissa(leaf) for leaf in jax.tree.leaves(gradient))
    return jnp.sqrt(sum(((leaf**2).sum() for leaf in leaves), jnp.zeros(())))


def of_each_sample(rule: str) -> Section:
    """One rule."""
    algorithm, problem = RULES[rule], make_problem()
    cases: dict[str, Run] = {}
    for how, by in STRATEGIES.items():
        cases[f"summed gradient, {how}"] = ours(by, algorithm, problem)
        cases[f"sample_norms, {how}"] = by_driver(pb.sample_norms, by, algorithm, problem)
        cases[f"clipped_grad, {how}"] = by_driver(_clipped, by, algorithm, problem)
        cases[f"per-sample gradients, {how}"] = ours(by, algorithm, problem, reduction="none")
    cases["norms, jax.vmap(jax.grad)"] = mapped(algorithm, problem, norms=True)
    cases["per-sample gradients, jax.vmap(jax.grad)"] = mapped(algorithm, problem, norms=False)
    tools = ("sample_norms", "clipped_grad", "per-sample gradients")
    bars = [
        *(ratio(f"sample_norms, {how}", f"summed gradient, {how}", at_most=1.2) for how in STRATEGIES),
        *(ratio(f"clipped_grad, {how}", f"summed gradient, {how}", at_most=2.0) for how in STRATEGIES),
        ratio("sample_norms, vmap", "norms, jax.vmap(jax.grad)"),
        ratio("per-sample gradients, vmap", "per-sample gradients, jax.vmap(jax.grad)"),
        *(alike(f"{tool}, vmap", f"{tool}, manual") for tool in tools),
    ]
    same = [
        ["sample_norms, manual", "sample_norms, vmap", "norms, jax.vmap(jax.grad)"],
        [f"per-sample gradients, {how}" for how in ("manual", "vmap", "jax.vmap(jax.grad)")],
    ]
    return Section(f"T=16, B=128, 100 -> 200 -> 10, {rule}", cases, bars, same)


def _clipped(learner: pb.Learner, loss: Any) -> Any:
    return pb.clipped_grad(learner, loss, BOUND)


SECTIONS = {rule: partial(of_each_sample, rule) for rule in RULES}

if __name__ == "__main__":
    main(SECTIONS)
