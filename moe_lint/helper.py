"""The tree's helper: where it is, its signature and its body, read from the tree under judgement.

A tree without a helper is judged against the one that `moe-lint init` would add, built from the skip reasons that the
tree's own guards use.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import PurePath

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.expressions import NotBoolean
from moe_lint.formula import Atom, Formula, conj, disj, substitute
from moe_lint.index import ProjectIndex, Ref
from moe_lint.model import Axis, Problem, SkipReason
from moe_lint.profile import Profile, matches


class Helper(Struct, frozen=True):
    """The central predicate of a tree.

    ``flags`` maps each of its parameters that is a layer-context flag to the flag's name. ``skips`` is its value as a
    formula over its parameters and the predicates it calls.
    """

    name: str
    path: str
    line: int
    axis_parameter: str | None
    flags: tuple[tuple[str, str], ...]
    defaults: tuple[tuple[str, bool], ...]
    skips: Formula
    #: the class whose method it is; None for a function
    owner: str | None = None
    #: of a method: the class or the call that the tree asks (`get_parallel()`), and where that is defined
    asked_of: tuple[str, Ref] | None = None
    #: `moe-lint init` would write it; the tree has none yet
    proposed: bool = False
    #: its parameters that may be given by position, in order; of a proposed one, nobody does
    positional: tuple[str, ...] = ()
    #: its parameters that are neither the axis nor a flag, and those of them without a default
    others: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    @property
    def itself(self) -> str:
        """What `self` is called in its body: its reasons are told that way."""
        return self.asked_of[0] if self.asked_of is not None else self.owner or ""


def find_function(index: ProjectIndex, name: str) -> Ref | None:
    """The module-level function of that name; among several, the one outside tests with the shortest path."""
    pattern = rf"^def {re.escape(name)}\("
    found = [path for path in index.holding(f"def {name}(") if index.texts[path].finds(pattern)]
    found.sort(key=lambda path: (_is_test(path), len(path), path))
    for path in found:
        facts = index.facts(path)
        if facts is not None and name in facts.functions:
            return Ref(path, name)
    return None


def _is_test(path: str) -> bool:
    return any("test" in part for part in PurePath(path).parts)


def find_definition(index: ProjectIndex, name: str) -> Ref | None:
    """The function of that name, or else the method: an override in a subclass is not the definition."""
    found = find_function(index, name)
    if found is not None:
        return found
    pattern = rf"^[ \t]+def {re.escape(name)}\("
    methods = [
        Ref(path, method)
        for path in index.holding(f"def {name}(")
        if index.texts[path].finds(pattern) and (facts := index.facts(path)) is not None
        for method in facts.nested(name)
        if method in facts.functions and method.removesuffix(f".{name}") in facts.classes
    ]
    classes = {Ref(ref.path, ref.name.rpartition(".")[0]) for ref in methods}
    roots = [ref for ref in methods if not classes & set(index.mro(Ref(ref.path, ref.name.rpartition(".")[0]))[1:])]
    return min(roots or methods, key=lambda ref: (_is_test(ref.path), len(ref.path), ref), default=None)


def read_helper(index: ProjectIndex) -> tuple[Helper | None, tuple[Problem, ...]]:
    """The helper of a tree, or the problem that keeps it from being understood, or neither when there is none."""
    profile = index.profile
    ref = next((r for name in profile.helpers if (r := find_definition(index, name)) is not None), None)
    facts = index.facts(ref.path) if ref is not None else None
    if ref is None or facts is None:
        return None, ()
    owner, _, name = ref.name.rpartition(".")
    line, params, defaults = facts.header(ref.name)
    renamed = _renamed_flags(index, ref, params)
    flags = tuple((p, flag) for p in params if (flag := renamed.get(p) or profile.flag_names.get(p)) is not None)
    axis = profile.axis_parameter if profile.axis_parameter in params else None
    try:
        skips = facts.condition(ref.name)
    except NotBoolean as error:
        message = f"`{name}` is not a boolean function: {error.what}; guards cannot be compared with it"
        return None, (Problem(SkipReason.HELPER_NOT_BOOLEAN, ref.path, error.line, message),)
    skips = substitute(skips, lambda atom: Atom(renamed[atom]) if atom in renamed else None)
    given = [p for p in params if not (owner and p in ("self", "cls"))]
    others = tuple(p for p in given if p != axis and p not in dict(flags))
    helper = Helper(
        name,
        ref.path,
        line,
        axis,
        flags,
        tuple((p, d) for p, d in defaults.items() if d is not None),
        skips,
        owner or None,
        _asked_of(index, name) if owner else None,
        positional=tuple(p for p in given if p not in facts.keyword_only(ref.name)),
        others=others,
        required=tuple(p for p in others if p not in defaults),
    )
    return replace(helper, skips=told_of(skips, helper.itself, "self") if owner else skips), ()


def _renamed_flags(index: ProjectIndex, helper: Ref, params: Collection[str]) -> dict[str, str]:
    """Parameter of the helper -> the flag that the tree hands it there under another name (`fuse=should_fuse`)."""
    profile = index.profile
    others = [p for p in params if p not in profile.flag_names and p not in (profile.axis_parameter, "self")]
    handed = [a for _, call in index.calls_of(helper) for a in call.arguments] if others else []
    told = {p: {profile.flag_names.get(a.text) for a in handed if a.keyword == p and a.literal is None} for p in others}
    found = {p: flag for p, (flag, *more) in ((p, [*f]) for p, f in told.items() if f) if flag is not None and not more}
    own = [profile.flag_names[p] for p in params if p in profile.flag_names] + [*found.values()]
    return {p: flag for p, flag in found.items() if own.count(flag) == 1}


def _asked_of(index: ProjectIndex, method: str) -> tuple[str, Ref] | None:
    """The class, or the call of a function, of which most of a tree asks a method; None if it asks objects at hand."""
    pattern = re.compile(rf"(?<![\w.)])([A-Za-z_][\w.]*)(\(\))?\.{re.escape(method)}\(")
    found: Counter[tuple[str, Ref]] = Counter()
    places = {(path, line) for path in index.holding(f".{method}(") for line in index.lines_of(path, f".{method}(")}
    for path, line in sorted(places):
        for receiver, call in pattern.findall(index.line(path, line)):
            ref = index.resolve(path, receiver)
            if ref is not None and "." not in ref.name:
                found[f"{ref.name}{call}", ref] += 1
    return min(found, key=lambda one: (-found[one], one), default=None)


def is_skip_predicate(atom: str, profile: Profile) -> bool:
    """Whether an atom is a call of a skip predicate by the profile's naming."""
    name, _, rest = atom.partition("(")
    return rest == ")" and name.isidentifier() and matches(name, profile.skip_predicates)


def propose_helper(
    index: ProjectIndex, used: Iterable[tuple[Axis, str]], combined: Collection[str] = ()
) -> Helper | None:
    """The helper that `moe-lint init` would add, from the skip atoms that the guards of each axis use.

    None when there is no reason to skip for: no flag in the profile and no predicate in a guard.

    A predicate that only TP-axis guards name is taken to concern the TP path only, if the tree has EP-axis guards
    that could have named it. The layer-context flags concern both, and so do the predicates in ``combined``: where they
    hold, what comes out of the experts is whole already.
    """
    profile = index.profile
    seen: dict[str, set[Axis]] = {}
    axes: set[Axis] = set()
    for axis, atom in used:
        axes.add(axis)
        if is_skip_predicate(atom, profile):
            seen.setdefault(atom, set()).add(axis)
    parameter = profile.axis_parameter or None
    parts: list[Formula] = [Atom(flag.name) for flag in profile.flags]
    for atom in sorted(seen):
        tp_only = seen[atom] == {"TP"} and "EP" in axes and parameter is not None and atom not in combined
        parts.append(conj((Atom(parameter or ""), Atom(atom))) if tp_only else Atom(atom))
    if not parts:
        return None
    return Helper(
        profile.helper,
        _home_of(index, sorted(seen)),
        0,
        parameter,
        tuple((flag.name, flag.name) for flag in reversed(profile.flags)),
        tuple((flag.name, False) for flag in reversed(profile.flags)),
        disj(parts),
        proposed=True,
    )


def _home_of(index: ProjectIndex, predicates: list[str]) -> str:
    """The file that defines most of the skip predicates: the helper belongs beside them."""
    names = [atom[: atom.index("(")] for atom in predicates]
    found = [ref for name in names if (ref := find_function(index, name)) is not None]
    # a file of predicates alone may hold no other word of the engine: where they are asked, they are imported
    found = found or [ref for name in names if (ref := _imported(index, name)) is not None]
    homes = Counter(ref.path for ref in found)
    return min(homes, key=lambda path: (-homes[path], path)) if homes else ""


def _imported(index: ProjectIndex, name: str) -> Ref | None:
    """The function that a file of the tree calls by this name."""
    calling = sorted(index.holding(f"{name}("))
    return next((ref for path in calling if (ref := index.resolve(path, name)) is not None), None)


def told_of(formula: Formula, owner: str, receiver: str) -> Formula:
    """The formula with ``receiver`` (`self`, `self.experts`) called by the class it is an instance of."""
    pattern = re.compile(rf"(?<![\w.]){re.escape(receiver)}\.(?=\w)")
    return substitute(
        formula, lambda name: Atom(pattern.sub(f"{owner}.", name)) if pattern.search(name) is not None else None
    )
