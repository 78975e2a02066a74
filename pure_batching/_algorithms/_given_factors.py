"""Factors as a rule of a user's own returns them, compared with the relations that they are contracted for."""

from typing import Any, NamedTuple

import jax

from .._precision import in_float
from .._program import Program
from .._relation import Relation
from .._tree import described, named_leaves
from .._wording import count, listed
from ..errors import AlgorithmError
from .base import Factors


def check_factors(where: str, program: Program, factors: Any, lead: tuple[str, ...]) -> None:
    """Raise AlgorithmError for factors that cannot be contracted.

    Args:
      where: the class and the method that gave them.
      program: the program of one sample.
      factors: what was given.
      lead: the names of the axes that have to lead: `("K",)` for those of a window, none for those of a step.
    """
    _Given(where, program, factors, lead).check()


class _Given(NamedTuple):
    """The arguments of `check_factors`."""

    where: str
    program: Program
    factors: Factors
    lead: tuple[str, ...]

    def check(self) -> None:
        """Raise AlgorithmError for what cannot be contracted."""
        for what, value in self.factors._asdict().items():
            if not isinstance(value, dict):
                raise self._error(f"{what} = {kind(value)}", "a dictionary by name", "See the docstring of Factors.")
        relations = {relation.name: relation for relation in self.program.relations}
        for name, dys in self.factors.dys.items():
            if name not in relations:
                expected = f"names of relations: {listed([*relations])}" if relations else "no relation: there is none"
                raise self._error(f"dys[{name!r}]", expected, "Use relation.name of program.relations.")
            self._check_dys(relations[name], dys)
            self._check_input(relations[name])
        self._check_steps()

    def _check_dys(self, relation: Relation, dys: Any) -> None:
        name, leaves = f"dys[{relation.name!r}]", len(relation.leaves)
        is_tuple = isinstance(dys, (tuple, list))
        if not is_tuple or len(dys) not in {1, leaves}:
            expected = "a tuple of one array" + (f", or of {leaves}, for each array of the weight" * (leaves > 1))
            got = f"{name} of {count(len(dys), 'array')}" if is_tuple else f"{name} = {kind(dys)}"
            raise self._error(got, expected, "Give (dy,), with the comma, where one serves all.")
        want = jax.ShapeDtypeStruct(relation.y.shape, in_float(relation.y.dtype, relation.links[0].group.dtype))
        repair = "Sum over the states of each group, and bring it to the places of y by link.seen."
        for place, dy in enumerate(dys):
            self._check_array(f"{name}[{place}]", dy, want, repair)

    def _check_input(self, relation: Relation) -> None:
        if relation.x is None:
            return
        name = f"xs[{relation.x.name!r}]"
        if relation.x.name not in self.factors.xs:
            repair = "Give the factors the input of each relation that dys names, by relation.x.name."
            raise self._error(f"no {name}", f"the input of {relation.name!r}, which dys has", repair)
        repair = "Give what jacobians.xs has, or a trace of it, as it is."
        self._check_array(name, self.factors.xs[relation.x.name], relation.x.spec, repair)

    def _check_array(self, name: str, array: Any, want: jax.ShapeDtypeStruct, repair: str) -> None:
        rank = len(self.lead)
        fits = hasattr(array, "shape") and len(array.shape) == rank + len(want.shape)
        if not fits or array.shape[rank:] != want.shape or array.dtype != want.dtype:
            steps = ", with the steps of the window in front" if self.lead else ""
            expected = f"{want.dtype}[{', '.join([*self.lead, *map(str, want.shape)])}]{steps}"
            raise self._error(f"{name} of {kind(array)}", expected, repair)

    def _check_steps(self) -> None:
        """All arrays have to lead with one number of steps, also those that no relation reads."""
        sizes = {name: leaf.shape[:1] for name, leaf in named_leaves(self.factors, "Factors")} if self.lead else {}
        if self.factors.dys and len(set(sizes.values())) > 1:
            got = listed([f"{name} with {list(size)}" for name, size in sizes.items()])
            raise self._error(got, "one number of steps in front of all of them", "Give each array the axis of steps.")

    def _error(self, got: str, expected: str, repair: str) -> AlgorithmError:
        return AlgorithmError(self.where, got=got, expected=expected, repair=repair)


def kind(value: Any) -> str:
    """An array as its shape and dtype, anything else as its type."""
    return described(value) if hasattr(value, "dtype") else type(value).__name__
