"""Predicates that a model keeps for itself: a guard that asks one is judged by what it answers.

`not self._skip_all_reduce(fuse, scatter)` is the same hand-written guard as the conditions that the method returns.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from msgspec.structs import replace

from moe_lint.expressions import FormulaBuilder, NotBoolean
from moe_lint.facts import GuardPart, RawSite
from moe_lint.formula import FALSE, TRUE, Formula, atom_set, substitute
from moe_lint.index import ProjectIndex, Ref
from moe_lint.policy import bind, is_skip_predicate

_CALL = re.compile(r"^(?:self\.)?[A-Za-z_]\w*\(.*\)$")
#: How many predicates deep a guard is opened.
_DEPTH = 3


def opened(raw: RawSite, path: str, index: ProjectIndex) -> RawSite:
    """The site with each call of a predicate of its own class or file replaced by what that returns.

    Only those that name a skip reason or ask the helper are opened; whatever else a guard calls stays as written.
    """
    if not any(_CALL.match(name) for part in raw.guard for name in atom_set(part.formula)):
        return raw

    def part(old: GuardPart) -> GuardPart:
        operands = tuple((text, meaning(formula, raw.class_name, path, index)) for text, formula in old.operands)
        return replace(old, formula=meaning(old.formula, raw.class_name, path, index), operands=operands)

    return replace(raw, guard=tuple(part(old) for old in raw.guard))


def meaning(formula: Formula, class_name: str | None, path: str, index: ProjectIndex) -> Formula:
    """A condition of a class with such predicates opened."""
    for _ in range(_DEPTH):
        found = substitute(formula, lambda atom: _meaning(atom, class_name, path, index))
        if found == formula:
            break
        formula = found
    return formula


def _meaning(atom: str, class_name: str | None, path: str, index: ProjectIndex) -> Formula | None:
    if not _CALL.match(atom) or is_skip_predicate(atom, index.profile):
        return None
    call = ast.parse(atom, mode="eval").body
    ref = _definition(call, class_name, path, index) if isinstance(call, ast.Call) else None
    facts = index.facts(ref.path) if ref is not None else None
    if ref is None or facts is None or not isinstance(call, ast.Call):
        return None
    try:
        body = facts.condition(ref.name)
    except NotBoolean:
        return None
    if not any(_is_reason(name, index) for name in atom_set(body)) and not _takes_flag(call, index):
        return None
    _, params, defaults = facts.header(ref.name)
    values = _values(call, [name for name in params if name != "self"], defaults, index)
    return None if values is None else bind(body, values, index.profile)


def _definition(call: ast.Call, class_name: str | None, path: str, index: ProjectIndex) -> Ref | None:
    """The method of the site's class, or the function of its file, that a call means."""
    function = call.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    if not name or name in index.profile.helpers or name in index.profile.wrappers:
        return None
    if isinstance(function, ast.Attribute):
        return index.method(Ref(path, class_name), name) if class_name is not None else None
    facts = index.facts(path)
    return Ref(path, name) if facts is not None and name in facts.functions else None


def _values(
    call: ast.Call, params: list[str], defaults: Mapping[str, bool | None], index: ProjectIndex
) -> dict[str, Formula] | None:
    """Parameter -> what the call passes; None where that cannot be told."""
    builder = FormulaBuilder(index.profile)
    values: dict[str, Formula] = {name: TRUE if default else FALSE for name, default in defaults.items()}
    if len(call.args) > len(params) or any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    values |= {name: builder.build(given) for name, given in zip(params, call.args, strict=False)}
    for keyword in call.keywords:
        if keyword.arg is None:
            return None
        values[keyword.arg] = builder.build(keyword.value)
    return values if set(params) <= values.keys() else None


def _is_reason(name: str, index: ProjectIndex) -> bool:
    profile = index.profile
    called = name.partition("(")[0]
    return name in profile.flag_names or is_skip_predicate(name, profile) or called in profile.helpers


def _takes_flag(call: ast.Call, index: ProjectIndex) -> bool:
    names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    return bool(names & index.profile.flag_names.keys())
