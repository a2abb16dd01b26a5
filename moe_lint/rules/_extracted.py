"""Reductions and additions as a function sees them that leaves them to a method or a function of their own.

One call is followed: `x = self._reduced(x)` reduces `x`, `x = self._joined(x, shared)` adds to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.callers import Callers, Edge, Frame, Instance
from moe_lint.facts import Summed
from moe_lint.facts.conduct import Addition
from moe_lint.formula import FALSE, Atom, Formula, conj
from moe_lint.index import Ref
from moe_lint.model import Span
from moe_lint.profile import matches
from moe_lint.rules.base import Context
from moe_lint.sites import Site

_WORD = re.compile(r"\b[A-Za-z_]\w*\b")
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


class Reduction(Struct, frozen=True):
    """A reduction as ``frame`` sees it: the call there that makes it or brings it about, and when it runs.

    ``target`` is the name that its result is given there.
    """

    site: Site
    frame: Frame
    span: Span
    target: str | None
    runs: Formula


def reductions(site: Site, context: Context) -> Iterator[Reduction]:
    """A site where it stands, and in the functions that call the one around it for its result."""
    home = Ref(site.path, site.raw.function)
    yield Reduction(site, _frame(home, site.raw.class_name, context), site.raw.span, site.raw.target, site.guard)
    facts = context.index.facts(site.path)
    if facts is None or home.name not in facts.functions or not _is_returned(site, context):
        return
    for path, call in context.index.calls_of(home):
        frame = _frame(Ref(path, call.function), call.class_name, context)
        for edge in context.callers.edges_to(frame, home):
            target = result_name(edge, context) if edge.call.span == call.span else None
            runs = conj((edge.target.holds, context.callers.guard(edge.target, site))) if target is not None else FALSE
            if runs != FALSE:
                yield Reduction(site, frame, call.span, target, runs)


def additions(frame: Frame, context: Context) -> Iterator[Addition]:
    """What a function adds to what, and what the functions add that it hands both to."""
    callers, shared = context.callers, context.index.profile.shared
    conduct = callers.conduct(frame.function)
    yield from conduct.additions if conduct is not None else ()
    if conduct is None or not any(_mentions(p.text, shared) for call in conduct.calls for p in call.arguments):
        return
    reducing = {(site.path, site.raw.function) for site in context.sites}
    for edge in callers.edges(frame):
        inner = callers.conduct(edge.target.function)
        there = (edge.target.function.path, edge.target.function.name)
        given = {b.parameter: b.passed.text for b in edge.bound if b.parameter is not None}
        if edge.built is not None or inner is None or there in reducing:
            continue
        for addition in inner.additions:
            target = given.get(addition.target)
            if target is not None and (edge.call.stored == "return" or result_name(edge, context) == target):
                term = _put_in(addition.term, given)
                when = conj((edge.target.holds, callers.told(edge.target, addition.condition)))
                yield replace(addition, target=target, term=term, span=edge.call.span, condition=when)


def is_shared(term: str, function: Ref, context: Context) -> bool:
    """Whether a term is the shared experts' output: by its name, or by what every caller hands the function for it."""
    index, shared = context.index, context.index.profile.shared
    if _mentions(term, shared):
        return True
    facts = index.facts(function.path)
    known = facts is not None and function.name in facts.functions
    params = set(facts.header(function.name)[1]) if facts is not None and known else set()
    asked = (params - {"self"}).intersection(_NAME.findall(term))
    if len(asked) != 1:
        return False
    given = [
        _given(Ref(path, call.function), call.span, function, context.callers)
        for path, call in index.calls_of(function)
    ]
    (name,) = asked
    return bool(given) and all(_mentions(texts.get(name, ""), shared) for texts in given)


def result_name(edge: Edge, context: Context) -> str | None:
    """The name that a function gives to what a call returns."""
    function = edge.frame.function
    facts = context.index.facts(function.path)
    return facts.result_name(function.name, edge.call.span) if facts is not None else None


def _given(function: Ref, span: Span, target: Ref, callers: Callers) -> dict[str, str]:
    """Parameter -> the text that a call hands over for it."""
    conduct = callers.conduct(function)
    calls = (call for call in conduct.calls if call.span == span) if conduct is not None else ()
    bound = (b for call in calls for b in callers.bind(call, target, skip_first="." in target.name))
    return {b.parameter: b.passed.text for b in bound if b.parameter is not None}


def _put_in(text: str, given: dict[str, str]) -> str:
    return _NAME.sub(lambda match: given.get(match.group(), match.group()), text)


def _mentions(text: str, patterns: tuple[str, ...]) -> bool:
    return any(matches(word, patterns) for word in _WORD.findall(text))


def _is_returned(site: Site, context: Context) -> bool:
    """Whether the function around a site returns what that summed."""
    facts = context.index.facts(site.path)
    exits = facts.paths(site.raw.function).exits if facts is not None else ()
    return any(Summed(site.raw.span) in origins for out in exits for origins in out.elements)


def _frame(function: Ref, class_name: str | None, context: Context) -> Frame:
    """A function by itself: whatever flags are published around it."""
    flags = tuple(sorted((flag.name, Atom(flag.name)) for flag in context.index.profile.flags))
    instance = Instance(Ref(function.path, class_name)) if class_name is not None else None
    return Frame(function, instance, context=flags)
