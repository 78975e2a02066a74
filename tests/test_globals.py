"""Nothing that belongs to the process is changed, and nothing of it is read after the capture."""

import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import brainscale
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import HiddenState
from brainstate.nn import Module

import pure_batching as pb
from pure_batching.errors import CaptureError, StrategyError

from .bench import PLAIN, RULES, SAMPLES, STEPS
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


class Settled(Module):
    """A leaky cell whose gain is a setting that need not be there, and whose state has the precision in force."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = brainscale.nn.Linear(N_IN, N_IN)

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = HiddenState(jnp.zeros(N_IN, brainstate.environ.dftype()))

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = 0.5 * self.h.value + brainstate.environ.get("gain", default=1.0) * self.layer(x)
        return self.h.value


class Shaken(Settled):
    """The same with noise of a random generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = brainstate.random.RandomState(0)

    def update(self, x: jax.Array) -> jax.Array:
        return super().update(x + self.noise.rand(N_IN))


def of_all_strategies(learner: pb.Learner, params: Any) -> Any:
    """A step of every plain strategy, `pb.manual` traced now."""
    return [stepped(strategy(learner, SAMPLES), params) for strategy in PLAIN.values()]


def by_manual(learner: pb.Learner, params: Any) -> Any:
    return stepped(pb.manual(learner, SAMPLES), params)


def stepped(batched: pb.Learner, params: Any) -> Any:
    inputs = np.ones((SAMPLES, N_IN), jax.tree.leaves(params)[0].dtype)
    return jax.tree.map(plain_keys, batched.step(params, batched.init(), inputs))


class TestSettingsOfBrainState:
    """Those of the capture hold for what is traced after it, in its thread alone."""

    @pytest.mark.parametrize("precision", [32, 64])
    def test_a_precision_of_a_context(self, precision: int) -> None:
        """Neither JAX's flag nor BrainState's precision of the moment is read, or changed for other threads."""
        other = {32: 64, 64: 32}[precision]
        with brainstate.environ.context(precision=precision):
            learner, params = pb.capture(Settled(), np.ones(N_IN), algorithm=pb.D_RTRL())
            again, _ = pb.capture(Settled(), np.ones(N_IN), algorithm=pb.D_RTRL())
            want = by_manual(again, params)
        flag, changed = jax.config.values["jax_enable_x64"], list[str]()
        with brainstate.environ.context(precision=other), pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(jax.config), "update", lambda _, name, value: changed.append(name))
            got = by_manual(learner, params)
        assert jax.config.values["jax_enable_x64"] == flag
        assert changed == []
        assert {np.dtype(f"float{precision}")} == {leaf.dtype for leaf in jax.tree.leaves(got[1])}
        assert_identical(got, want)

    def test_a_setting_that_came_later(self) -> None:
        """It changes neither the batched step nor the step of one sample."""
        learner, params = pb.capture(Settled(), np.ones(N_IN), algorithm=pb.D_RTRL())
        with brainstate.environ.context(gain=3.0):
            loop, *others = of_all_strategies(learner, params)
            tripled, _ = pb.capture(Settled(), np.ones(N_IN), algorithm=pb.D_RTRL())
        for one in others:
            assert_close(one, loop)
        assert not np.allclose(pb.vmap(tripled, SAMPLES).step(params, *started(tripled))[1], loop[1])

    def test_a_setting_for_all_threads_that_came_later(self) -> None:
        """BrainState cannot hide it from one thread: a module that reads it is refused."""
        learner, params = pb.capture(Settled(), np.ones(N_IN), algorithm=pb.D_RTRL())
        brainstate.environ.set(gain=3.0, loss=1.0)
        try:
            with pytest.raises(StrategyError, match=r"environ\['gain'\]: got 3.0, which was set after the capture"):
                by_manual(learner, params)
            anew, _ = pb.capture(Settled(), np.ones(N_IN), algorithm=pb.D_RTRL(), environ={"gain": 1.0})
            assert_close(by_manual(anew, params), stepped(pb.vmap(learner, SAMPLES), params))
        finally:
            brainstate.environ.pop("gain")
            brainstate.environ.pop("loss")

    def test_are_those_of_the_caller_again(self) -> None:
        """Also where a capture fails."""
        with brainstate.environ.context(gain=2.0):
            before = dict(brainstate.environ.all())
            with pytest.raises(CaptureError):
                pb.capture(Settled(), np.ones(N_IN + 1), algorithm=pb.D_RTRL(), environ={"gain": 5.0})
            assert dict(brainstate.environ.all()) == before


def started(learner: pb.Learner) -> tuple[pb.Carry, np.ndarray]:
    return pb.vmap(learner, SAMPLES).init(), np.ones((SAMPLES, N_IN))


class TestTheGeneratorOfBrainState:
    """What is traced holds a tracer in it, if it draws from it: such captures take turns, and no other is disturbed."""

    @pytest.mark.parametrize("make", [Settled, Shaken], ids=["no draw", "an own generator"])
    def test_another_thread_may_draw_from_it(self, make: Callable[[], Module]) -> None:
        """While a module is captured and batched that does not."""
        net, is_drawing, is_done = make(), threading.Event(), threading.Event()

        def draw() -> list[np.ndarray]:
            drawn = [np.asarray(brainstate.random.rand(2))]
            is_drawing.set()
            while not is_done.is_set():
                drawn.append(np.asarray(brainstate.random.rand(2)))
            return drawn

        with brainstate.random.seed_context(5), ThreadPoolExecutor(1) as pool:
            drawing = pool.submit(draw)
            is_drawing.wait()
            try:
                pb.manual(pb.capture(net, np.ones(N_IN), algorithm=pb.D_RTRL())[0], SAMPLES)
            finally:
                is_done.set()
            got = drawing.result()
        with brainstate.random.seed_context(5):
            want = in_a_thread(lambda: [np.asarray(brainstate.random.rand(2)) for _ in got])
        assert len(got) > 2
        assert_identical(np.stack(got), np.stack(want))

    def test_a_capture_leaves_it_as_it_was(self) -> None:
        """Also of a module that draws from it, and whatever it holds by the time of the batch."""
        net = MODELS["noisy"].build(0)
        early, later = (pb.capture(net, np.ones(N_IN), algorithm=pb.D_RTRL(), environ={"fit": True}) for _ in range(2))
        assert early[0].program.states.keys
        with brainstate.random.seed_context(11):
            before = of_the_process()
            got = by_manual(*later)
            assert of_the_process() == before
        assert_identical(got, by_manual(*early))


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
