"""The check of a rule of one's own: what is right passes it, and nothing runs. `refusals/rules.py` has the rest."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import pytest

import pure_batching as pb
from pure_batching._algorithms.checking import check_rule
from pure_batching.errors import AlgorithmError
from pure_batching.rules import Factors, Jacobians, Parts, Program

from .bench import RULES, WEIGHTS
from .models import MODELS
from .modules import Normalized
from .refusals.rules import N_IN, N_REC, PARAMS, Own, Windowed, each, learner_of, of_record, of_trace, step
from .registry import captured
from .trees import assert_close, assert_identical, distance

STEPS = 5
INPUTS = jax.random.normal(jax.random.key(0), (STEPS, N_IN))
TARGETS = jnp.ones((STEPS, N_REC))


def gradient(rule: pb.Algorithm) -> Any:
    """The gradient of windows of two steps."""
    learner, params = learner_of(rule)
    grad_fn = pb.sequence_grad(learner, lambda output, target: ((output - target) ** 2).sum(), window=2)
    return grad_fn(params, None, INPUTS, TARGETS)[0]


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_rule_of_the_package_is_right(name: str) -> None:
    for rule in RULES.values():
        learner = captured(name, 0, rule).learner
        with learner.source.numerics.in_force():
            check_rule(learner.algorithm, learner.program)


@pytest.mark.parametrize("rule", RULES)
def test_it_knows_traces_of_narrow_floats(rule: str) -> None:
    """The weights are in bfloat16, and what is contracted in float32."""
    params, hidden, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (PARAMS, jnp.zeros(N_REC), INPUTS[0]))
    learner, _ = pb.capture_function(step, params, hidden, x, algorithm=RULES[rule])
    check_rule(learner.algorithm, learner.program)


def test_a_right_rule_runs() -> None:
    """Also one that keeps its traces in another type, and one that writes the whole way of a window down."""
    want = gradient(Own())
    assert all(abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(want))
    assert_identical(gradient(Windowed()), want)
    assert 0 < distance(gradient(Own(kept_in=jnp.float32))["w"], want["w"]) < 1e-6
    summed = Windowed(of_window=lambda _, records: Parts((), {"params.w": gradient_of(records)}))
    assert_close(gradient(summed)["w"], want["w"])


def gradient_of(records: tuple[Factors, ...]) -> jax.Array:
    """The contraction of the one record of a step, as the library does it."""
    return jnp.einsum("ki,kj->ij", records[0].xs["params.w"], records[0].dys["params.w"][0])


def test_nothing_runs_and_nothing_runs_twice() -> None:
    """The methods are called on abstract arrays, at capture alone."""
    seen: list[Any] = []
    arrays = len(jax.tree.leaves((INPUTS, PARAMS)))  # of a record: the one input, and what each weight gets

    def look(record: Any) -> Any:
        seen.extend(jax.tree.leaves(record))
        return record

    learner, _ = learner_of(of_record(look))
    assert len(seen) == arrays
    assert all(isinstance(leaf, jax.core.Tracer) for leaf in seen)
    pb.vmap(pb.chunked(learner, 4, chunk=2).one_of_its_samples(), 4)
    assert len(seen) == arrays


def test_a_rule_with_numbers_is_swept() -> None:
    """The check asks no number, so that a field may be traced."""

    class Scaled(Own):
        scale: Any = 1.0

        def window_gradient(self, program: Program, params: Any, trace_before: Any, records: Any) -> Parts:
            dys = each(lambda dy: self.scale * dy)(records[0].dys)
            return Parts((records[0]._replace(dys=dys),), {})

    got = jax.vmap(lambda scale: gradient(Scaled(scale=scale)))(jnp.asarray([1.0, 2.0]))
    assert_close(each(lambda leaf: leaf[1])(got), each(lambda leaf: 2 * leaf)(gradient(Own())))


def test_its_own_errors_go_through() -> None:
    """A rule may refuse a program by an error of this package."""

    def refuse(_: Any) -> Any:
        raise AlgorithmError("Own", got="this", expected="that", repair="Do so.")

    with pytest.raises(AlgorithmError, match=r"^Own: got this, expected that\. Do so\.") as caught:
        learner_of(of_trace(refuse))
    assert caught.value.__cause__ is None


def test_the_reason_is_kept() -> None:
    with pytest.raises(AlgorithmError) as caught:
        learner_of(of_trace(lambda trace: trace["nothing"]))
    assert isinstance(caught.value.__cause__, KeyError)


def test_it_knows_a_named_axis() -> None:
    """A rule may run the step of a program along whose axis samples reach each other."""
    ran = []

    def again(program: Program, params: Any, states: Any, inputs: Any, jacobians: Jacobians) -> Jacobians:
        del jacobians
        ran.append(program.axis_name)
        return program.execute(params, states, inputs, program.zero_perturbation()).jacobians

    class Again(Own):
        @property
        def derivatives(self) -> Any:
            return again

    model = MODELS["normalized"]
    net = Normalized((6, 2), N_REC, axis_name="batch")
    pb.capture(net, *model.inputs(0), algorithm=Again(), environ=model.settings, axis_name="batch")
    assert ran == ["batch"]
