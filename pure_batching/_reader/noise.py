"""A batched step in which each sample draws what it draws alone.

With a batch axis, the code of a step draws one array from one key. Here its draws are replaced by those of the step of
one sample, mapped over a key for each sample: the same equations from the same key, so that the bits are those of the
loop. A draw whose shape leads with the batch axis gets them at once. One of the shape of a single sample's, which the
samples would share, is followed with an axis of its own in front, until it meets what leads with the samples.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax

from .._tree import Tree, with_lead
from ..errors import RandomnessError
from .draws import ELSE, Draws, at, check_free, check_same_draws, check_same_keys, found_draws, shape_of, variables_of
from .flat import flat, inlined
from .jaxprs import ClosedJaxpr, JaxprEqn, Literal, Var, evaluate, inner, program
from .pieces import cut_piece, order_of, reads, spec_of_var
from .primitives import ELEMENT_WISE
from .step import TracedStep


def with_noise_of_each(traced: TracedStep, single: TracedStep, size: int) -> TracedStep:
    """The batched step with a key for each sample, `[B]`; the same step where nothing is drawn.

    Args:
      traced: the step of a batch as it was traced, whose keys are those of one sample.
      single: the step of one sample.
      size: the number of samples.

    Raises:
      RandomnessError: the draws of the batch are not those of one sample with the batch axis in front or without it;
        one depends on a state or on a weight; or one that the samples share meets them where it cannot be told apart.
    """
    batch, one = (step._replace(jaxpr=flat(step.jaxpr, step.marks.is_use)) for step in (traced, single))
    check_same_keys(batch, one)
    if set(batch.states) != set(one.states):
        return traced  # whoever reads the step refuses it
    own = [path for path in one.states if _shapes(one.states[path]) != _shapes(batch.states[path])]
    ours, theirs = found_draws(batch, own), found_draws(one, own)
    if not ours.eqns and not theirs.eqns:
        return traced
    check_same_draws(ours, theirs, size)
    check_free(one, theirs, own)
    return _Rewriting(batch, size, own).result(one, ours, theirs)


def _shapes(tree: Tree) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


class _Rewriting:
    """The equations of the new step, and what is known of the variables of the old one.

    Attributes:
      eqns, consts: of the new step.
      keys: the new variable of each key before the step.
      new: what stands for another variable of the old step.
      each: for a variable that the samples shared, `[B, *shape]`, that of each.
      own: the variables of the old step whose first axis is that of the samples, as far as their shapes tell.
    """

    def __init__(self, step: TracedStep, size: int, own: Collection[str]) -> None:
        self.step, self.size, self.paths = step, size, own
        self.jaxpr, consts = inner(step.jaxpr)
        self.eqns: list[JaxprEqn] = []
        self.consts = dict(zip(self.jaxpr.constvars, consts, strict=True))
        self.keys = {var: _var_of(spec_of_var(var), (size,)) for var in _keys_before(step)}
        self.new: dict[Var, Any] = {}
        self.each: dict[Var, Any] = {}
        self.own: set[Any] = set(variables_of(step, own))

    def result(self, single: TracedStep, ours: Draws, theirs: Draws) -> TracedStep:
        """The step in which the draws of one sample, mapped, stand for its own."""
        self._draw(single, ours, theirs)
        for i, eqn in enumerate(self.jaxpr.eqns):
            if i not in ours.eqns:
                self._follow(eqn)
        results = [self._result(var) for var in self.jaxpr.outvars]
        self._check_kept_once()
        invars = [self.keys.get(var, var) for var in self.jaxpr.invars]
        whole = program([*self.consts], invars, results, self.eqns, self.jaxpr)
        keys = {path: with_lead(self.step.states[path], (self.size,)) for path in self.step.of_kind("key")}
        shown = [spec_of_var(var) for var in results[: len(jax.tree.leaves(self.step.output))]]
        return self.step._replace(
            jaxpr=ClosedJaxpr(whole, [*self.consts.values()]),
            output=jax.tree.unflatten(jax.tree.structure(self.step.output), shown),
            states={path: keys.get(path, spec) for path, spec in self.step.states.items()},
        )

    def _draw(self, single: TracedStep, ours: Draws, theirs: Draws) -> None:
        """Put the draws of each sample, and its keys after the step, in place of those of the batch."""
        jaxpr, consts = inner(single.jaxpr)
        known = dict(zip(jaxpr.constvars, consts, strict=True))
        given, of_batch = ([var for part in self._given(step) for var in part] for step in (single, self.step))
        piece = cut_piece(jaxpr.eqns, given, [*theirs.values, *theirs.keys], order_of(jaxpr))
        draw = partial(evaluate, ClosedJaxpr(piece.jaxpr, ()), *(known[var] for var in piece.free))
        per_sample, common = self._given(self.step)
        axes = (0,) * len(per_sample) + (None,) * len(common)
        mapped = jax.vmap(draw, axes, axis_name=single.axis_name, axis_size=self.size)
        results = self._add(mapped, [self.keys.get(var, var) for var in of_batch])
        for var, result in zip((*ours.values, *ours.keys), results, strict=True):
            is_each = var in ours.makers and shape_of(var) != shape_of(result)
            (self.each if is_each else self.new)[var] = result
            self.own.update(() if is_each else (var,))

    def _given(self, step: TracedStep) -> tuple[list[Var], list[Var]]:
        """What draws may depend on: what each sample has, and what is the same for all."""
        before, _ = step.variables(inner(step.jaxpr)[0])
        common = [path for path in step.of_kind("other") if path not in self.paths]
        return [*variables_of(step, ()), *_keys_before(step)], [var for path in common for var in before[path]]

    def _add(self, function: Callable[..., Any], atoms: Sequence[Any], like_eqn: JaxprEqn | None = None) -> list[Any]:
        """Add the equations of a function, and return its results; in the place of an equation, with its line."""
        made = jax.make_jaxpr(function)(*map(spec_of_var, atoms))
        eqns, consts, results = inlined(made, atoms, self.step.marks.is_use)
        self.consts.update(consts)
        self.eqns += eqns if like_eqn is None else [eqn.replace(source_info=like_eqn.source_info) for eqn in eqns]
        return results

    def _follow(self, eqn: JaxprEqn) -> None:
        """Add an equation of the old step, for each sample where it reads what the samples shared."""
        is_own = reads(eqn, self.own)
        if not reads(eqn, self.each):
            self._append(eqn, [self._name(atom) for atom in eqn.invars])
        elif is_own:
            self._append(eqn, [self._met(atom, eqn) for atom in eqn.invars])
        else:
            self.each.update(zip(eqn.outvars, self._mapped(eqn), strict=True))
        if is_own:
            self.own.update(eqn.outvars)

    def _append(self, eqn: JaxprEqn, operands: list[Any]) -> None:
        self.eqns.append(eqn.replace(invars=operands))

    def _name(self, atom: Any) -> Any:
        return atom if isinstance(atom, Literal) else self.new.get(atom, self.keys.get(atom, atom))

    def _mapped(self, eqn: JaxprEqn) -> list[Any]:
        """The results of an equation for each sample."""
        atoms = list(dict.fromkeys(atom for atom in eqn.invars if isinstance(atom, Var)))
        alone = ClosedJaxpr(program((), atoms, eqn.outvars, [eqn]), ())
        axes = tuple(0 if atom in self.each else None for atom in atoms)
        try:
            return self._add(jax.vmap(partial(evaluate, alone), axes), [self._of_each(atom) for atom in atoms], eqn)
        except Exception as error:
            raise _shared(eqn, "cannot be mapped", "") from error

    def _of_each(self, atom: Any) -> Any:
        return self.each[atom] if atom in self.each else self._name(atom)

    def _met(self, atom: Any, eqn: JaxprEqn) -> Any:
        """An operand of an equation that brings together what the samples shared and what leads with them."""
        if isinstance(atom, Literal) or atom not in self.each:
            return self._name(atom)
        (result,) = eqn.outvars if len(eqn.outvars) == 1 else (None,)
        leads = result is not None and _is_row_by_row(eqn) and shape_of(result)[:1] == (self.size,)
        shape, found = shape_of(atom), self.each[atom]
        if not leads or (shape and shape[0] not in (1, self.size)):
            raise _shared(eqn, "brings it together with the samples")
        if not shape:
            (row,) = self._add(partial(_spread, shape=shape_of(result)), [found], eqn)
        else:
            (row,) = self._add(_first_row, [found], eqn)
        return row

    def _result(self, var: Any) -> Any:
        return self._name(var) if isinstance(var, Literal) or var not in self.each else self.each[var]

    def _check_kept_once(self) -> None:
        """A state that all samples share has no room for what each of them draws."""
        _, after = self.step.variables(self.jaxpr)
        kept = [path for path in self.step.of_kind("other") if path not in self.paths]
        for path in kept:
            if any(var in self.each for var in after[path] if isinstance(var, Var)):
                raise RandomnessError(
                    "pb.manual",
                    got=f"a draw that reaches {path!r}, which the samples share",
                    expected="a state of each sample",
                    repair=f"Initialise the state with the batch axis. {ELSE}",
                )


def _keys_before(step: TracedStep) -> list[Var]:
    before, _ = step.variables(inner(step.jaxpr)[0])
    return [var for path in step.of_kind("key") for var in before[path]]


def _is_row_by_row(eqn: JaxprEqn) -> bool:
    """Whether a row of the result depends on the same row of each operand alone."""
    joins_columns = eqn.primitive.name == "concatenate" and eqn.params["dimension"] > 0
    return eqn.primitive.name in ELEMENT_WISE or joins_columns


def _first_row(x: jax.Array) -> jax.Array:
    """`[B, 1, ...]` or `[B, B, ...]` -> `[B, ...]`; what the samples share is the same in each of their rows."""
    return x[:, 0]


def _spread(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`[B]` -> `[B, ...]`."""
    return jax.lax.broadcast_in_dim(x, shape, (0,))


def _var_of(spec: jax.ShapeDtypeStruct, lead: tuple[int, ...]) -> Var:
    """A new variable with axes in front."""
    (var,) = inner(jax.make_jaxpr(lambda x: x)(with_lead(spec, lead)))[0].invars
    return var


def _shared(eqn: JaxprEqn, what: str, otherwise: str = f" {ELSE}") -> RandomnessError:
    return RandomnessError(
        "pb.manual",
        got=f"a draw that the samples share, until {eqn.primitive.name}{at(eqn)} {what}",
        expected="a draw with the batch axis in front, or one that meets the samples element by element",
        repair=f"Draw an array for each sample, the batch axis in front.{otherwise}",
    )
