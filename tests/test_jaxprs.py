"""Jaxprs have one form in every version of JAX."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np

import pure_batching as pb
from pure_batching._reader.jaxprs import ClosedJaxpr, Jaxpr, closed, evaluate, inner, scan_parts


def _equation(traced, name):
    (eqn,) = [eqn for eqn in inner(traced)[0].eqns if eqn.primitive.name == name]
    return eqn


class TestClosed:
    """A jaxpr, and the values of its constants."""

    def test_constants_stay_with_their_variables(self):
        traced = jax.make_jaxpr(lambda x: x + jnp.asarray(np.arange(3.0)))(1.0)
        equations, consts = inner(traced)
        assert len(equations.constvars) == len(consts) == 1
        np.testing.assert_array_equal(evaluate(closed(equations, consts), 1.0)[0], [1, 2, 3])

    def test_a_closed_jaxpr_keeps_its_constants(self):
        traced = jax.make_jaxpr(lambda x: x + jnp.asarray(np.arange(3.0)))(1.0)
        np.testing.assert_array_equal(evaluate(closed(traced), 1.0)[0], [1, 2, 3])

    def test_other_constants_take_their_place(self):
        traced = jax.make_jaxpr(lambda x: x + jnp.asarray(np.arange(3.0)))(1.0)
        other = closed(inner(traced)[0], [jnp.zeros(3)])
        np.testing.assert_array_equal(evaluate(other, 1.0)[0], [1, 1, 1])

    def test_the_open_jaxpr_of_a_checkpoint(self):
        traced = jax.make_jaxpr(jax.checkpoint(lambda x: jnp.sin(x) * 2))(jnp.ones(3))
        body = inner(traced)[0].eqns[0].params["jaxpr"]
        assert inner(body)[1] == ()
        np.testing.assert_allclose(evaluate(closed(body), jnp.ones(3))[0], 2 * np.sin(np.ones(3)), rtol=1e-6)

    def test_a_part_of_a_jaxpr(self):
        traced = jax.make_jaxpr(lambda x: jnp.sin(x) * 2)(jnp.ones(3))
        first, *_ = inner(traced)[0].eqns
        part = closed(Jaxpr((), list(first.invars), list(first.outvars), [first]))
        assert isinstance(part, ClosedJaxpr)
        np.testing.assert_allclose(evaluate(part, jnp.ones(3))[0], np.sin(np.ones(3)), rtol=1e-6)


class TestScanParts:
    """The operands of a scan: constants, carry, rows."""

    def _parts(self, step, carry, rows):
        traced = jax.make_jaxpr(lambda c, x: jax.lax.scan(step, c, x))(carry, rows)
        return scan_parts(_equation(traced, "scan"))

    def test_two_carried_leaves_and_a_constant(self):
        scale = jnp.asarray([2.0, 3.0])
        rows = {"a": jnp.ones((4, 2)), "b": jnp.ones(4)}

        def run(scale, carry, rows):
            return jax.lax.scan(lambda c, x: ((c[0] * scale + x["a"], c[1] + 1), x["b"] + c[1]), carry, rows)

        traced = jax.make_jaxpr(run)(scale, (scale, 0.0), rows)
        eqn = _equation(traced, "scan")
        consts, carried = scan_parts(eqn)
        assert carried == 2
        assert consts + carried + 2 == len(eqn.invars)
        assert len(eqn.outvars) == carried + 1

    def test_no_carry(self):
        assert self._parts(lambda c, x: (None, x * 2), None, jnp.ones(4)) == (0, 0)

    def test_no_rows(self):
        traced = jax.make_jaxpr(lambda c: jax.lax.scan(lambda c, _: (c * 2, None), c, None, length=3))(1.0)
        assert scan_parts(_equation(traced, "scan")) == (0, 1)

    def test_after_differentiation_and_mapping(self):
        def run(w, x):
            return jax.lax.scan(lambda c, row: (jnp.tanh(c @ w + row), c), x[0], x)[0].sum()

        traced = jax.make_jaxpr(jax.vmap(jax.grad(run), (None, 0)))(jnp.ones((2, 2)), jnp.ones((3, 4, 2)))
        scans = [eqn for eqn in inner(traced)[0].eqns if eqn.primitive.name == "scan"]
        assert len(scans) == 2
        for eqn in scans:
            consts, carried = scan_parts(eqn)
            body = inner(eqn.params["jaxpr"])[0]
            rows = len(eqn.invars) - consts - carried
            assert rows > 0
            for outer, within in zip(eqn.invars[: consts + carried], body.invars, strict=False):
                assert outer.aval.shape == within.aval.shape
            for outer, within in zip(eqn.invars[consts + carried :], body.invars[consts + carried :], strict=True):
                assert outer.aval.shape[1:] == within.aval.shape


def test_a_captured_function_makes_jax_warn_of_nothing():
    """Of no jaxpr without a source, say; a user may have made warnings errors."""

    def step(params, h, x):
        h = jnp.tanh(0.5 * h + (x @ params["w"] + params["b"])[..., :4])
        return h, h

    params = {"w": np.ones((3, 8)), "b": np.ones(8)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner, _ = pb.capture_function(step, params, np.zeros(4), np.ones(3), algorithm=pb.D_RTRL(rule="published"))
        pb.manual(learner, 2)
    assert {use.way for use in learner.program.uses} == {"trace"}
