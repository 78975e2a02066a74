"""Nothing that belongs to the process is changed, and nothing of it is read after the capture."""

import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pure_batching as pb

from .bench import RULES, SAMPLES, STEPS
from .models import MODELS, N_IN, Model
from .modules import OwnGenerators
from .trees import assert_close, assert_identical

# The newest BrainState has one precision for all threads, which is that of these tests, and JAX then says that it takes
# the narrower type.
pytestmark = pytest.mark.filterwarnings("ignore:Explicitly requested dtype:UserWarning")

# Beside a plain module one that draws random numbers, one that draws initial states, and one with settings.
NAMES = ("MinimalRNNCell", "noisy", "readouts", "tutorial")


def built(model: Model, *, is_x64: bool) -> Any:
    """A module, whose weights come from BrainState's random generator, which belongs to the process."""
    with jax.enable_x64(is_x64):
        return model.build(0)


def trained(model: Model, net: Any, rule: str, *, is_x64: bool) -> Any:
    """Capture a module, batch it in its ways, and take its gradients, all in one precision of this thread."""
    dtype = np.float64 if is_x64 else np.float32
    with jax.enable_x64(is_x64):
        example = as_dtype(model.inputs(0), dtype)
        learner, params = pb.capture(net, *example, algorithm=RULES[rule], environ=model.settings)
        data = as_dtype(model.inputs(0, STEPS, SAMPLES), dtype), as_dtype(model.targets(0, STEPS, SAMPLES), dtype)
    return [
        pb.sequence_grad(getattr(pb, strategy)(learner, SAMPLES), model.loss, outputs=True)(
            params, None, *data, key=jax.random.key(0)
        )
        for strategy in model.strategies
    ]


def as_dtype(tree: Any, dtype: type) -> Any:
    """A tree whose real numbers are numpy's, of a dtype."""
    return jax.tree.map(lambda x: np.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def of_the_process() -> list[Any]:
    """Whatever a library could change behind its user's back."""
    generator = np.asarray(jax.random.key_data(as_typed(brainstate.random.DEFAULT.value)))
    settings = dict(brainstate.environ.all())
    return [dict(jax.config.values), sys.stdout, list(warnings.filters), generator.tolist(), settings]


def as_typed(key: Any) -> Any:
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def in_a_thread(function: Callable[[], Any]) -> Any:
    """What a function gives in a thread of its own, where BrainState's settings are the default ones."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


class TestTheProcess:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("is_x64", [False, True], ids=["float32", "float64"])
    def test_is_left_as_it_was(self, name: str, *, is_x64: bool) -> None:
        net, before = in_a_thread(lambda: built(MODELS[name], is_x64=is_x64)), of_the_process()
        in_a_thread(lambda: trained(MODELS[name], net, "D_RTRL", is_x64=is_x64))
        assert of_the_process() == before

    def test_another_thread_sees_no_other_flag(self) -> None:
        """The flag is another one in this thread, and changes for the capture of a learner in the other precision."""
        is_x64, seen, model = jax.config.values["jax_enable_x64"], set[bool](), MODELS["MinimalRNNCell"]
        with ThreadPoolExecutor(1) as pool:
            net = pool.submit(built, model, is_x64=not is_x64).result()
            job = pool.submit(trained, model, net, "ES_D_RTRL", is_x64=not is_x64)
            while not job.done():
                seen.add(jax.config.values["jax_enable_x64"])
            job.result()
        assert seen == {is_x64}


class TestThreads:
    def test_eight_at_once_equal_one_after_the_other(self) -> None:
        pairs = [(MODELS[name], rule) for name, rule in zip(NAMES, RULES, strict=False)]
        jobs = [
            (model, in_a_thread(lambda model=model, x64=x64: built(model, is_x64=x64)), rule, x64)
            for model, rule in pairs
            for x64 in (False, True)
        ]

        def run(job: tuple[Model, Any, str, bool]) -> Any:
            model, net, rule, is_x64 = job
            return trained(model, net, rule, is_x64=is_x64)

        want = [in_a_thread(lambda job=job: run(job)) for job in jobs]
        jax.clear_caches()
        with ThreadPoolExecutor(len(jobs)) as pool:
            got = list(pool.map(run, jobs))
        assert len(jobs) == 8
        assert {leaf.dtype for leaf in jax.tree.leaves([one[0][0] for one in want])} >= {np.dtype("float32")}
        for one, other in zip(got, want, strict=True):
            assert_identical(jax.tree.map(plain_keys, one), jax.tree.map(plain_keys, other))


def plain_keys(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


class TestAfterTheCapture:
    """A learner keeps the settings of its capture, wherever it is run."""

    @pytest.mark.parametrize("rule", ["ES_D_RTRL published", "D_RTRL", "D_RTRL multi-step", "BPTT"])
    @pytest.mark.parametrize("is_x64", [False, True], ids=["float32", "float64"])
    def test_x64(self, rule: str, *, is_x64: bool) -> None:
        dtype = np.float64 if is_x64 else np.float32
        with jax.enable_x64(is_x64):
            model = MODELS["MinimalRNNCell"]
            with brainstate.environ.context(precision=64 if is_x64 else 32):
                net = model.build(0)
            learner, params = pb.capture(net, np.ones(N_IN, dtype), algorithm=RULES[rule])
            inputs = as_dtype(model.inputs(0, STEPS, SAMPLES), dtype)
            targets = as_dtype(model.targets(0, STEPS, SAMPLES), dtype)
        runs: list[Callable[[], Any]] = [
            lambda: pb.sequence_grad(pb.manual(learner, SAMPLES), model.loss)(params, None, inputs, targets),
            lambda: pb.vmap(learner, SAMPLES).init(),
            lambda: learner.step(params, learner.init(), inputs[0][0, 0]),
        ]
        for run in runs:
            with jax.enable_x64(is_x64):
                want = run()
            with jax.enable_x64(not is_x64):
                assert_identical(run(), want)

    def test_precision_of_products_and_kind_of_keys(self) -> None:
        """Those of the capture, for what is traced after it too."""
        model, noisy = MODELS["MinimalRNNCell"], MODELS["noisy"]
        learner, params = pb.capture(model.build(0), *model.inputs(0), algorithm=pb.D_RTRL())
        random, _ = pb.capture(noisy.build(0), *noisy.inputs(0), algorithm=pb.D_RTRL(), environ=noisy.settings)
        want = jax.tree.map(plain_keys, random.init())
        with jax.default_matmul_precision("highest"), jax.default_prng_impl("rbg"):
            step = jax.jit(pb.manual(learner, SAMPLES).step)
            lowered = step.lower(params, pb.manual(learner, SAMPLES).init(), *model.inputs(0, SAMPLES)).as_text()
            assert_identical(jax.tree.map(plain_keys, random.init()), want)
            assert "HIGHEST" in jax.jit(jnp.dot).lower(jnp.ones((2, 2)), jnp.ones((2, 2))).as_text()
        assert "dot_general" in lowered
        assert "HIGHEST" not in lowered

    @pytest.mark.parametrize("rule", RULES)
    def test_strict_promotion(self, rule: str) -> None:
        model = MODELS["readouts"]
        with jax.numpy_dtype_promotion("strict"):
            learner, params = pb.capture(model.build(0), *model.inputs(0), algorithm=RULES[rule])
            batched, (inputs, targets) = (
                pb.vmap(learner, SAMPLES),
                (model.inputs(0, STEPS, SAMPLES), model.targets(0, STEPS, SAMPLES)),
            )
            flags = {"mask": np.ones((STEPS, SAMPLES), bool), "reset": np.zeros((STEPS, SAMPLES), bool)}
            for fun in (pb.sequence_grad(batched, model.loss, window=4), pb.clipped_grad(batched, model.loss, 0.1)):
                fun(params, None, inputs, targets, **flags)
                fun(params, None, inputs, targets)
            jax.grad(lambda p: learner.step(p, learner.init(), *model.inputs(0))[1].sum())(params)


class TestGeneratorsOfAModule:
    """Each random generator of a module, wherever it is held, gives every sample numbers of its own."""

    def test_each_sample_and_each_generator_draws_its_own(self) -> None:
        learner, params = pb.capture(OwnGenerators(N_IN), np.ones(N_IN), algorithm=pb.ES_D_RTRL(0.9))
        batched = pb.vmap(learner, SAMPLES)
        assert set(batched.init().keys) >= {"one", "two"}
        outputs = [
            np.asarray(batched.step(params, batched.init(jax.random.key(seed)), np.zeros((SAMPLES, N_IN)))[1])
            for seed in (0, 0, 1)
        ]
        drawn = np.concatenate([outputs[0].ravel(), outputs[2].ravel()])
        assert_identical(outputs[0], outputs[1])
        assert len(np.unique(drawn)) == drawn.size

    def test_initial_states_are_drawn_from_them(self) -> None:
        learner, _ = pb.capture(OwnGenerators(N_IN), np.ones(N_IN), algorithm=pb.ES_D_RTRL(0.9))
        assert learner.source.draws_at_start
        hidden = np.asarray(pb.vmap(learner, SAMPLES).init().hidden["h"])
        assert len(np.unique(hidden)) == hidden.size

    @pytest.mark.parametrize("strategy", ["loop", "vmap"])
    def test_one_after_the_other(self, strategy: str) -> None:
        """A batch draws what its samples draw alone."""
        learner, params = pb.capture(OwnGenerators(N_IN), np.ones(N_IN), algorithm=pb.ES_D_RTRL(0.9))
        batched = getattr(pb, strategy)(learner, SAMPLES)
        start = batched.init(jax.random.key(3))
        after, outputs = batched.step(params, start, np.zeros((SAMPLES, N_IN)))
        alone = [learner.step(params, one, np.zeros(N_IN)) for one in pb.unstack(start)]
        assert_close(np.asarray(outputs), np.stack([output for _, output in alone]))
        assert_close(jax.tree.map(plain_keys, after), jax.tree.map(plain_keys, pb.stack([one for one, _ in alone])))
