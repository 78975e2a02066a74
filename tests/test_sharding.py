"""Samples on several devices: the gradients of one device, and one sum over all of them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import pure_batching as pb

from .bench import PLAIN, RULES, Bench, bench
from .models import MODELS
from .trees import assert_close, assert_identical

NAME = "MinimalRNNCell"
DEVICES, STEPS, SAMPLES = 4, 5, 8

every_kind = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def mesh_of(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((DEVICES,), ("samples",), axis_types=(kind,), devices=jax.devices()[:DEVICES])


def placed(tree: Any, kind: AxisType, *spec: str | None) -> Any:
    return jax.device_put(tree, NamedSharding(mesh_of(kind), P(*spec)))


def data(made: Bench, kind: AxisType) -> tuple[Any, Any, Any]:
    """Params on each device, inputs and targets with their samples on several."""
    of_samples = placed(tuple(made.data(STEPS, SAMPLES)), kind, None, "samples")
    return placed(made.params, kind), *of_samples


@every_kind
@pytest.mark.parametrize("strategy", PLAIN)
@pytest.mark.parametrize("rule", RULES)
def test_a_gradient(rule: str, strategy: str, kind: AxisType) -> None:
    made = bench(NAME, 0, RULES[rule])
    grad_fn = pb.sequence_grad(PLAIN[strategy](made.learner, SAMPLES), made.model.loss, window=3)
    compiled = jax.jit(lambda p, x, y: grad_fn(p, None, x, y)).lower(*data(made, kind)).compile()
    text = compiled.as_text()
    assert text.count(" all-gather(") == 0
    want = grad_fn(made.params, None, *made.data(STEPS, SAMPLES))
    assert_close(jax.device_get(compiled(*data(made, kind))), jax.device_get(want))


@every_kind
def test_chunks_of_samples_on_several_devices(kind: AxisType) -> None:
    """Chunks that lie across devices, where XLA ends the process unless each device has all samples."""
    made = bench("tutorial", 0)
    batched = pb.chunked(made.learner, DEVICES, chunk=3)
    grad_fn = pb.sequence_grad(batched, made.model.loss, window=2, reduction="none")
    given = made.data(STEPS, DEVICES)
    spread = placed(tuple(given), kind, None, "samples")
    got = grad_fn(placed(made.params, kind), None, *spread)
    want = grad_fn(made.params, None, *given)
    assert_close(jax.device_get(got), jax.device_get(want))
    on_several = jax.jit(grad_fn)(placed(made.params, kind), placed(want[1].carry, kind, "samples"), *spread)
    assert_close(jax.device_get(on_several), jax.device_get(grad_fn(made.params, want[1].carry, *given)))


BEGUN = """
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
from contextlib import nullcontext

import brainscale, jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import pure_batching as pb

inputs, targets = jnp.ones((5, 8, 3)), jnp.ones((5, 8, 6))


def loss(output, target):
    return ((output - target) ** 2).sum()


def count(fun, kind, carry=None, is_set=False):
    mesh = jax.make_mesh((4,), ("b",), axis_types=(kind,))
    data = [jax.device_put(x, NamedSharding(mesh, P(None, "b"))) for x in (inputs, targets)]
    held = jax.device_put(params, NamedSharding(mesh, P()))
    start = jax.device_put(carry, NamedSharding(mesh, P("b")))
    with jax.set_mesh(mesh) if is_set else nullcontext():
        text = jax.jit(lambda p, c, x, y: fun(p, c, x, y)).lower(held, start, *data).compile().as_text()
    moves = ("all-gather", "all-to-all", "collective-permute")
    entry = text[text.index("ENTRY ") :]
    sums = text.count(" all-reduce("), entry.count(" all-reduce(")
    print(*(sums if carry is not None else sums[:1]), sum(text.count(f" {move}(") for move in moves))


kinds = (AxisType.Auto, AxisType.Explicit)
"""

COUNTED = """
for algorithm in (pb.ES_D_RTRL(0.9), pb.D_RTRL(), pb.D_RTRL("published", "multi-step"), pb.BPTT()):
    learner, params = pb.capture(brainscale.nn.MinimalRNNCell(3, 6), inputs[0, 0], algorithm=algorithm)
    for i, strategy in enumerate((pb.vmap, pb.manual, pb.loop)):
        count(pb.sequence_grad(strategy(learner, 8), loss), kinds[i % 2])
    count(pb.sequence_grad(pb.vmap(learner, 8), loss, window=2, reduction="none"), kinds[1])
    count(pb.sample_norms(pb.vmap(learner, 8), loss, window=2), kinds[0])
"""

KNOWN = """
for algorithm, strategy, window, kind in (
    (pb.ES_D_RTRL(0.9, vjp="multi-step"), pb.manual, None, kinds[1]),
    (pb.D_RTRL("published", "multi-step"), pb.loop, 2, kinds[0]),
    (pb.BPTT(), pb.vmap, 2, kinds[1]),
):
    learner, params = pb.capture(brainscale.nn.MinimalRNNCell(3, 6), inputs[0, 0], algorithm=algorithm)
    batched = strategy(learner, 8)
    count(pb.sequence_grad(batched, loss, window=window), kind, batched.init(), is_set=kind is kinds[0])
"""


def printed(script: str) -> list[str]:
    """What a script prints in a process of its own, whose XLA runs the passes that are off in these tests."""
    names = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", BEGUN + script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean, cwd=Path(__file__).parents[1])
    return done.stdout.splitlines()


def test_one_sum_over_the_devices() -> None:
    assert printed(COUNTED) == [*["1 0"] * 3, *["0 0"] * 2] * 4


def test_one_sum_outside_of_every_loop() -> None:
    """Where a mesh is in force, or the types name one: also from a carry, and for several windows."""
    assert printed(KNOWN) == ["1 1 0"] * 3


@every_kind
@pytest.mark.parametrize("strategy", PLAIN)
def test_per_sample_gradients_norms_and_clipping(strategy: str, kind: AxisType) -> None:
    made = bench(NAME, 0)
    batched, mask = PLAIN[strategy](made.learner, SAMPLES), np.ones((STEPS, SAMPLES), bool)
    mask[1, 2] = False
    for fun in (
        pb.sequence_grad(batched, made.model.loss, reduction="none", outputs=True),
        pb.sample_norms(batched, made.model.loss),
        pb.clipped_grad(batched, made.model.loss, 0.1),
    ):
        params, inputs, targets = data(made, kind)
        got = fun(params, None, inputs, targets, mask=placed(mask, kind, None, "samples"))
        want = fun(made.params, None, *made.data(STEPS, SAMPLES), mask=mask)
        assert_close(jax.device_get(got), jax.device_get(want))


@every_kind
@pytest.mark.parametrize("strategy", PLAIN)
def test_steps_and_a_carry_that_goes_on(strategy: str, kind: AxisType) -> None:
    made = bench(NAME, 0)
    batched = PLAIN[strategy](made.learner, SAMPLES)
    params, inputs, _ = data(made, kind)

    def loss(params: Any, start: Any, inputs: Any) -> Any:
        carry, _ = batched.step(params, start, *jax.tree.map(lambda x: x[0], inputs))
        carry, output = batched.step(params, carry, *jax.tree.map(lambda x: x[1], inputs))
        return (output**2).sum(), carry

    start = batched.init()
    layout = jax.tree.map(lambda _: "samples", start._replace(shared={}))
    held = jax.tree.map(lambda leaf, name: placed(leaf, kind, name), start._replace(shared={}), layout)
    run = jax.jit(jax.grad(loss, has_aux=True))
    want = run(made.params, start, made.data(STEPS, SAMPLES).inputs)
    assert_close(jax.device_get(run(params, held, inputs)), jax.device_get(want))


@pytest.mark.parametrize("strategy", PLAIN)
def test_shard_map(strategy: str) -> None:
    """Each device runs a learner of its own samples; their gradients are summed by hand."""
    made, mesh = bench(NAME, 0), mesh_of(AxisType.Auto)
    grad_fn = pb.sequence_grad(PLAIN[strategy](made.learner, SAMPLES // DEVICES), made.model.loss, reduction="sum")

    def own(params: Any, inputs: Any, targets: Any) -> Any:
        gradients, aux = grad_fn(params, None, inputs, targets)
        return jax.lax.psum(gradients, "samples"), aux.losses

    split = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(P(), P(None, "samples"), P(None, "samples")),
        out_specs=(P(), P(None, "samples")),
        check_vma=False,
    )
    whole = pb.sequence_grad(PLAIN[strategy](made.learner, SAMPLES), made.model.loss, reduction="sum")
    gradients, aux = whole(made.params, None, *made.data(STEPS, SAMPLES))
    got = jax.jit(split)(*data(made, AxisType.Auto))
    assert_close(jax.device_get(got), jax.device_get((gradients, aux.losses)))


@every_kind
def test_a_capture_reads_no_mesh(kind: AxisType) -> None:
    """A mesh that was in force while a module was captured and batched is no part of the learner."""
    model, samples = MODELS[NAME], bench(NAME, 0).data(STEPS, SAMPLES)
    net = model.build(0)
    with jax.set_mesh(mesh_of(kind)):
        learner, _ = pb.capture(net, *jax.device_get(model.inputs(0)), algorithm=RULES["ES_D_RTRL multi-step"])
        within = pb.manual(learner, SAMPLES)
    other, params = pb.capture(net, *model.inputs(0), algorithm=RULES["ES_D_RTRL multi-step"])
    without = pb.manual(other, SAMPLES)
    got, want = (pb.sequence_grad(one, model.loss)(params, None, *samples) for one in (within, without))
    assert_identical(jax.device_get(got), jax.device_get(want))


@every_kind
def test_a_function_that_is_captured_inside_a_mesh(kind: AxisType) -> None:
    """Its initial state is an array of that mesh; under explicit axes, its type says so."""
    inputs, targets = placed((np.ones((STEPS, SAMPLES, 3)), np.ones((STEPS, SAMPLES, 4))), kind, None, "samples")

    def step(weight: jax.Array, state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = jnp.tanh(0.7 * state + x @ weight)
        return new, new

    def gradient() -> Any:
        given = jnp.full((3, 4), 0.1), jnp.full(4, 0.5), jnp.zeros(3)
        learner, params = pb.capture_function(step, *given, algorithm=pb.D_RTRL())
        grad_fn = pb.sequence_grad(pb.vmap(learner, SAMPLES), MODELS[NAME].loss)
        return jax.jit(lambda params, *data: grad_fn(params, None, *data)[0])(params, inputs, targets)

    with jax.set_mesh(mesh_of(kind)):
        got = gradient()
    assert np.abs(got).max() > 0
    assert_close(jax.device_get(got), jax.device_get(gradient()))
