"""Predicates other than the helper: a guard that asks one is judged by what it answers.

`not self._skip_all_reduce(fuse, scatter)` is the same hand-written guard as the conditions that the method returns, and
who asks a function that asks the helper asks the helper.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping

from msgspec.structs import replace

from moe_lint.expressions import FormulaBuilder, dotted
from moe_lint.facts import GuardPart, RawSite
from moe_lint.formula import FALSE, TRUE, Formula, atom_set, substitute
from moe_lint.helper import find_definition, is_skip_predicate
from moe_lint.index import ProjectIndex, Ref
from moe_lint.policy import bind
from moe_lint.remembered import remembered

_CALL = re.compile(r"^[A-Za-z_][\w.]*\(.*\)$")
#: What may be a property of the site's class.
_OWN = re.compile(r"^self\.\w+$")
#: How many predicates deep a guard is opened.
_DEPTH = 3


def opened(raw: RawSite, path: str, index: ProjectIndex) -> RawSite:
    """The site with each call of a predicate, or property, that its class or file knows replaced by what that returns.

    Only those that name a skip reason or ask the helper are opened; whatever else a guard calls, and what the helper
    itself asks, stays as written.
    """
    if not any(_CALL.match(name) or _OWN.match(name) for part in raw.guard for name in atom_set(part.formula)):
        return raw

    def part(old: GuardPart) -> GuardPart:
        operands = tuple((text, meaning(formula, raw.class_name, path, index)) for text, formula in old.operands)
        return replace(old, formula=meaning(old.formula, raw.class_name, path, index), operands=operands)

    return replace(raw, guard=tuple(part(old) for old in raw.guard))


def meaning(formula: Formula, class_name: str | None, path: str, index: ProjectIndex) -> Formula:
    """A condition of a class with such predicates opened."""
    return _opened(formula, lambda atom: _meaning(index, atom, class_name, path))


def answered(formula: Formula, class_name: str | None, path: str, index: ProjectIndex) -> Formula:
    """A condition of a class with every question to the class itself opened, whatever it is about."""
    return _opened(formula, lambda atom: _answer(index, atom, class_name, path))


def _opened(formula: Formula, answer: Callable[[str], Formula | None]) -> Formula:
    """A condition with what is known of its parts put in, and of the parts of that."""
    for _ in range(_DEPTH):
        found = substitute(formula, answer)
        if found == formula:
            break
        formula = found
    return formula


@remembered
def _answer(index: ProjectIndex, atom: str, class_name: str | None, path: str) -> Formula | None:
    call = ast.parse(atom, mode="eval").body if atom.startswith("self.") and _CALL.match(atom) else None
    ref = _definition(call, class_name, path, index) if isinstance(call, ast.Call) else None
    body = index.condition(ref) if ref is not None else None
    if ref is None or body is None or not isinstance(call, ast.Call):
        return None
    return _told(call, body, ref, index)


@remembered
def _meaning(index: ProjectIndex, atom: str, class_name: str | None, path: str) -> Formula | None:
    if _OWN.match(atom):
        return _property(index, atom, class_name, path)
    if not _CALL.match(atom) or is_skip_predicate(atom, index.profile):
        return None
    call = ast.parse(atom, mode="eval").body
    ref = _definition(call, class_name, path, index) if isinstance(call, ast.Call) else None
    facts = index.facts(ref.path) if ref is not None else None
    if ref is None or facts is None or not isinstance(call, ast.Call):
        other = _renamed(call, path, index) if isinstance(call, ast.Call) else None
        return None if other is None else FormulaBuilder(index.profile).build(other)
    body = index.condition(ref)
    if body is None or not (any(_is_reason(name, index) for name in atom_set(body)) or _takes_flag(call, index)):
        return None
    if ref.path != path and _is_half(ref, index):
        return None
    return _told(call, body, ref, index)


def _told(call: ast.Call, body: Formula, ref: Ref, index: ProjectIndex) -> Formula | None:
    """What a predicate answers to a call."""
    facts = index.facts(ref.path)
    assert facts is not None  # it has a body
    _, params, defaults = facts.header(ref.name)
    values = _values(call, [name for name in params if name != "self"], defaults, index)
    return None if values is None else bind(body, values, index.profile)


def _property(index: ProjectIndex, atom: str, class_name: str | None, path: str) -> Formula | None:
    """What a property of the class answers, if that is a skip reason: one of more than one statement, or inherited."""
    name = atom[5:]
    ref = index.method(Ref(path, class_name), name) if class_name is not None else None
    facts = index.facts(ref.path) if ref is not None else None
    if ref is None or facts is None or name not in facts.classes[ref.name.rpartition(".")[0]].properties:
        return None
    body = index.condition(ref)
    return body if body is not None and any(_is_reason(asked, index) for asked in atom_set(body)) else None


def _definition(call: ast.Call, class_name: str | None, path: str, index: ProjectIndex) -> Ref | None:
    """The method of the site's class, or the function, that a call means."""
    owner, _, name = (dotted(call.func) or "").rpartition(".")
    if not name or name in index.profile.helpers or name in index.profile.wrappers:
        return None
    if owner == "self":
        return index.method(Ref(path, class_name), name) if class_name is not None else None
    # the name of a condition leaves out of what module or class it is asked
    owners = [owner] if owner else ["", *_asked_of(name, path, index)]
    refs = (index.resolve(path, f"{one}.{name}".lstrip(".")) for one in dict.fromkeys(owners))
    return next(filter(None, refs), None)


def _asked_of(name: str, path: str, index: ProjectIndex) -> Iterator[str]:
    """What a file calls a function or method of that name on."""
    if path in index.texts and index.lines_of(path, f".{name}("):
        yield from index.texts[path].finds(rf"([\w.]+)\.{name}\(")


def _renamed(call: ast.Call, path: str, index: ProjectIndex) -> ast.Call | None:
    """The call that one of another name for a predicate means: `skip = helper`, `skip = partial(helper, axis=…)`."""
    name = dotted(call.func) or ""
    value = _assigned(name, path, index) if name.isidentifier() and name not in index.profile.helpers else None
    if isinstance(value, ast.Call) and (dotted(value.func) or "").rpartition(".")[2] == "partial" and value.args:
        given = {keyword.arg for keyword in call.keywords}
        kept = [keyword for keyword in value.keywords if keyword.arg not in given]
        return ast.Call(value.args[0], [*value.args[1:], *call.args], [*kept, *call.keywords])
    return ast.Call(value, call.args, call.keywords) if isinstance(value, ast.Name | ast.Attribute) else None


def _assigned(name: str, path: str, index: ProjectIndex) -> ast.expr | None:
    """What the top level of a file, or of the one that it has the name from, assigns to a name."""
    for _ in range(_DEPTH):
        facts = index.facts(path)
        if facts is None:
            return None
        local = next((local for local, original in facts.aliases.items() if original == name), name)
        module, original = facts.imports.get(local, ("", None))
        target = index.module_path(module, path) if original is not None else None
        if original is None or target is None:
            found = facts.finds("", rf"^{name} = ([\w.]+(?:\([^()]*\))?)[ \t]*$")
            try:
                return ast.parse(found[0], mode="eval").body if found else None
            except SyntaxError:  # the line of a text in quotes
                return None
        path, name = target, original
    return None


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


def _is_half(ref: Ref, index: ProjectIndex) -> bool:
    """Whether a function is one that the helper asks: a condition of its own, of which flags the layer publishes."""
    helper = next((r for name in index.profile.helpers if (r := find_definition(index, name)) is not None), None)
    body = index.condition(helper) if helper is not None else None
    if helper is None or body is None:
        return False
    return any(index.resolve(helper.path, name.partition("(")[0]) == ref for name in atom_set(body) if "(" in name)


def _is_reason(name: str, index: ProjectIndex) -> bool:
    profile = index.profile
    called = name.partition("(")[0]
    return name in profile.flag_names or is_skip_predicate(name, profile) or called in profile.helpers


def _takes_flag(call: ast.Call, index: ProjectIndex) -> bool:
    names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
    return bool(names & index.profile.flag_names.keys())
