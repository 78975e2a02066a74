"""Whether a batched step gives the numbers that `Vmap` gives."""

import jax
import jax.numpy as jnp
import numpy as np

from .._learning.learner import Learner
from .._strategies.vmap import Vmap
from .._tree import Tree, is_key, with_lead
from .leaves import precision_of
from .verdicts import leaves_of


def first_difference(batched: Learner) -> str | None:
    """The name of the first leaf of two steps in which a batch differs from the same batch by `Vmap`, or None."""
    with precision_of(batched.program):
        ours, theirs = _two_steps(batched), _two_steps(batched.run_by(Vmap(batched.lead[0])))
    pairs = zip(ours, theirs, strict=True)
    return next((name for (name, one), (_, other) in pairs if not _is_close(one, other)), None)


def _two_steps(learner: Learner) -> list[tuple[str, Tree]]:
    """The leaves of two steps in a row by name, from equal samples, on numbers between zero and one."""
    program, rng = learner.program, np.random.default_rng(0)

    def drawn(spec: jax.ShapeDtypeStruct) -> jax.Array:
        is_number = jnp.issubdtype(spec.dtype, jnp.inexact)
        return jnp.asarray(rng.random(spec.shape) if is_number else np.zeros(spec.shape), spec.dtype)

    params, one = jax.tree.map(drawn, (program.params, program.states._replace(keys={})))
    alike = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (*learner.lead, *leaf.shape)), one)
    # Each sample has a key of its own, so that noise which the samples share is seen.
    keys = learner.init(jax.random.key(0)).keys if program.states.keys else {}
    states, found = alike._replace(shared=one.shared, keys=keys), []
    for _ in range(2):
        inputs = jax.tree.map(drawn, with_lead(program.inputs, learner.lead))
        done = jax.jit(learner.execute)(params, states, inputs, learner.zero_perturbation())
        states = done.states
        found += leaves_of(done)
    return found


def _is_close(one: Tree, other: Tree) -> bool:
    """Up to rounding in single precision."""
    pairs = zip(_arrays(one), _arrays(other), strict=True)
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max(initial=0), equal_nan=True) for a, b in pairs)


def _arrays(tree: Tree) -> list[jax.Array]:
    return [jax.random.key_data(leaf) if is_key(leaf.dtype) else leaf for leaf in jax.tree.leaves(tree)]
