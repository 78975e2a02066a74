"""The bytes of a gradient that `pb.cost` says, against those of XLA's own analysis of the compiled function."""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import pytest

import pure_batching as pb
from pure_batching.errors import OptionError, StructureError

from . import modules
from .bench import RULES, STRATEGIES, Bench, bench_of
from .models import Model, cross_entropy, floats, label
from .registry import EVERY

# Large enough that the arrays of a network decide, and not the numbers beside them.
STEPS, SAMPLES = 32, 16
N_IN, N_REC, N_OUT = 64, 96, 10

_ALL = (
    Model(
        "tutorial",
        lambda: modules.LIFNet(N_IN, N_REC, N_OUT),
        draws=(floats(N_IN),),
        target=label,
        loss=cross_entropy,
    ),
    Model("GRUCell", lambda: brainscale.nn.GRUCell(N_IN, N_REC), draws=(floats(N_IN),)),
    Model("LRUCell", lambda: brainscale.nn.LRUCell(N_IN, N_REC), draws=(floats(N_IN),)),
    Model("conv_rates", lambda: modules.conv_rates((12, 12, 4), 8), draws=(floats(12, 12, 4),)),
    Model("element_wise", lambda: modules.ElementWise(N_IN, N_REC), draws=(floats(N_IN),)),
    Model("readouts", lambda: modules.Readouts(N_IN, N_REC, N_OUT), draws=(floats(N_IN),)),
    Model("stack", lambda: modules.Stack(N_IN, N_REC, N_OUT), draws=(floats(N_IN),)),
)
MODELS: Mapping[str, Model] = {model.name: model for model in _ALL}

# Each rule and each model meets each of these.
WAYS = (("vmap", None), ("manual", 8), ("loop", 8))
CASES = [(name, rule, *WAYS[(i + j) % len(WAYS)]) for i, name in enumerate(MODELS) for j, rule in enumerate(RULES)]
every_case = pytest.mark.parametrize(("name", "rule", "strategy", "window"), CASES)


@functools.cache
def captured(name: str, rule: str) -> Bench:
    return bench_of(MODELS[name], 0, RULES[rule], precision=32)


def batched(name: str, rule: str, strategy: str = "vmap") -> pb.Learner:
    return STRATEGIES[strategy](captured(name, rule).learner, SAMPLES)


def analysed(made: Bench, learner: pb.Learner, window: int | None) -> int:
    """The bytes that XLA says, without the targets, of which `pb.cost` knows nothing."""
    inputs, targets = made.data(STEPS, SAMPLES)
    grad_fn = pb.sequence_grad(learner, made.model.loss, window=window)

    def gradient(*given: Any) -> Any:
        return grad_fn(given[0], None, *given[1:], key=jax.random.key(0))

    with brainstate.environ.context(precision=made.precision):
        compiled = jax.jit(gradient).lower(made.params, inputs, targets).compile()
    memory: Any = compiled.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return whole - nbytes(jax.tree.map(jnp.asarray, targets))


def nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@functools.cache
def found(name: str, rule: str, strategy: str, window: int | None) -> pb.Cost:
    return pb.cost(batched(name, rule, strategy), STEPS, window)


@every_case
def test_total_is_near_that_of_xla(name: str, rule: str, strategy: str, window: int | None) -> None:
    """Of the gradient by the model's own loss, which leaves other temporaries than `pb.cost`'s."""
    got = found(name, rule, strategy, window)
    want = analysed(captured(name, rule), batched(name, rule, strategy), window)
    assert 0.75 < got.total / want < 1.25, f"{got.total / want:.2f} of {want:,} B\n{got}"


@pytest.mark.parametrize(("name", "rule"), [*zip(EVERY, itertools.cycle(RULES), strict=False)])
def test_total_of_a_model_of_the_registry(name: str, rule: str) -> None:
    """Of every model and layer, with the rules in turn."""
    made = bench_of(EVERY[name], 0, RULES[rule], precision=32)
    learner = STRATEGIES["vmap" if "vmap" in made.model.strategies else "loop"](made.learner, SAMPLES)
    with brainstate.environ.context(precision=32):
        got = pb.cost(learner, STEPS)
    want = analysed(made, learner, None)
    assert 0.75 < got.total / want < 1.25, f"{got.total / want:.2f} of {want:,} B\n{got}"


def sizes(found: pb.Cost) -> dict[str, int]:
    """The bytes by the name of the part; those of all traces are one."""
    names = {part.name for part in found.parts}
    return {name: sum(part.nbytes for part in found.parts if part.name == name) for name in names}


@every_case
def test_parts_are_those_of_the_arrays(name: str, rule: str, strategy: str, window: int | None) -> None:
    carry, whole = batched(name, rule, strategy).init(), found(name, rule, strategy, window)
    got = sizes(whole)
    assert got["params"] == got["gradient"] == nbytes(captured(name, rule).params)
    assert got["inputs"] == nbytes(captured(name, rule).data(STEPS, SAMPLES)[0])
    assert got["losses"] == STEPS * SAMPLES * 4
    assert got["carry"] == nbytes(carry._replace(trace=()))
    assert got.get("trace", 0) == nbytes(carry.trace)
    assert sum(got.values()) == whole.total
    assert all(part.nbytes > 0 for part in whole.parts if part.name not in ("window", "temporaries"))
    assert got["window"] >= 0 <= got["temporaries"]
    assert (rule == "BPTT") == (got.get("trace", 0) == 0)


def test_a_trace_stands_with_its_weight() -> None:
    learner = batched("tutorial", "D_RTRL published")
    traces = {part.weight: part.nbytes for part in pb.cost(learner, STEPS).parts if part.name == "trace"}
    (recurrent,) = (size for weight, size in traces.items() if weight.startswith("syn"))
    assert recurrent == SAMPLES * (N_IN + N_REC + 1) * N_REC * 4
    assert set(traces) == set(captured("tutorial", "D_RTRL published").params)


def test_a_trace_of_two_weights_counts_once() -> None:
    """Both read the same input, whose trace stands with the first."""
    params = {"v": jnp.ones((N_IN, N_REC)), "w": jnp.ones((N_IN, N_REC))}

    def step(p: Any, h: Any, x: Any) -> Any:
        h = 0.5 * h + jnp.tanh(x @ p["v"]) + jnp.sin(x @ p["w"])
        return h, h

    start, x = jnp.zeros(N_REC), jnp.zeros(N_IN)
    learner, _ = pb.capture_function(step, params, start, x, algorithm=RULES["ES_D_RTRL"])
    got = {part.weight: part.nbytes for part in pb.cost(learner, STEPS).parts if part.name == "trace"}
    assert sorted(got.values()) == [8 * N_REC, 8 * (N_IN + N_REC)]
    assert set(got) == {"params.v", "params.w"}


def test_the_window_decides() -> None:
    """The records grow with the window, and nothing but inputs and losses with the sequence."""
    learner = batched("tutorial", "ES_D_RTRL published")
    one, eight = (sizes(pb.cost(learner, STEPS, window)) for window in (1, 8))
    assert eight["window"] == 8 * one["window"] > 0
    longer = sizes(pb.cost(learner, 100 * STEPS, 8))
    assert {name for name in longer if longer[name] != eight[name]} == {"inputs", "losses"}
    assert longer["inputs"] == 100 * eight["inputs"]


def test_nothing_is_run() -> None:
    """No machine holds these inputs."""
    learner = batched("tutorial", "D_RTRL published")
    assert pb.cost(learner, 10**9).total > 10**9 * SAMPLES * N_IN * 4


def test_one_sample() -> None:
    learner = captured("GRUCell", "D_RTRL published").learner
    of_one, of_all = (sizes(pb.cost(one, STEPS)) for one in (learner, batched("GRUCell", "D_RTRL published")))
    assert of_one["params"] == of_all["params"]
    assert SAMPLES * of_one["trace"] == of_all["trace"]


def test_a_plain_function() -> None:
    params = {"w": jnp.ones((N_IN, N_REC), jnp.float32)}

    def step(params: Any, h: Any, x: Any) -> Any:
        h = 0.5 * h + jnp.tanh(x @ params["w"])
        return h, h

    start, x = jnp.zeros(N_REC, jnp.float32), jnp.zeros(N_IN, jnp.float32)
    learner, _ = pb.capture_function(step, params, start, x, algorithm=RULES["D_RTRL published"])
    got = {(part.name, part.weight): part.nbytes for part in pb.cost(pb.vmap(learner, SAMPLES), STEPS).parts}
    assert got["trace", "params.w"] == SAMPLES * got["params", ""] == SAMPLES * N_IN * N_REC * 4


def test_table() -> None:
    found = pb.cost(batched("tutorial", "D_RTRL published"), STEPS, 8)
    lines = str(found).splitlines()
    assert lines[0] == "32 steps in windows of 8"
    assert [line.rsplit("  ", 1)[0].strip() for line in lines[1:]] == [
        *("params", "inputs", "gradient", "losses", "carry"),
        *("trace of syn.comm.weight_op", "trace of out.weight_op", "window", "temporaries", "total"),
    ]
    assert lines[-1].endswith(f" {found.total:,} B")


@pytest.mark.parametrize("steps", [0, -1, 2.0, True, None, "8"])
def test_no_number_of_steps(steps: Any) -> None:
    with pytest.raises(OptionError, match=r"time_steps: got .*, expected an integer >= 1\. Give the number of steps"):
        pb.cost(batched("tutorial", "BPTT"), steps)


@pytest.mark.parametrize("window", [0, -1, 2.0, True, "8"])
def test_no_window(window: Any) -> None:
    with pytest.raises(OptionError, match=r"window: got .*, expected None or an integer >= 1"):
        pb.cost(batched("tutorial", "BPTT"), STEPS, window)


def test_no_learner() -> None:
    with pytest.raises(StructureError, match=r"pb\.cost: got tuple, expected a Learner"):
        pb.cost((batched("tutorial", "BPTT"), {}), STEPS)  # type: ignore[arg-type]
