"""The bytes that a program holds at its fullest moment, from its equations alone.

Nothing is compiled: this is a model of what XLA makes of a program. Its rules:

1. What no result depends on is not computed.
2. An operation is done where its result is read, and its operands are held until then. But a product, a reduction or a
   loop makes an array (`primitives.MAKING`), and products and loops also read arrays (`primitives.READING`).
3. An array is held from the equation that makes it to the last one that reads it. There another array of the same size,
   if it is made of this one, takes its memory.
4. A loop holds its carry once, from its start on what it stacks, and besides what one round holds.
5. A loop starts as soon as its operands are there, so that loops that do not wait for each other overlap.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from ._reader.flat import flat
from ._reader.jaxprs import Jaxpr, JaxprEqn, Var, inner, scan_parts
from ._reader.primitives import CALLS, MAKING, READING, RESHAPING

_BEFORE = -1


def temporary_bytes(jaxpr: Any) -> int:
    """The most bytes that are held at one moment, besides the arguments and the results."""
    opened = _opened(jaxpr)
    plan = _Plan(opened, opened.outvars)
    for memory in plan.end(opened.outvars):
        memory.is_counted = False
    return plan.peak()


@dataclasses.dataclass(eq=False)
class _Memory:
    """The memory of an array.

    Attributes:
      size: in bytes.
      birth, death: the equation that makes it, and the last one that reads it.
      is_counted: not for arguments and results.
      may_be_taken: whether another array may take it over.
      heir_of: the memory that this one took over; None for memory of its own.
    """

    size: int
    birth: int
    death: int
    is_counted: bool = True
    may_be_taken: bool = True
    heir_of: "_Memory | None" = None

    def first(self) -> "_Memory":
        """The memory that this one is in the end."""
        return self if self.heir_of is None else self.heir_of.first()

    def take_over(self, others: Iterable["_Memory"]) -> None:
        """Become the memory of the first of the others that has this size and is read by nobody later."""
        for other in others:
            if other.may_be_taken and other.size == self.size and other.death == self.birth and other is not self:
                self.heir_of, other.may_be_taken = other, False
                other.first().death = max(other.first().death, self.death)
                return


Behind = tuple[_Memory, ...]


class _Plan:
    """What the equations of a program, or of one round of a loop, hold, and when.

    Attributes:
      eqns: in the order in which they run.
      wanted: the variables that results depend on.
      arrays: the memory of each variable that is an array.
      behind: what is held as long as a variable may still be read.
      heirs: all memory in the order of its birth, with what it may take over.
      within: what is held inside each equation, and at the end.
    """

    def __init__(self, jaxpr: Jaxpr, results: Sequence[Any], carry: Sequence[Var] = ()) -> None:
        needed, self.wanted = _needed(jaxpr.eqns, results)
        self.eqns = _early(needed)
        self.arrays: dict[Var, _Memory] = {}
        self.behind: dict[Var, Behind] = {}
        self.heirs: list[tuple[_Memory, Behind]] = []
        self.within = [0] * (len(self.eqns) + 1)
        for var in (*jaxpr.constvars, *jaxpr.invars):
            memory = self._make(var, _BEFORE)
            memory.is_counted, memory.may_be_taken = False, var in carry
        for place, eqn in enumerate(self.eqns):
            self._run(eqn, place)

    def end(self, results: Iterable[Any], stacked: Iterable[Any] = ()) -> list[_Memory]:
        """Make arrays of the results, read what a loop stacks, and return the memory of the results."""
        place = len(self.eqns)
        made = self._arrays(_variables(results), place)
        self._read(_variables(stacked), place)
        for memory, others in self.heirs:
            memory.take_over(others)
        return [memory.first() for memory in made]

    def peak(self) -> int:
        """The most bytes that are held during one equation."""
        held = self.within.copy()
        for memory, _ in self.heirs:
            if memory.is_counted and memory.heir_of is None:
                for place in range(max(memory.birth, 0), memory.death + 1):
                    held[place] += memory.size
        return max(held)

    def _run(self, eqn: JaxprEqn, place: int) -> None:
        operands = _operands(eqn, self.wanted)
        if eqn.primitive.name == "scan":
            self._loop(eqn, operands, place)
        elif eqn.primitive.name in MAKING:
            if eqn.primitive.name in READING:
                self._arrays(operands, place)
            self._read(operands, place)
            self.within[place] = max((temporary_bytes(body) for body in _bodies(eqn)), default=0)
            for var in eqn.outvars:
                self._make(var, place)
        else:
            behind = tuple(dict.fromkeys(memory for var in operands for memory in self.behind[var]))
            self.behind.update(dict.fromkeys(eqn.outvars, behind))
            if eqn.primitive.name in RESHAPING and operands and operands[0] in self.arrays:
                self.arrays[eqn.outvars[0]] = self.arrays[operands[0]]

    def _loop(self, eqn: JaxprEqn, operands: Sequence[Var], place: int) -> None:
        consts, count = scan_parts(eqn)
        before, after = eqn.invars[consts : consts + count], eqn.outvars[:count]
        self._arrays([var for var in operands if var not in before], place)
        self._read(operands, place)
        for old, new in zip(before, after, strict=True):
            given = self.arrays.get(old) if isinstance(old, Var) else None
            self._make(new, place, () if given is None else (given,))
        for var in eqn.outvars[count:]:
            if var in self.wanted:
                self._make(var, place)
        body, results = _round(eqn, self.wanted)
        plan = _Plan(body, results, body.invars[consts : consts + count])
        plan.end(results[:count], results[count:])
        self.within[place] = plan.peak()

    def _read(self, variables: Iterable[Var], place: int) -> None:
        for memory in (memory for var in variables for memory in self.behind[var]):
            memory.death = max(memory.death, place)

    def _arrays(self, variables: Sequence[Var], place: int) -> list[_Memory]:
        """The memory of variables that are read as arrays; one that is none becomes one here."""
        self._read(variables, place)
        missing = [var for var in dict.fromkeys(variables) if var not in self.arrays]
        for var in missing:
            self._make(var, place, self.behind[var])
        return [self.arrays[var] for var in variables]

    def _make(self, var: Var, place: int, others: Behind = ()) -> _Memory:
        memory = _Memory(_size(var), place, place)
        self.arrays[var], self.behind[var] = memory, (memory,)
        self.heirs.append((memory, others))
        return memory


def _opened(jaxpr: Any) -> Jaxpr:
    return inner(flat(jaxpr, calls=CALLS))[0]


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [atom for atom in atoms if isinstance(atom, Var)]


def _size(var: Var) -> int:
    aval: Any = var.aval
    return int(aval.size) * aval.dtype.itemsize


def _needed(eqns: Sequence[JaxprEqn], results: Iterable[Any]) -> tuple[list[JaxprEqn], set[Var]]:
    """The equations that results depend on, and the variables."""
    needed: list[JaxprEqn] = []
    wanted = set(_variables(results))
    for eqn in reversed(eqns):
        if not wanted.isdisjoint(eqn.outvars):
            needed.append(eqn)
            wanted.update(_operands(eqn, wanted))
    return needed[::-1], wanted


def _operands(eqn: JaxprEqn, wanted: set[Var]) -> list[Var]:
    """The variables that an equation reads for the results that are wanted."""
    if eqn.primitive.name != "scan":
        return _variables(eqn.invars)
    consts, count = scan_parts(eqn)
    body, results = _round(eqn, wanted)
    _, read = _needed(body.eqns, results)
    read.update(body.invars[consts : consts + count])
    return _variables(outside for outside, inside in zip(eqn.invars, body.invars, strict=True) if inside in read)


def _round(eqn: JaxprEqn, wanted: set[Var]) -> tuple[Jaxpr, list[Any]]:
    """One round of a loop, and those of its results that are wanted, its new carry first."""
    _, count = scan_parts(eqn)
    body = _opened(eqn.params["jaxpr"])
    pairs = zip(body.outvars[count:], eqn.outvars[count:], strict=True)
    return body, [*body.outvars[:count], *(inside for inside, outside in pairs if outside in wanted)]


def _bodies(eqn: JaxprEqn) -> list[Any]:
    """The programs that a branch or a loop without a carry in place runs."""
    return [*eqn.params.get("branches", ()), *(eqn.params[name] for name in ("body_jaxpr",) if name in eqn.params)]


def _early(eqns: Sequence[JaxprEqn]) -> list[JaxprEqn]:
    """The equations in the order in which they run: a loop as soon as its operands are there."""
    places: dict[Var, int] = {}
    order: list[int] = []
    for place, eqn in enumerate(eqns):
        waits = eqn.primitive.name in MAKING and eqn.primitive.name != "scan"
        ready = max((places.get(var, _BEFORE) for var in _variables(eqn.invars)), default=_BEFORE)
        order.append(place if waits else ready)
        places.update(dict.fromkeys(eqn.outvars, order[-1]))
    return [eqns[place] for place in sorted(range(len(eqns)), key=order.__getitem__)]
