"""Boolean formulas over named atoms, decided by exhaustive truth table.

A guard and the helper it is compared with are both formulas. A truth table is one Python int: bit ``i`` is the
value of the formula in the state whose atoms are the bits of ``i``. Comparing two formulas is then one ``==``,
and a witness is the lowest set bit of their difference. This is complete, and faster than any solver we
measured for the dozen atoms that a guard has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import lru_cache

from msgspec import Struct

#: Beyond this many atoms a comparison is refused (``TooManyAtoms``) rather than left to run for minutes.
MAX_ATOMS = 20
#: The same for a formula that grows beyond this many mentions of atoms while some of them are taken out of it.
_MAX_MENTIONS = 5000
#: Formulas are walked recursively, some within others: none nests deeper than this.
_DEEPEST = 200


class TooManyAtoms(ValueError):
    """A comparison needs more than ``MAX_ATOMS`` atoms, or a formula that is too long."""


class Atom(Struct, frozen=True, tag=True, array_like=True):
    """A condition that is not taken apart any further, named by its normalised source text."""

    name: str

    def __str__(self) -> str:
        return self.name


class Not(Struct, frozen=True, cache_hash=True, tag=True, array_like=True):
    """A negation. Make it with `negate`, which folds."""

    operand: Formula

    def __str__(self) -> str:
        text = _wrap(self.operand)
        return f"{text[:-8]} is not None" if text.endswith(" is None") else f"not {text}"


class And(Struct, frozen=True, cache_hash=True, tag=True, array_like=True):
    """A conjunction; of nothing, what always holds. Make it with `conj`, which folds."""

    operands: tuple[Formula, ...]

    def __str__(self) -> str:
        return " and ".join(_wrap(o) for o in self.operands) if self.operands else "True"


class Or(Struct, frozen=True, cache_hash=True, tag=True, array_like=True):
    """A disjunction; of nothing, what never holds. Make it with `disj`, which folds."""

    operands: tuple[Formula, ...]

    def __str__(self) -> str:
        return " or ".join(_wrap(o) for o in self.operands) if self.operands else "False"


Formula = Atom | Not | And | Or

TRUE: Formula = And(())
FALSE: Formula = Or(())


def _wrap(formula: Formula) -> str:
    compound = isinstance(formula, And | Or) and len(formula.operands) > 1
    return f"({formula})" if compound else str(formula)


def conj(operands: Iterable[Formula]) -> Formula:
    """The conjunction, flattened, without repetitions, with constants folded."""
    flat: dict[Formula, None] = {}
    for operand in operands:
        if isinstance(operand, And):
            flat.update(dict.fromkeys(operand.operands))
        elif isinstance(operand, Or) and not operand.operands:
            return FALSE
        else:
            flat[operand] = None
    return next(iter(flat)) if len(flat) == 1 else And(tuple(flat))


def disj(operands: Iterable[Formula]) -> Formula:
    """The disjunction, flattened, without repetitions, with constants folded."""
    flat: dict[Formula, None] = {}
    for operand in operands:
        if isinstance(operand, Or):
            flat.update(dict.fromkeys(operand.operands))
        elif isinstance(operand, And) and not operand.operands:
            return TRUE
        else:
            flat[operand] = None
    return next(iter(flat)) if len(flat) == 1 else Or(tuple(flat))


def negate(formula: Formula) -> Formula:
    """The negation; double negations and negated constants are folded."""
    if isinstance(formula, Not):
        return formula.operand
    if formula == TRUE:
        return FALSE
    if formula == FALSE:
        return TRUE
    return Not(formula)


def choose(condition: Formula, then: Formula, otherwise: Formula) -> Formula:
    """``then if condition else otherwise``, kept short where a branch is constant: `if a: return True` is `a or …`."""
    if then == TRUE or otherwise == FALSE:
        return disj((condition, otherwise)) if then == TRUE else conj((condition, then))
    if then == FALSE or otherwise == TRUE:
        return conj((negate(condition), otherwise)) if then == FALSE else disj((negate(condition), then))
    return disj((conj((condition, then)), conj((negate(condition), otherwise))))


def atoms(formula: Formula) -> Iterator[str]:
    """The names of the atoms in order of first appearance, with repetitions."""
    if isinstance(formula, Atom):
        yield formula.name
    elif isinstance(formula, Not):
        yield from atoms(formula.operand)
    else:
        for operand in formula.operands:
            yield from atoms(operand)


@lru_cache(maxsize=10_000)
def atom_set(formula: Formula) -> frozenset[str]:
    """The names of the atoms."""
    if isinstance(formula, Atom):
        return frozenset((formula.name,))
    if isinstance(formula, Not):
        return atom_set(formula.operand)
    return frozenset().union(*map(atom_set, formula.operands))


def substitute(formula: Formula, value: Callable[[str], Formula | None]) -> Formula:
    """Replace each atom for which ``value`` returns a formula; constants are folded on the way up.

    What holds no such atom is handed back as it is.
    """
    if isinstance(formula, Atom):
        return value(formula.name) or formula
    if isinstance(formula, Not):
        inner = substitute(formula.operand, value)
        return formula if inner is formula.operand else negate(inner)
    join, settled = (conj, FALSE) if isinstance(formula, And) else (disj, TRUE)
    parts: list[Formula] = []
    for operand in formula.operands:
        part = substitute(operand, value)
        if part == settled:
            return settled
        parts.append(part)
    same = all(part is operand for part, operand in zip(parts, formula.operands, strict=True))
    return formula if same else join(parts)


def replace_atoms(formula: Formula, values: Mapping[str, Formula]) -> Formula:
    """Replace each atom that ``values`` names; constants are folded on the way up."""
    return formula if values.keys().isdisjoint(atom_set(formula)) else substitute(formula, values.get)


def evaluate(formula: Formula, state: Mapping[str, bool]) -> bool:
    """The value in one state. Raises ``KeyError`` for an atom that the state leaves open."""
    if isinstance(formula, Atom):
        return state[formula.name]
    if isinstance(formula, Not):
        return not evaluate(formula.operand, state)
    values = (evaluate(o, state) for o in formula.operands)
    return all(values) if isinstance(formula, And) else any(values)


@lru_cache(maxsize=MAX_ATOMS * 4)
def _column(position: int, count: int) -> int:
    """The truth table of atom ``position`` among ``count`` atoms: runs of 2**position zeros and ones."""
    run = 1 << position
    block = ((1 << run) - 1) << run
    width = 2 * run
    while width < 1 << count:
        block |= block << width
        width *= 2
    return block


def atom_columns(count: int) -> list[int]:
    """The truth tables of ``count`` atoms, in the order in which `table` numbers them."""
    return [_column(position, count) for position in range(count)]


def table(formula: Formula, names: Sequence[str]) -> int:
    """The truth table over ``names`` as one int. Raises ``TooManyAtoms`` and, for an unlisted atom, ``KeyError``."""
    if len(names) > MAX_ATOMS:
        raise TooManyAtoms(f"{len(names)} atoms, at most {MAX_ATOMS} are compared")
    columns = {name: _column(i, len(names)) for i, name in enumerate(names)}
    return _table(formula, columns, (1 << (1 << len(names))) - 1)


def _table(formula: Formula, columns: Mapping[str, int], full: int) -> int:
    """``full`` is the table of what always holds."""
    if isinstance(formula, Atom):
        return columns[formula.name]
    if isinstance(formula, Not):
        return full ^ _table(formula.operand, columns, full)
    value = full if isinstance(formula, And) else 0
    for operand in formula.operands:
        part = _table(operand, columns, full)
        value = value & part if isinstance(formula, And) else value | part
    return value


def satisfiable(formula: Formula) -> bool:
    """Whether a formula can hold. Raises ``TooManyAtoms`` if too many of its conditions hang together."""
    return all(_is_literal(part) or table(part, sorted(atom_set(part))) != 0 for part in _independent(formula))


def _is_literal(formula: Formula) -> bool:
    return isinstance(formula, Atom) or (isinstance(formula, Not) and isinstance(formula.operand, Atom))


def implies(premise: Formula, conclusion: Formula) -> bool:
    """Whether one formula holds wherever the other does; False, too, where that takes too many atoms to tell."""
    try:
        return not satisfiable(conj((premise, negate(conclusion))))
    except TooManyAtoms:
        return False


def _independent(formula: Formula) -> Iterator[Formula]:
    """The operands of a conjunction, those that share atoms as one: all of them hold if each of them can."""
    groups: list[tuple[frozenset[str], list[Formula]]] = []
    met: set[str] = set()
    for part in formula.operands if isinstance(formula, And) else (formula,):
        names, parts = atom_set(part), [part]
        for group in [] if met.isdisjoint(names) else [group for group in groups if group[0] & names]:
            names, parts = names | group[0], parts + group[1]
            groups.remove(group)
        met |= names
        groups.append((names, parts))
    return (conj(parts) if len(parts) > 1 else parts[0] for _, parts in groups)


def assign(formula: Formula, name: str, value: Formula) -> Formula:
    """The formula with ``value`` in place of the atom ``name``."""
    return replace_atoms(formula, {name: value})


def exists(formula: Formula, names: Iterable[str]) -> Formula:
    """The formula that holds where ``formula`` holds for some values of ``names``. Raises ``TooManyAtoms``."""
    signs: dict[str, set[bool]] = {}
    for name, sign in _mentions(formula, True):
        signs.setdefault(name, set()).add(sign)
    asked = [name for name in names if name in signs]
    # an atom that only ever speaks for the formula may as well be true: nothing grows, however many there are
    best = {name: TRUE if True in signs[name] else FALSE for name in asked if len(signs[name]) == 1}
    formula = replace_atoms(formula, best)
    for name in asked:
        if name not in best:
            formula = _exists_one(formula, name)
            if sum(1 for _ in atoms(formula)) > _MAX_MENTIONS:
                raise TooManyAtoms(f"a formula of more than {_MAX_MENTIONS} conditions")
    return formula


def forall(formula: Formula, names: Iterable[str]) -> Formula:
    """The formula that holds where ``formula`` holds for all values of ``names``. Raises ``TooManyAtoms``."""
    return negate(exists(negate(formula), names))


def _mentions(formula: Formula, sign: bool) -> Iterator[tuple[str, bool]]:
    """Each mention of an atom, and whether the formula is for it (True) or against it."""
    if isinstance(formula, Atom):
        yield formula.name, sign
    elif isinstance(formula, Not):
        yield from _mentions(formula.operand, not sign)
    else:
        for operand in formula.operands:
            yield from _mentions(operand, sign)


def _exists_one(formula: Formula, name: str) -> Formula:
    """`exists` for one atom. Only the parts that mention it are written twice."""
    if isinstance(formula, Not) and isinstance(formula.operand, And | Or):
        inverse = disj if isinstance(formula.operand, And) else conj
        return _exists_one(inverse(negate(operand) for operand in formula.operand.operands), name)
    if isinstance(formula, Or):
        return disj(_exists_one(operand, name) for operand in formula.operands)
    if isinstance(formula, And):
        about = conj(part for part in formula.operands if name in atom_set(part))
        rest = [part for part in formula.operands if name not in atom_set(part)]
        if rest or not isinstance(about, And):
            return conj((*rest, _exists_one(about, name)))
    return disj((assign(formula, name, TRUE), assign(formula, name, FALSE)))


def nests_too_deeply(formula: Formula) -> bool:
    """Whether a formula nests so deeply that walking it could go deeper than Python lets a program go."""
    level = [formula]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in dict.fromkeys(level)
            if not isinstance(outer, Atom)
            for inner in ((outer.operand,) if isinstance(outer, Not) else outer.operands)
        ]
        if not level:
            return False
    return True


class Relation(str, Enum):
    """How a site's guard relates to the helper's decision.

    ``WEAKER`` guards reduce in states in which the helper skips (a double reduction), ``STRONGER`` guards skip
    in states in which the helper reduces (a lost one), ``DIFFERENT`` guards do both.
    """

    EQUAL = "equal"
    WEAKER = "weaker"
    STRONGER = "stronger"
    DIFFERENT = "different"


class State(Struct, frozen=True):
    """One assignment of truth values, as sorted pairs; a witness."""

    values: tuple[tuple[str, bool], ...]

    def true(self) -> tuple[str, ...]:
        """The names of what holds."""
        return tuple(name for name, value in self.values if value)

    @property
    def formula(self) -> Formula:
        """What holds in this state and in no other."""
        return conj(Atom(name) if value else negate(Atom(name)) for name, value in self.values)


class Comparison(Struct, frozen=True):
    """``relation`` with its witnesses.

    ``over`` is a state in which the site reduces though the helper skips, ``under`` one in which it does not
    reduce though the helper would. Each is minimal: none of its true atoms could be false.
    """

    relation: Relation
    over: State | None = None
    under: State | None = None


def _sparse_state(bits: int, names: Sequence[str]) -> State | None:
    """A state among the set bits in which no true atom could be false; None when no bit is set."""
    if not bits:
        return None
    values = []
    for position, name in enumerate(names):
        off = bits & ~_column(position, len(names))
        values.append((name, not off))
        bits = off or bits
    return State(tuple(values))


@lru_cache(maxsize=1_000)
def compare(
    reduces: Formula, skips: Formula, feasible: Formula = TRUE, kept: frozenset[str] = frozenset()
) -> Comparison:
    """Compare "the site reduces when" with "the helper skips when", over the feasible states.

    Atoms that only ``reduces`` has (foreign conjuncts such as ``hidden_states.shape[0] > 0``) do not count
    for or against the site: it is taken to reduce in a state when some feasible value of them makes it reduce. The
    atoms in ``kept`` do count: they are skip reasons, whether or not the helper has them.
    """
    shared = atom_set(skips) | (kept & atom_set(reduces))
    if (atom_set(reduces) - shared) & atom_set(feasible):
        reduces = conj((reduces, feasible))  # their values must go together with the state
    reduces = exists(reduces, sorted(atom_set(reduces) - shared))
    names = sorted(shared | atom_set(reduces) | (atom_set(feasible) & shared))
    feasible = exists(feasible, sorted(atom_set(feasible) - set(names)))
    site, helper, domain = (table(f, names) for f in (reduces, skips, feasible))
    full = (1 << (1 << len(names))) - 1
    over = site & helper & domain
    under = (full ^ site) & (full ^ helper) & domain
    relation = (
        Relation.DIFFERENT
        if over and under
        else Relation.WEAKER
        if over
        else Relation.STRONGER
        if under
        else Relation.EQUAL
    )
    return Comparison(relation, _sparse_state(over, names), _sparse_state(under, names))
