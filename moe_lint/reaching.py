"""What the callers of a method have made sure of before they call it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from moe_lint.formula import TRUE, Formula, conj, disj
from moe_lint.index import ProjectIndex, Ref

#: How many calls up conditions are looked for.
_DEPTH = 3


def reaching(index: ProjectIndex, function: Ref, class_name: str | None, depth: int = 0) -> Formula:
    """What holds at every call of a method or function: TRUE unless each of its calls was read.

    Those of a method must be by its own class. ``if not skip(): x = self._reduce(x)`` guards the reduction in
    `_reduce` as well as if it stood there.
    """
    short = function.name.rsplit(".", 1)[-1]
    if depth >= _DEPTH or short in ("forward", "__call__"):
        return TRUE
    calls = {(path, call.span): call for path, call in index.calls_of(function)}
    if not calls or len(calls) != _called(index, function, class_name):
        return TRUE
    conditions = []
    for (path, span), call in calls.items():
        facts = index.facts(path)
        if facts is None or call.function not in facts.functions:
            return TRUE
        above = reaching(index, Ref(path, call.function), call.class_name, depth + 1)
        conditions.append(conj((facts.call_condition(call.function, span), above)))
    return disj(conditions)


def handed_flags(index: ProjectIndex, function: Ref, class_name: str | None) -> dict[str, str]:
    """Flag -> the parameter under which a method or function takes it: every call of it hands it that flag.

    ``def _reduce(self, x, fuse)``, called as ``self._reduce(x, should_allreduce_fusion)``.
    """
    short, facts, flags = function.name.rsplit(".", 1)[-1], index.facts(function.path), index.profile.flag_names
    if facts is None or short in ("forward", "__call__"):
        return {}
    _, params, _ = facts.header(function.name)
    calls = {(path, call.span): call for path, call in index.calls_of(function)}
    if not calls or len(calls) != _called(index, function, class_name):
        return {}
    order = [name for name in params if name != "self" and name not in facts.keyword_only(function.name)]
    told: dict[str, set[str | None]] = {}
    for call in calls.values():
        given = zip(order, (a.text for a in call.arguments if a.keyword is None), strict=False)
        passed = dict(given) | {a.keyword: a.text for a in call.arguments if a.keyword is not None}
        for name in params:
            told.setdefault(name, set()).add(flags.get(passed.get(name, "")))
    own = {flags[name] for name in params if name in flags}
    found = [(flag, name) for name, (flag, *others) in told.items() if flag is not None and not others]
    named = {flag: name for flag, name in found if flag not in own}
    return named if len(named) == sum(flag not in own for flag, _ in found) else {}  # two of one flag: which is asked?


def _called(index: ProjectIndex, function: Ref, class_name: str | None) -> int | None:
    """How often a method or function is called; None when it may be in a way that is not looked for."""
    module_level = "." not in function.name
    return _uses(index, function.name) if module_level else _count(index, function, class_name)


def _uses(index: ProjectIndex, name: str) -> int | None:
    """How often a module-level function is called, its imports aside; None when it is named in any other way."""
    count = 0
    for path in index.holding(name):
        if index.lines_that(path, f"name {name} and do not call it", partial(_naming, index, path, name)):
            return None
        count += len(index.lines_that(path, f"call {name}", partial(_calling, index, path, name)))
    return count


def _calling(index: ProjectIndex, path: str, name: str) -> Iterator[int]:
    """The line of each call of a function by its name."""
    call = re.compile(rf"(?<![\w.])(?<!def ){re.escape(name)}\(")
    for line in dict.fromkeys(index.lines_of(path, name, whole=True)):
        yield from (line for _ in call.finditer(index.line(path, line)))


def _naming(index: ProjectIndex, path: str, name: str) -> Iterator[int]:
    """The lines that name a function for something else than a call, an import or `__all__`."""
    call = re.compile(rf"(?<![\w.]){re.escape(name)}\(")
    for line in dict.fromkeys(index.lines_of(path, name, whole=True)):
        text = index.line(path, line).strip()
        # alone on its line, it is part of an import or of `__all__`
        if not call.search(text) and not text.startswith(("from ", "import ")) and text.strip("\"',") != name:
            yield line


def _count(index: ProjectIndex, function: Ref, class_name: str | None) -> int | None:
    """How often a function is named, its definition aside; None when it can be named where it is not looked for."""
    outer, _, short = function.name.rpartition(".")
    facts = index.facts(function.path)
    if facts is not None and outer in facts.functions:  # a function inside a function is known there only
        return len(re.findall(rf"{re.escape(short)}(?<![\w.]{re.escape(short)})(?!\w)", facts.function_text(outer))) - 1
    return _mentions(index, Ref(function.path, class_name), short) if class_name is not None else None


def _mentions(index: ProjectIndex, owner: Ref, name: str) -> int | None:
    """How often a method is called by its own class and the classes derived from it; None when it is used elsewhere."""
    count = 0
    for ref in dict.fromkeys((owner, *index.subclasses(owner))):
        facts = index.facts(ref.path)
        calls = facts.own_calls(ref.name, name) if facts is not None and ref.name in facts.classes else 0
        if calls is None:
            return None
        count += calls
    foreign = any(
        index.lines_that(path, f"name {name} of another object", partial(_foreign, index, path, name))
        for path in index.holding(name)
    )
    return None if foreign else count


def _foreign(index: ProjectIndex, path: str, name: str) -> Iterator[int]:
    """The lines that name a method of something else than `self` and `super()`."""
    receivers = re.compile(rf"([\w\])]+)\.{re.escape(name)}(?!\w)")
    for line in dict.fromkeys(index.lines_of(path, name, whole=True)):
        if any(receiver not in ("self", ")") for receiver in receivers.findall(index.line(path, line))):
            yield line
