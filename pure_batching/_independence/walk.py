"""The walk through a jaxpr, equation by equation, and into calls, branches and loops."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from .._reader.jaxprs import ClosedJaxpr, JaxprEqn, Literal, closed, evaluate, inner, program, scan_parts
from .._reader.lines import function_file, is_of_library, place
from .._reader.primitives import CALLS, called
from .operation import At, Mixing, Unclear
from .rules import RULES
from .values import Along, Lost, Own, Value, either, first_lost


def follow(jaxpr: ClosedJaxpr, values: Sequence[Value]) -> list[Value]:
    """Find where the samples lie in each result of a jaxpr, from where they lie in its arguments."""
    return _Walk(jaxpr, [None] * len(values)).results(values)


class _Walk:
    """One pass through the equations of one jaxpr.

    Attributes:
      jaxpr: the equations.
      values: where the samples lie in each variable that the pass has met.
      makers: the equation that makes each variable.
      constants: the values of the jaxpr's constants.
      given: the caller's variable for each argument, where the jaxpr is entered from another walk.
      evaluated: the numbers of the variables that `known` was asked for, so that it computes each one once.
    """

    def __init__(self, jaxpr: ClosedJaxpr, given: Sequence["_Outside | None"]) -> None:
        self.jaxpr, consts = inner(jaxpr)
        self.values: dict[Any, Value] = {}
        self.makers: dict[Any, JaxprEqn] = {}
        self.evaluated: dict[Any, np.ndarray | None] = {}
        self.constants = dict(zip(self.jaxpr.constvars, consts, strict=True))
        self.given = {var: out for var, out in zip(self.jaxpr.invars, given, strict=True) if out is not None}

    def results(self, values: Sequence[Value]) -> list[Value]:
        self.values.update(zip(self.jaxpr.invars, values, strict=True))
        for eqn in self.jaxpr.eqns:
            self.makers.update(dict.fromkeys(eqn.outvars, eqn))
            self.values.update(zip(eqn.outvars, self._apply(eqn), strict=True))
        return [self._value(var) for var in self.jaxpr.outvars]

    def _value(self, var: Any) -> Value:
        return None if isinstance(var, Literal) else self.values.get(var)

    def _apply(self, eqn: JaxprEqn) -> list[Value]:
        values = [self._value(var) for var in eqn.invars]
        if _has_memory(eqn):
            return _lose(eqn, is_coupled=False)
        if not eqn.effects and all(value is None for value in values):
            return [None] * len(eqn.outvars)
        if not eqn.effects and all(value is None or isinstance(value, Own) for value in values):
            return [Own()] * len(eqn.outvars)
        inside = INSIDE.get(eqn.primitive.name)
        return self._ruled(eqn, values) if inside is None else inside(self, eqn, values)

    def _ruled(self, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
        rule, lost = RULES.get(eqn.primitive.name), first_lost(values)
        if lost is not None:
            return [lost] * len(eqn.outvars)
        if rule is None or any(isinstance(value, Own) for value in values):
            return _lose(eqn, is_coupled=False)
        places = [value for value in values if value is None or isinstance(value, Along)]
        try:
            found = rule(At(eqn, places, lambda operand, column: self.column(eqn.invars[operand], column)))
        except Mixing:
            return _lose(eqn, is_coupled=True)
        except (Unclear, KeyError):  # a parameter that this version of JAX does not have is no reason to fail
            return _lose(eqn, is_coupled=False)
        return [found] * len(eqn.outvars) if isinstance(found, Along) else [*found]

    def known(self, var: Any) -> np.ndarray | None:
        """Compute the value of a variable that depends on constants alone; None for another one."""
        if isinstance(var, Literal):
            return np.asarray(var.val)
        if var not in self.evaluated:
            self.evaluated[var] = self._computed(var)
        return self.evaluated[var]

    def _computed(self, var: Any) -> np.ndarray | None:
        if var in self.constants:
            constant = self.constants[var]
            return None if isinstance(constant, Tracer) else np.asarray(constant)
        if var in self.given:
            return self.given[var].known()
        eqn = self.makers.get(var)
        if eqn is None or self._value(var) is not None:
            return None
        arguments = [self.known(operand) for operand in eqn.invars]
        return None if any(value is None for value in arguments) else _evaluated(eqn, var, arguments)

    def column(self, var: Any, column: int) -> np.ndarray | None:
        """Compute `var[..., column]`; None where that part of it depends on more than constants."""
        whole = self.known(var)
        if whole is not None:
            return whole[..., column]
        if var in self.given:
            return self.given[var].column(column)
        eqn = self.makers.get(var)
        if eqn is None or eqn.primitive.name != "concatenate" or eqn.params["dimension"] != len(_shape(var)) - 1:
            return None
        for part in eqn.invars:
            if column < _shape(part)[-1]:
                return self.column(part, column)
            column -= _shape(part)[-1]
        return None

    def enter(self, jaxpr: ClosedJaxpr, operands: Sequence[Any]) -> "_Walk":
        """Start a walk through a jaxpr that is called with variables of this one."""
        return _Walk(jaxpr, [_Outside(self, var) for var in operands])


class _Outside:
    """A variable of the walk from which another jaxpr was entered."""

    def __init__(self, walk: _Walk, var: Any) -> None:
        self.walk, self.var = walk, var

    def known(self) -> np.ndarray | None:
        return self.walk.known(self.var)

    def column(self, column: int) -> np.ndarray | None:
        return self.walk.column(self.var, column)


def _has_memory(eqn: JaxprEqn) -> bool:
    """Whether an equation reads or writes memory: a reference, or something outside of JAX."""
    touches = any(type(var.aval).__name__ == "AbstractRef" for var in (*eqn.invars, *eqn.outvars))
    return touches or (bool(eqn.effects) and eqn.primitive.name not in INSIDE)


def _call(walk: _Walk, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    body: Any = called(eqn)
    found = walk.enter(body, eqn.invars).results(values)
    is_foreign = is_of_library(function_file(inner(body)[0]))
    return [_moved(value, eqn) if _is_new(value, values) and is_foreign else value for value in found]


def _is_new(value: Value, values: list[Value]) -> bool:
    return isinstance(value, Lost) and value not in values


def _moved(value: Any, eqn: JaxprEqn) -> Lost:
    """Replace a line inside a library's function by the line of this call.

    JAX caches the jaxpr of such a function, so that its lines are those of the first call.
    """
    return Lost(value.is_coupled, value.primitive, place(eqn) or value.where)


def _branches(walk: _Walk, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    choice, *given = values
    if choice is not None:
        return [first_lost((choice,)) or _lost(eqn, is_coupled=False)] * len(eqn.outvars)
    outs = [walk.enter(closed(branch), eqn.invars[1:]).results(given) for branch in eqn.params["branches"]]
    return [_any_of(column, eqn) for column in zip(*outs, strict=True)]


def _any_of(values: Sequence[Value], eqn: JaxprEqn) -> Value:
    found: Value = None
    for value in values:
        found = either(found, value, _lost(eqn, is_coupled=False))
    return found


def _fixed_point(eqn: JaxprEqn, carry: list[Value], step: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """Find the facts that hold for a loop's carry before every round."""
    while True:
        after = [_any_of(pair, eqn) for pair in zip(carry, step(carry), strict=True)]
        if after == carry:
            return carry
        carry = after


def _while(walk: _Walk, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    """Follow the body, and combine its results with the test.

    Where each sample has its own test, as under `jax.vmap`, JAX keeps the carry of a sample that is done.
    """
    of_test, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    test, body = (closed(eqn.params[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    for_test, for_body, carry = values[:of_test], values[of_test : of_test + of_body], values[of_test + of_body :]
    del walk

    def tested(now: list[Value]) -> list[Value]:
        (goes_on,) = follow(test, [*for_test, *now])
        return [_any_of((value, goes_on), eqn) for value in follow(body, [*for_body, *now])]

    return _fixed_point(eqn, carry, tested)


def _scan(walk: _Walk, eqn: JaxprEqn, values: list[Value]) -> list[Value]:
    consts, carried = scan_parts(eqn)
    given, carry, rows = values[:consts], values[consts : consts + carried], values[consts + carried :]
    body = closed(eqn.params["jaxpr"])
    del walk
    in_turn = any(isinstance(row, Along) and row.axis == 0 for row in rows)
    if in_turn:
        given, carry = ([_hidden(value, eqn) for value in part] for part in (given, carry))
    rows = [_row(row, eqn, in_turn=in_turn) for row in rows]
    carry = _fixed_point(eqn, carry, lambda now: _kept(follow(body, [*given, *now, *rows])[:carried], eqn))
    stacked = follow(body, [*given, *carry, *rows])[carried:]
    return [*carry, *(_stacked(value) for value in stacked)]


def _hidden(value: Value, eqn: JaxprEqn) -> Value:
    """Give up on a value that holds all samples and that a loop over samples reads as a whole."""
    return _lost(eqn, is_coupled=False) if isinstance(value, (Along, Own)) else value


def _row(value: Value, eqn: JaxprEqn, *, in_turn: bool) -> Value:
    """Find where the samples lie in the row that one round of a scan reads."""
    if value == Along(0):
        return Own()
    if isinstance(value, Along) and value.axis > 0 and not in_turn:
        return Along(value.axis - 1, value.outer, value.inner)
    return _hidden(value, eqn)


def _kept(carry: list[Value], eqn: JaxprEqn) -> list[Value]:
    """Call samples coupled where a loop over them carries a value of one to the next."""
    return [_lost(eqn, is_coupled=True) if isinstance(value, Own) else value for value in carry]


def _stacked(value: Value) -> Value:
    if isinstance(value, Own):
        return Along(0)
    return Along(value.axis + 1, value.outer, value.inner) if isinstance(value, Along) else value


def _lose(eqn: JaxprEqn, *, is_coupled: bool) -> list[Value]:
    return [_lost(eqn, is_coupled=is_coupled)] * len(eqn.outvars)


def _lost(eqn: JaxprEqn, *, is_coupled: bool) -> Lost:
    return Lost(is_coupled, eqn.primitive.name, place(eqn))


def _evaluated(eqn: JaxprEqn, var: Any, arguments: Sequence[Any]) -> np.ndarray:
    """Compute one result of an equation."""
    places = {operand: i for i, operand in enumerate(eqn.invars) if not isinstance(operand, Literal)}
    alone = closed(program((), list(places), [var], [eqn]))
    with jax.ensure_compile_time_eval():
        return np.asarray(evaluate(alone, *(arguments[i] for i in places.values()))[0])


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(var.aval.shape)


INSIDE: Mapping[str, Callable[[_Walk, JaxprEqn, list[Value]], list[Value]]] = {
    **dict.fromkeys(CALLS, _call),
    "cond": _branches,
    "scan": _scan,
    "while": _while,
}
