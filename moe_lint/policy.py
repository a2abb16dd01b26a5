"""What this tree's helper decides, how it is asked, and how a guard compares with it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from os.path import commonpath
from pathlib import PurePath

from msgspec import Struct

from moe_lint.expressions import FormulaBuilder, NotBoolean
from moe_lint.formula import (
    FALSE,
    TRUE,
    Atom,
    Comparison,
    Formula,
    Or,
    Relation,
    TooManyAtoms,
    atom_set,
    compare,
    conj,
    disj,
    negate,
    substitute,
)
from moe_lint.helper import Helper, find_function, told_of
from moe_lint.index import ProjectIndex, Ref
from moe_lint.launch import Configuration, Configurations
from moe_lint.model import Axis, Problem
from moe_lint.profile import Profile
from moe_lint.remembered import remembered

_EXPANSION_LIMIT = 400
#: `self.x` where something of x is asked.
_RECEIVER = re.compile(r"(?<![\w.])self\.\w+(?=\.\w)")
#: What follows the opening parenthesis of a call that is nothing but a call with plain arguments.
_PLAIN_CALL = re.compile(r"[^()]*\)$")


class Reason(Struct, frozen=True):
    """One reason for which the helper skips, as an atom or formula, with the text to show."""

    text: str
    formula: Formula


class Policy:
    """Judges guards against a helper."""

    def __init__(
        self,
        index: ProjectIndex,
        helper: Helper | None,
        problems: tuple[Problem, ...] = (),
        configurations: Configurations | None = None,
    ) -> None:
        """``configurations`` are those that an earlier run has looked for: they depend on the profile alone."""
        self.index = index
        self.profile: Profile = index.profile
        self.helper = helper
        self.problems = problems
        self._builder = FormulaBuilder(index.profile)
        self._skips: dict[tuple[Axis, frozenset[str] | None], Formula] = {}
        self._reasons: dict[Formula, tuple[Reason, ...]] = {}
        self._expansions: dict[str, Formula | None] = {}
        self._predicates: dict[str, tuple[tuple[str, ...], Mapping[str, bool | None], Formula] | None] = {}
        #: a comparison with a backend that is written out -> the method of the enum that asks for it
        self._backend_questions = self._read_backends()
        self._backend_members = frozenset(name.rpartition(".")[2][:-2] for name in self._backend_questions.values())
        self._known_configurations = configurations or {}
        #: what was looked for
        self.configurations: Configurations = {}

    # --- the helper

    def skips(self, axis: Axis, in_scope: Iterable[str] | None = None) -> Formula:
        """When the helper skips at a site of this axis. Flags that the site cannot pass take their defaults.

        ``in_scope`` are the flags known at the site; None stands for all.
        """
        helper = self.helper
        assert helper is not None
        known = None if in_scope is None else frozenset(in_scope)
        if (axis, known) not in self._skips:
            self._skips[axis, known] = self._find_skips(helper, axis, known)
        return self._skips[axis, known]

    def _find_skips(self, helper: Helper, axis: Axis, known: frozenset[str] | None) -> Formula:
        values: dict[str, Formula] = {}
        if helper.axis_parameter is not None:
            values[helper.axis_parameter] = FALSE if axis == "EP" else TRUE
        for parameter, flag in helper.flags:
            if known is not None and flag not in known:
                values[flag] = TRUE if dict(helper.defaults).get(parameter) else FALSE
        return bind(helper.skips, values, self.profile)

    @remembered
    def called(self, atom: str) -> Formula | None:
        """The meaning of an atom that is a call of the helper, None for any other."""
        helper = self.helper
        if helper is None or not atom.startswith(f"{helper.name}("):
            return None
        call = ast.parse(atom, mode="eval").body
        if not isinstance(call, ast.Call):
            return None
        # behind `*` or `**` any flag may be handed over: none is taken to be left at its default
        hidden = hides_arguments(call)
        values: dict[str, Formula] = {p: TRUE if default else FALSE for p, default in helper.defaults if not hidden}
        for name, given in by_position(helper, call):
            values[name] = self._builder.build(given)
        for keyword in call.keywords:
            if keyword.arg is not None:
                values[keyword.arg] = self._builder.build(keyword.value)
        flags = dict(helper.flags)
        return bind(helper.skips, {flags.get(name, name): value for name, value in values.items()}, self.profile)

    def helper_calls(self, formula: Formula) -> list[str]:
        """The helper calls among the atoms of a formula."""
        if self.helper is None:
            return []
        return [a for a in sorted(atom_set(formula)) if a.startswith(f"{self.helper.name}(")]

    def hides_flags(self, formula: Formula) -> bool:
        """Whether a formula calls the helper with arguments that are not written out."""
        calls = (ast.parse(text, mode="eval").body for text in self.helper_calls(formula) if "*" in text)
        return any(isinstance(call, ast.Call) and hides_arguments(call) for call in calls)

    def with_helper(self, formula: Formula) -> Formula:
        """The formula with every helper call replaced by what it means."""
        return substitute(formula, self.called)

    def in_helper_terms(self, formula: Formula, owner: Ref) -> Formula:
        """A guard of class ``owner`` with the helper's own class called by its name, as the helper's body calls it."""
        helper = self.helper
        if helper is None or helper.owner is None:
            return formula
        home = Ref(helper.path, helper.owner)
        receivers = {m.group() for name in atom_set(formula) for m in _RECEIVER.finditer(name)}
        for receiver in (*sorted(receivers), "self"):
            attribute = receiver.partition(".")[2]
            classes = self.index.built_classes(owner, attribute) if attribute else [owner]
            if any(home in self.index.mro(found) for found in classes):
                formula = told_of(formula, helper.itself, receiver)
        return formula

    def receiver(self, owner: Ref) -> str | None:
        """What a method of class ``owner`` asks the helper's question of.

        `self`, the attribute that can answer, or else what the rest of the tree asks.
        """
        helper = self.helper
        if helper is None or helper.owner is None:
            return None
        home = Ref(helper.path, helper.owner)
        if home in self.index.mro(owner):
            return "self"
        facts = self.index.facts(owner.path)
        names = facts.attribute_names(owner.name) if facts is not None and owner.name in facts.classes else ()
        found = [
            name
            for name in names
            if (classes := self.index.built_classes(owner, name))
            and all(home in self.index.mro(built) for built in classes)
        ]
        found = found or [name for name in names if name in self._asked_attributes]
        if len(found) == 1:
            return f"self.{found[0]}"
        return helper.asked_of[0] if helper.asked_of is not None else None

    @cached_property
    def _asked_attributes(self) -> frozenset[str]:
        """The attributes of whose objects the tree asks the helper's question: told from the text."""
        name = self.helper.name if self.helper is not None else ""
        texts = (text for text in self.index.texts.values() if text.holds(f".{name}("))
        return frozenset(one for text in texts for one in text.finds(rf"\bself\.(\w+)\.{re.escape(name)}\("))

    # --- reasons

    def reasons(self, axis: Axis, in_scope: Iterable[str] | None = None) -> tuple[Reason, ...]:
        """The disjuncts of the helper, looking through predicates that only delegate to others."""
        skips = self.skips(axis, in_scope)
        if skips not in self._reasons:
            found: dict[str, Reason] = {}
            for part in self._disjuncts(skips, frozenset()):
                if part != FALSE:
                    found.setdefault(str(part), Reason(str(part), part))
            self._reasons[skips] = tuple(found.values())
        return self._reasons[skips]

    def _disjuncts(self, formula: Formula, seen: frozenset[str]) -> list[Formula]:
        if isinstance(formula, Or):
            return [d for part in formula.operands for d in self._disjuncts(part, seen)]
        if isinstance(formula, Atom) and formula.name not in seen:
            body = self._expansion(formula.name)
            if body is not None and isinstance(body, Or):
                return self._disjuncts(body, seen | {formula.name})
        return [formula]

    @cached_property
    def delegates(self) -> frozenset[str]:
        """Atoms that the helper merely delegates to: its halves, which a guard may use one by one."""
        if self.helper is None:
            return frozenset()
        found: set[str] = set()
        for axis in ("TP", "EP"):
            stack = [self.skips("EP" if axis == "EP" else "TP")]
            while stack:
                formula = stack.pop()
                for part in formula.operands if isinstance(formula, Or) else (formula,):
                    if isinstance(part, Atom) and part.name not in found:
                        body = self._expansion(part.name)
                        if body is not None and isinstance(body, Or):
                            found.add(part.name)
                            stack.append(body)
        return frozenset(found)

    # --- predicates

    def _expansion(self, atom: str) -> Formula | None:
        """What an atom that calls a predicate of the tree means, None when it is not one."""
        if atom not in self._expansions:
            self._expansions[atom] = self._expand(atom)
        return self._expansions[atom]

    def _expand(self, atom: str) -> Formula | None:
        if atom in self._backend_questions:
            return Atom(self._backend_questions[atom])
        name, _, rest = atom.partition("(")
        if (
            not rest
            or not _PLAIN_CALL.match(rest)
            or not name.isidentifier()
            or (self.helper is not None and name == self.helper.name)
        ):
            return None
        if name not in self._predicates:
            self._predicates[name] = self._find_predicate(name)
        predicate = self._predicates[name]
        if predicate is None:
            return None
        params, defaults, body = predicate
        call = ast.parse(atom, mode="eval").body
        if not isinstance(call, ast.Call):
            return None
        values: dict[str, Formula] = {p: TRUE if d else FALSE for p, d in defaults.items() if d is not None}
        values.update({p: self._builder.build(a) for p, a in zip(params, call.args, strict=False)})
        values.update({k.arg: self._builder.build(k.value) for k in call.keywords if k.arg is not None})
        return bind(body, values, self.profile)

    def _find_predicate(self, name: str) -> tuple[tuple[str, ...], Mapping[str, bool | None], Formula] | None:
        ref = self._definition(name)
        facts = self.index.facts(ref.path) if ref is not None else None
        if ref is None or facts is None or ref.name not in facts.functions:
            return None
        body = self.index.condition(ref)
        _, params, defaults = facts.header(ref.name)
        return (params, defaults, body) if body is not None else None

    def _definition(self, name: str) -> Ref | None:
        """A predicate is looked up where the helper stands, then wherever a module-level `def` of that name is."""
        if self.helper is not None:
            found = self.index.resolve(self.helper.path, name)
            if found is not None:
                return found
        return find_function(self.index, name)

    @remembered
    def expanded(self, formula: Formula, whole: bool = True) -> Formula:
        """Every predicate call replaced by its body: as deep as the tree goes, or down to what an option decides."""
        return self._expanded(formula, whole, frozenset(), iter(range(_EXPANSION_LIMIT)))

    def _expanded(self, formula: Formula, whole: bool, seen: frozenset[str], left: Iterator[int]) -> Formula:
        """``seen``: the predicates that stand around the formula. ``left`` gives out how many may be replaced."""

        def value(atom: str) -> Formula | None:
            if atom in seen or not (whole or self.profile.launch.meaning(atom) is None):
                return None
            body = self._expansion(atom)
            if body is None or next(left, None) is None:
                return None
            return self._expanded(body, whole, seen | {atom}, left)

        return substitute(formula, value)

    # --- how to see it

    def opened(self, formula: Formula) -> Formula:
        """Every predicate call replaced by its body, down to the conditions that a launch option decides."""
        return self.expanded(formula, whole=False)

    def configuration(self, formula: Formula, axis: Axis, collective: str = "") -> Configuration | None:
        """The cheapest launch configuration under which a formula holds and the reduction has something to sum.

        None when there is none, or when that cannot be told.
        """
        group = self.profile.launch.group_of(collective, axis)
        key = (self.opened(formula), group)
        if key not in self.configurations:
            known = key in self._known_configurations
            self.configurations[key] = self._known_configurations[key] if known else self._configuration(*key)
        return self.configurations[key]

    def _configuration(self, opened: Formula, group: str | None) -> Configuration | None:
        try:
            return self.profile.launch.find(opened, () if group is None else (group,))
        except TooManyAtoms:
            return None

    # --- where to import it from

    def helper_module(self, importer: str, owner: Ref) -> str | None:
        """The module from which a file imports what its class ``owner`` asks; "" where there is nothing to import."""
        helper = self.helper
        if helper is None or helper.owner is None:
            return self.import_module(importer)
        receiver = self.receiver(owner)
        if receiver is None or helper.asked_of is None or receiver != helper.asked_of[0]:
            return None if receiver is None else ""
        asked = helper.asked_of[1]
        return "" if asked.path == importer else self.import_module(importer, asked.name, asked.path)

    def import_module(self, importer: str, name: str | None = None, path: str | None = None) -> str | None:
        """The module from which a file should import the helper: one that it already imports from, if it can.

        ``name`` and ``path``: another function, and where it is defined.
        """
        helper = self.helper
        if helper is None:
            return None
        name, path = name or helper.name, path or helper.path
        if not path:
            return None
        facts = self.index.facts(importer)
        homes = [home for one in (self._export(name, path), path) if one and (home := self._dotted(one, importer))]
        used = {module for module, _ in facts.imports.values()} if facts is not None else set()
        return next((home for home in homes if home in used), homes[0] if homes else None)

    def _export(self, name: str, path: str) -> str | None:
        """The package that re-exports a function (or will, when `init` adds the helper beside its predicates)."""
        package = str(PurePath(path).parent / "__init__.py")
        facts = self.index.facts(package) if package in self.index.known_paths else None
        if facts is None or package == path:
            return None
        if name in facts.imports:
            return package
        exports = any(
            original is not None and self.index.module_path(module, package) == path
            for module, original in facts.imports.values()
        )
        proposed = self.helper is not None and self.helper.proposed and name == self.helper.name
        return package if proposed and exports else None

    def _dotted(self, path: str, importer: str) -> str | None:
        """The name of a module as a file would write it: absolute if it imports its own package so, else relative."""
        parts = list(PurePath(path).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        facts = self.index.facts(importer)
        modules = {module for module, _ in facts.imports.values()} if facts is not None else set()
        heads = {module.split(".")[0] for module in modules}
        starts = [i for i, part in enumerate(parts) if part in heads and i < len(parts) - 1]
        if starts:
            return ".".join(parts[starts[-1] :])
        levels = {len(module) - len(module.lstrip(".")) for module in modules}
        return self._relative(parts, importer, max(levels, default=0))

    def _relative(self, parts: list[str], importer: str, highest: int) -> str | None:
        """The relative name of a module in a file whose imports go up to ``highest`` packages."""
        folder = PurePath(importer).parent.parts
        shared = len(PurePath(commonpath((PurePath(*parts), PurePath(*folder)))).parts)
        level = len(folder) - shared + 1
        packages = (str(PurePath(*folder[:depth], "__init__.py")) for depth in range(shared, len(folder) + 1))
        if not highest or (level > highest and not self.index.known_paths.issuperset(packages)):
            return None
        return "." * level + ".".join(parts[shared:])

    # --- judging

    def judge(
        self, guard: Formula, axis: Axis, in_scope: Iterable[str], own: frozenset[str] = frozenset()
    ) -> Comparison:
        """How a guard (without its topology) relates to the helper. Raises ``TooManyAtoms``.

        ``own`` are atoms of the guard that are skip reasons of its own: where one holds, the site does not reduce,
        and a helper that does not know it would. Compared as written first; only when that finds a difference are the
        predicates on both sides opened, so that a guard that spells out what a predicate means is not called
        different from it.
        """
        reduces = self.with_helper(guard)
        skips = disj(reason.formula for reason in self.reasons(axis, in_scope))
        coarse = self._compare(self._as_reasons(reduces), skips, own)
        if coarse.relation is Relation.EQUAL:
            return coarse
        opened = frozenset(name for atom in own for name in atom_set(self.expanded(Atom(atom))))
        try:
            fine = self._compare(self.expanded(reduces), self.expanded(skips), opened)
        except TooManyAtoms:
            return coarse
        return coarse if fine.relation is coarse.relation else fine

    def _as_reasons(self, formula: Formula) -> Formula:
        """The delegating predicates of a formula opened, as `reasons` opens those of the helper."""
        delegates = self.delegates
        for _ in range(8):
            opened = substitute(formula, lambda a: self._expansion(a) if a in delegates else None)
            if opened == formula:
                break
            formula = opened
        return formula

    def _compare(self, reduces: Formula, skips: Formula, kept: frozenset[str] = frozenset()) -> Comparison:
        return compare(reduces, skips, self.feasible(atom_set(reduces) | atom_set(skips)), kept)

    def missing(self, guard: Formula, axis: Axis, in_scope: Iterable[str] | None) -> tuple[str, ...]:
        """The reasons for which the helper skips and in spite of which this guard reduces."""
        reduces = self._as_reasons(self.with_helper(guard))
        found = []
        for reason in self.reasons(axis, in_scope):
            try:
                one = self._compare(reduces, reason.formula)
                if one.over is None:
                    continue
                deep = self._compare(self.expanded(reduces), self.expanded(reason.formula))
            except TooManyAtoms:
                deep = one
            if deep.over is not None:
                found.append(reason.text)
        return tuple(found)

    # --- the a2a backend: members of one enum exclude one another

    def _read_backends(self) -> dict[str, str]:
        enum, getter = self.profile.backend_enum, self.profile.backend_getter
        if not enum:
            return {}
        for path in self.index.holding(f"class {enum}"):
            if not self.index.texts[path].finds(rf"^class {re.escape(enum)}\b"):
                continue
            facts = self.index.facts(path)
            if facts is None or enum not in facts.classes:
                continue
            questions: dict[str, str] = {}
            for method in facts.classes[enum].methods:
                try:
                    body = facts.condition(f"{enum}.{method}")
                except NotBoolean:
                    continue
                if isinstance(body, Atom) and body.name.startswith(f"{enum}.") and body.name.endswith("== self"):
                    member, question = body.name.removesuffix(" == self"), f"{getter}.{method}()"
                    questions |= {f"{member} == {getter}": question, f"{getter} is {member}": question}
            return questions
        return {}

    @cached_property
    def backend_names(self) -> frozenset[str]:
        """What the a2a backends are called: the members of the tree's enum and those of the profile."""
        getter = self.profile.backend_getter
        choices = [choice for choice in self.profile.launch.choices if getter and choice.getter == getter]
        known = {name for choice in choices for name in choice.members}
        members = {method.removeprefix("is_") for method in self._backend_members}
        return frozenset((known | members) - {choice.default for choice in choices} - {"none"})

    def feasible(self, names: Iterable[str]) -> Formula:
        """At most one of the backend's `is_…()` holds (those that test for a single member)."""
        prefix = f"{self.profile.backend_getter}."
        backends = sorted(
            name
            for name in names
            if name.startswith(prefix) and name[len(prefix) :].rstrip("()") in self._backend_members
        )
        return self._one_of(tuple(backends))

    @remembered
    def _one_of(self, names: tuple[str, ...]) -> Formula:
        pairs = ((one, other) for position, one in enumerate(names) for other in names[position + 1 :])
        return conj(negate(conj((Atom(one), Atom(other)))) for one, other in pairs)

    def backend_classes(self) -> dict[str, tuple[frozenset[str], Ref]]:
        """Central class predicates (`is_deepep_class_backend()`): name -> (member names, definition)."""
        found: dict[str, tuple[frozenset[str], Ref]] = {}
        if not self.profile.backend_getter:
            return found
        prefix = f"{self.profile.backend_getter}.is_"
        for path, text in self.index.texts.items():
            if self.profile.backend_enum and not text.holds(f"class {self.profile.backend_enum}"):
                continue
            facts = self.index.facts(path)
            if facts is None:
                continue
            for name in text.finds(r"^def (is_\w+)\(\)"):
                try:
                    body = facts.condition(name)
                except (NotBoolean, KeyError):
                    continue
                parts = body.operands if isinstance(body, Or) else ()
                members = {p.name[len(prefix) : -2] for p in parts if isinstance(p, Atom) and p.name.startswith(prefix)}
                if len(members) == len(parts) >= 2:
                    found[name] = (frozenset(members), Ref(path, name))
        return found


def hides_arguments(call: ast.Call) -> bool:
    """Whether a call has arguments that are not written out (`*args`, `**kwargs`)."""
    return any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)


def by_position(helper: Helper, call: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    """(parameter, argument) of what a call of the helper is given by position; behind a `*` that is not known."""
    for name, given in zip(helper.positional, call.args, strict=False):
        if isinstance(given, ast.Starred):
            return
        yield name, given


def bind(formula: Formula, values: Mapping[str, Formula], profile: Profile) -> Formula:
    """Put values in for parameters, which are atoms, or names inside atoms that are calls."""
    if not values:
        return formula
    spellings = profile.flag_names
    by_atom = {spellings.get(name, name): value for name, value in values.items()}

    def value(name: str) -> Formula | None:
        if name in by_atom:
            return by_atom[name]
        words = re.findall(r"\w+", name) if "(" in name else ()
        given = tuple((parameter, value) for parameter, value in values.items() if parameter in words)
        return Atom(_rewritten(name, given)) if given else None

    return substitute(formula, value)


@lru_cache(maxsize=1000)
def _rewritten(text: str, given: tuple[tuple[str, Formula], ...]) -> str:
    """A call's text with parameter names replaced by constants, flags or atoms: the same ones are asked for often."""
    values = dict(given)

    class Rewriter(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            value = values.get(node.id)
            if value in (TRUE, FALSE):
                return ast.Constant(value == TRUE)
            if isinstance(value, Atom):
                return ast.parse(value.name, mode="eval").body
            return node

    return ast.unparse(Rewriter().visit(ast.parse(text, mode="eval").body))
