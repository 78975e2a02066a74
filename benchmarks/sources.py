"""The tutorial's network as a BrainScale module and as a plain JAX function: the second costs what the first costs.

python benchmarks/sources.py
"""

from functools import partial

import brainscale
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from _cases import ours
from _common import Bar, Build, Dataset, LIFNet, Run, run_benchmark

import pure_batching as pb
from pure_batching._tutorial.plain import step
from pure_batching._tutorial.training import loss

ES, D = pb.ES_D_RTRL(0.9), pb.D_RTRL(rule="published")


def plain(rule: pb.Algorithm, net: LIFNet, data: Dataset) -> Run:
    """The gradient of the function, of the module's own weights."""
    inputs = np.asarray(data.inputs)
    into, out = (state.value for state in (net.syn.comm.weight_op, net.out.weight_op))
    params = {name: u.get_mantissa(into[name]) for name in ("weight", "bias")} | {"out": out["weight"]}
    state = (jnp.zeros(params["weight"].shape[1]), jnp.zeros(out["weight"].shape[1]))
    learner, params = pb.capture_function(step, params, state, inputs[0, 0], algorithm=rule)
    grad_fn = pb.sequence_grad(pb.vmap(learner, len(data.labels)), loss)
    compiled = jax.jit(
        lambda params, data: grad_fn(params, None, data.inputs, brainscale.SingleStepData(data.labels))[0]
    )
    return lambda: compiled(params, data)


CASES: dict[str, Build] = {
    "module, ES_D_RTRL": partial(ours, pb.vmap, ES, None),
    "function, ES_D_RTRL": partial(plain, ES),
    "module, D_RTRL": partial(ours, pb.vmap, D, None),
    "function, D_RTRL": partial(plain, D),
}
SPEED_BARS = [
    Bar("function, ES_D_RTRL", "module, ES_D_RTRL", 1.05),
    Bar("function, D_RTRL", "module, D_RTRL", 1.05),
]

if __name__ == "__main__":
    run_benchmark(__file__, CASES, SPEED_BARS, is_same_work=False)
