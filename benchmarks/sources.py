"""The tutorial's network as a BrainScale module and as a plain JAX function: the second costs what the first costs.

    python benchmarks/sources.py

Results go to `build/benchmarks/`; `--help` lists the options.
"""

from typing import Any

import brainscale
import brainunit as u
import jax.numpy as jnp
import numpy as np
from _bars import ratio
from _cases import ours
from _command import Section, main
from _measuring import Run, compiled
from _problem import Problem, make_problem

import pure_batching as pb
from pure_batching._tutorial.net import Dataset
from pure_batching._tutorial.plain import step
from pure_batching._tutorial.training import loss

RULES = {"ES_D_RTRL": pb.ES_D_RTRL(0.9), "D_RTRL published": pb.D_RTRL(rule="published")}


def plain(rule: pb.Algorithm, problem: Problem) -> Run:
    """The gradient of the function, of the module's own weights."""
    net, data = problem
    inputs = np.asarray(data.inputs)
    into, out = (state.value for state in (net.syn.comm.weight_op, net.out.weight_op))
    params = {name: u.get_mantissa(into[name]) for name in ("weight", "bias")} | {"out": out["weight"]}
    state = (jnp.zeros(params["weight"].shape[1]), jnp.zeros(out["weight"].shape[1]))
    learner, params = pb.capture_function(step, params, state, inputs[0, 0], algorithm=rule)
    grad_fn = pb.sequence_grad(pb.vmap(learner, len(data.labels)), loss)

    def gradient(params: Any, data: Dataset) -> Any:
        return grad_fn(params, None, data.inputs, brainscale.SingleStepData(data.labels))[0]

    return compiled(gradient, params, data)


def both() -> Section:
    """The module and the function."""
    problem = make_problem()
    cases: dict[str, Run] = {}
    for name, rule in RULES.items():
        cases[f"module, {name}"] = ours(pb.vmap, rule, problem)
        cases[f"function, {name}"] = plain(rule, problem)
    bars = [ratio(f"function, {name}", f"module, {name}", at_most=1.05) for name in RULES]
    return Section("T=16, B=128, 100 -> 200 -> 10, pb.vmap", cases, bars)


if __name__ == "__main__":
    main({"both": both})
