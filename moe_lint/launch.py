"""Launch configurations: the options a user types, and the conditions of the tree that hold under them.

A profile declares sizes, switches and choices with their options, and what makes a combination feasible. Searching
for the cheapest feasible combination under which a formula holds turns a witness into a command line that a reader can
run. Conditions that no option sets (a shape, a batch) stay free, and are told beside the options.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import translate
from functools import cached_property, lru_cache, reduce

from msgspec import Struct

from moe_lint.formula import Formula, TooManyAtoms, atom_columns, atom_set, table

Value = int | str
Assignment = Mapping[str, Value]
Test = Callable[[Assignment], Value]

#: More combinations than this are not enumerated (``TooManyAtoms``).
_MAX_COMBINATIONS = 100_000


class ExpressionError(ValueError):
    """An expression of a profile that is not understood."""


class Size(Struct, frozen=True):
    """The number of ranks in a group: free (``values``, the first is the default) or derived (``value``)."""

    name: str
    #: patterns over the last part of a text that denotes it: `tp_size`, `get_tensor_model_parallel_world_size()`
    names: tuple[str, ...]
    values: tuple[int, ...] = (1, 2, 4, 8)
    option: str = ""
    value: str = ""


class Switch(Struct, frozen=True):
    """A condition that an option (or a batch) turns on: free, or derived from the rest (``value``)."""

    name: str
    #: patterns over the whole text of a condition
    atoms: tuple[str, ...]
    option: str = ""
    value: str = ""
    #: what else must hold where it is on
    requires: str = ""
    #: what the option does not say: which batches turn it on
    note: str = ""


class Choice(Struct, frozen=True):
    """One of several members: `getter.is_member()`."""

    name: str
    getter: str
    default: str
    option: str = ""
    #: some members beside the default, for a formula that asks for any other
    members: tuple[str, ...] = ()


class Configuration(Struct, frozen=True):
    """``options`` as typed; ``notes`` say in which batches; ``also`` are conditions that no known option sets."""

    options: tuple[str, ...]
    notes: tuple[str, ...] = ()
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"`{' '.join(self.options)}`"] if self.options else []
        parts += self.notes
        text = " ".join(parts)
        if self.also:
            also = " and ".join(f"`{name}`" for name in self.also)
            text = f"{text}, where {also} hold{'s' if len(self.also) == 1 else ''}" if text else f"{also} true"
        return text


#: (a formula, the group that has several ranks) -> the cheapest configuration under which it holds
Configurations = dict[tuple[Formula, str | None], Configuration | None]


class Space(Struct, frozen=True, dict=True):
    """All launch configurations of one engine. Raises ``ExpressionError`` for an expression it cannot read."""

    sizes: tuple[Size, ...] = ()
    switches: tuple[Switch, ...] = ()
    choices: tuple[Choice, ...] = ()
    #: what every configuration obeys
    constraints: tuple[str, ...] = ()
    #: (axis or collective, the size of the group that it sums over)
    groups: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        known = [item.name for item in self._items]
        for name in sorted({name for name in known if known.count(name) > 1}):
            raise ExpressionError(f"{name!r} is declared twice")
        for _, group in self.groups:
            if group not in {size.name for size in self.sizes}:
                raise ExpressionError(f"the group {group!r} is no size")
        for size in self.sizes:
            if any(value < 1 for value in size.values):
                raise ExpressionError(f"the size {size.name!r} has a value below 1")
        self._check_expressions()

    def _check_expressions(self) -> None:
        """Evaluate everything once, under the defaults: what cannot be compared or is named too early shows there."""
        known = set(self._defaults)
        for name, (_, used) in self._derived.items():
            for early in sorted(used - known):
                raise ExpressionError(f"{early!r} is used in a value before it has one itself")
            known.add(name)
        try:
            self._feasible({})
        except TypeError:
            raise ExpressionError("an expression compares or computes with names that are no numbers") from None

    @property
    def _items(self) -> tuple[Size | Switch | Choice, ...]:
        return (*self.sizes, *self.switches, *self.choices)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(item.name for item in self._items)

    @cached_property
    def _derived(self) -> dict[str, tuple[Test, frozenset[str]]]:
        free_or_derived: tuple[Size | Switch, ...] = (*self.sizes, *self.switches)
        return {i.name: read_expression(i.value, self._names) for i in free_or_derived if i.value}

    @cached_property
    def _constraints(self) -> list[tuple[Test, frozenset[str]]]:
        needs = [f"not {switch.name} or ({switch.requires})" for switch in self.switches if switch.requires]
        return [read_expression(text, self._names) for text in (*self.constraints, *needs)]

    @cached_property
    def _combinations(self) -> dict[frozenset[tuple[str, tuple[Value, ...]]], list[dict[str, Value]]]:
        return {}

    def group_of(self, collective: str, axis: str) -> str | None:
        """The size of the group that a collective sums over: by its name, else by its axis."""
        groups = dict(self.groups)
        return groups.get(collective, groups.get(axis))

    def size_of(self, text: str) -> str | None:
        """The group whose size an expression denotes, by the last part of its text."""
        last = text.rsplit(".", 1)[-1]
        return next((size.name for size in self.sizes if _matches(last, size.names)), None)

    def spelled(self, size: str) -> str:
        """How a condition may name a size."""
        return next(one.names[0] for one in self.sizes if one.name == size)

    # --- what a condition means

    def meaning(self, atom: str) -> tuple[Test, frozenset[str]] | None:
        """The truth of a condition under an assignment, and the names that decide it; None when no option does."""
        if atom not in self._meanings:
            self._meanings[atom] = self._find_meaning(atom)
        return self._meanings[atom]

    def among_several(self, atom: str, group: str) -> bool | None:
        """What a condition on the size of a group alone says where that is above 1; None where it depends on more."""
        found = self.meaning(atom)
        if found is None or found[1] != {group}:
            return None
        values = next(size.values for size in self.sizes if size.name == group)
        answers = {bool(found[0]({group: value})) for value in values if value > 1}
        return answers.pop() if len(answers) == 1 else None

    @cached_property
    def _meanings(self) -> dict[str, tuple[Test, frozenset[str]] | None]:
        return {}

    def _find_meaning(self, atom: str) -> tuple[Test, frozenset[str]] | None:
        for switch in self.switches:
            if _matches(atom, switch.atoms):
                return operator.itemgetter(switch.name), frozenset({switch.name})
        for choice in self.choices:
            member = _member(atom, choice)
            if member is not None:
                return _equals(choice.name, member), frozenset({choice.name})
        try:
            node = ast.parse(atom, mode="eval").body
        except SyntaxError:
            return None
        return self._comparison(node) if isinstance(node, ast.Compare) and len(node.ops) == 1 else None

    def _comparison(self, node: ast.Compare) -> tuple[Test, frozenset[str]] | None:
        compare = _COMPARISONS.get(type(node.ops[0]))
        left, right = self._size(node.left), self._size(node.comparators[0])
        if compare is None or left is None or right is None:
            return None
        if isinstance(left, int) and isinstance(right, int):
            return None
        names = frozenset(side for side in (left, right) if isinstance(side, str))
        return _binary(compare, _operand(left), _operand(right)), names

    def _size(self, node: ast.expr) -> str | int | None:
        """The size that an expression denotes, by the last part of its text."""
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        return self.size_of(ast.unparse(node))

    # --- enumeration

    def feasible(self, names: Iterable[str], members: Mapping[str, Iterable[str]]) -> list[dict[str, Value]]:
        """Every feasible assignment that varies ``names``, the cheapest first; the rest keep their defaults.

        ``members`` are the members that matter of each choice.
        """
        wanted = self._closure(names)
        domains = {name: values for name, values in self._domains(members).items() if name in wanted}
        key = frozenset(domains.items())
        if key not in self._combinations:
            count = 1
            for values in domains.values():
                count *= len(values)
            if count > _MAX_COMBINATIONS:
                raise TooManyAtoms(f"{count} launch configurations, at most {_MAX_COMBINATIONS} are tried")
            self._combinations[key] = sorted(self._feasible(domains), key=self._cost)
        return self._combinations[key]

    def _feasible(self, domains: Mapping[str, tuple[Value, ...]]) -> list[dict[str, Value]]:
        """The feasible assignments, one name varied after the other; what cannot come right is dropped at once."""
        fixed = {name: value for name, value in self._defaults.items() if name not in domains}
        found: list[dict[str, Value]] = [{}]
        steps = [[fixed], *([{name: value} for value in values] for name, values in domains.items())]
        for step, (derived, constraints) in zip(steps, self._tests(step[0] for step in steps), strict=True):
            varied = ({**one, **more} for one in found for more in step)
            found = [one for one in varied if _holds(one, derived, constraints)]
        return found

    def _tests(self, steps: Iterable[Iterable[str]]) -> Iterator[tuple[list[tuple[str, Test]], list[Test]]]:
        """For each step, of names that get a value: what is derived from all so far, and what can be tested then."""
        known: set[str] = set()
        for step in steps:
            before = known.copy()
            known.update(step)
            now: list[tuple[str, Test]] = []
            for name, (test, used) in self._derived.items():
                if name not in known and used <= known:
                    now.append((name, test))
                    known.add(name)
            yield now, [test for test, used in self._constraints if used <= known and not (before and used <= before)]

    def _closure(self, names: Iterable[str]) -> frozenset[str]:
        """The names, and all that a derivation or a constraint ties them to."""
        wanted = set(names)
        ties = [used | {name} for name, (_, used) in self._derived.items()]
        sizes = {size.name for size in self.sizes}
        while True:
            more = {n for tie in ties if tie & wanted for n in tie}
            for _, used in self._constraints:
                # a switch that nobody asks about stays off: it needs nothing
                if used & wanted and all(n in sizes or n in wanted for n in used - {c.name for c in self.choices}):
                    more |= used
            if more <= wanted:
                return frozenset(wanted)
            wanted |= more

    def _domains(self, members: Mapping[str, Iterable[str]]) -> dict[str, tuple[Value, ...]]:
        domains: dict[str, tuple[Value, ...]] = {s.name: s.values for s in self.sizes if not s.value}
        domains |= {s.name: (False, True) for s in self.switches if not s.value}
        for choice in self.choices:
            asked = sorted(members.get(choice.name, ()))
            domains[choice.name] = tuple(dict.fromkeys((choice.default, *asked, *choice.members)))
        return domains

    @cached_property
    def _defaults(self) -> dict[str, Value]:
        return {name: values[0] for name, values in self._domains({}).items()}

    def _cost(self, assignment: Assignment) -> tuple[int, int]:
        """How much there is to type, then how many ranks it takes."""
        changed = [name for name, default in self._defaults.items() if assignment[name] != default]
        return len(changed), sum(int(assignment[size.name]) for size in self.sizes)

    # --- search

    def find(self, formula: Formula, larger: Iterable[str] = ()) -> Configuration | None:
        """The cheapest feasible configuration under which a formula holds and the groups ``larger`` have several ranks.

        None when there is none. Raises ``TooManyAtoms``. Conditions that no option sets are false if they can be.
        """
        names = sorted(atom_set(formula))
        bits = table(formula, names)
        if not bits:
            return None
        meanings = {name: self.meaning(name) for name in names}
        tests = [(i, found[0]) for i, name in enumerate(names) if (found := meanings[name]) is not None]
        open_atoms = [i for i, name in enumerate(names) if meanings[name] is None]
        larger = tuple(larger)
        wanted = {used for found in meanings.values() if found is not None for used in found[1]} | set(larger)
        feasible = self.feasible(wanted, self._members(names))

        def assignments() -> Iterator[Assignment]:
            return (a for a in feasible if all(int(a[group]) > 1 for group in larger))

        for assignment in assignments():
            if bits >> sum(1 << i for i, test in tests if test(assignment)) & 1:
                return self._told(assignment, wanted, ())
        if not open_atoms:
            return None
        columns = atom_columns(len(names))
        for assignment in assignments():
            left = bits
            for i, test in tests:
                left &= columns[i] if test(assignment) else ~columns[i]
            if left:
                also = []
                for i in open_atoms:
                    if left & ~columns[i]:
                        left &= ~columns[i]
                    else:
                        also.append(names[i])
                return self._told(assignment, wanted, tuple(also))
        return None

    def _members(self, atoms: Iterable[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for choice in self.choices:
            found[choice.name] = {member for atom in atoms if (member := _member(atom, choice)) is not None}
        return found

    def _told(self, assignment: Assignment, asked: Iterable[str], also: tuple[str, ...]) -> Configuration:
        options: dict[str, None] = {}
        for item in self._items:
            if item.option and assignment[item.name] != self._defaults.get(item.name, False):
                options[item.option.replace("{}", str(assignment[item.name]))] = None
        on = [switch for switch in self.switches if assignment[switch.name] and switch.name in set(asked)]
        notes = dict.fromkeys(switch.note for switch in on if switch.note)
        return Configuration(tuple(options), tuple(notes), also)


def _holds(assignment: dict[str, Value], derived: Iterable[tuple[str, Test]], constraints: Iterable[Test]) -> bool:
    """Put the derived values in, and test."""
    try:
        for name, value in derived:
            assignment[name] = value(assignment)
        for test in constraints:  # noqa: SIM110 - asked of every combination: a generator costs more than the tests
            if not test(assignment):
                return False
        return True
    except ZeroDivisionError:  # a group without ranks: no such configuration
        return False


# --- the expressions of a profile: integers, names, members, comparisons, `and`, `or`, `not`, `%`, `//`, `*`

_COMPARISONS: dict[type[ast.cmpop], Callable[[Value, Value], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
    ast.Mult: operator.mul,
}


def read_expression(text: str, names: frozenset[str]) -> tuple[Test, frozenset[str]]:
    """The value of an expression under an assignment, and the names in it. Raises ``ExpressionError``."""
    try:
        node = ast.parse(text, mode="eval").body
    except SyntaxError:
        raise ExpressionError(f"{text!r} is not an expression") from None
    used = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
    for name in sorted(used - names):
        raise ExpressionError(f"{text!r} names {name!r}, which is not declared")
    return _compiled(node, text), used


def _compiled(node: ast.expr, text: str) -> Test:
    if isinstance(node, ast.Name):
        return operator.itemgetter(node.id)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | str):
        return _constant(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _compiled(node.operand, text)
        return lambda a: not inner(a)
    if isinstance(node, ast.BoolOp):
        parts = (_compiled(value, text) for value in node.values)
        return reduce(_both if isinstance(node.op, ast.And) else _either, parts)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        compare = _COMPARISONS[type(node.ops[0])]
        return _binary(compare, _compiled(node.left, text), _compiled(node.comparators[0], text))
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        return _binary(_ARITHMETIC[type(node.op)], _compiled(node.left, text), _compiled(node.right, text))
    raise ExpressionError(f"{text!r}: `{ast.unparse(node)}` is more than names, numbers, comparisons and `and or not`")


def _binary(operation: Callable[[Value, Value], Value], left: Test, right: Test) -> Test:
    return lambda a: operation(left(a), right(a))


def _both(left: Test, right: Test) -> Test:
    return lambda a: bool(left(a) and right(a))


def _either(left: Test, right: Test) -> Test:
    return lambda a: bool(left(a) or right(a))


def _constant(value: Value) -> Test:
    return lambda _: value


def _operand(side: str | int) -> Test:
    return operator.itemgetter(side) if isinstance(side, str) else _constant(side)


def _equals(name: str, member: str) -> Test:
    return lambda a: a[name] == member


def _member(atom: str, choice: Choice) -> str | None:
    prefix = f"{choice.getter}.is_"
    return atom[len(prefix) : -2] if choice.getter and atom.startswith(prefix) and atom.endswith("()") else None


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return _pattern(patterns).match(text) is not None


@lru_cache(maxsize=64)
def _pattern(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(translate(pattern) for pattern in patterns) or "(?!)")
