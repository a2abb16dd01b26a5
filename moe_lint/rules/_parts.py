"""The layers that a block builds and that could sum for themselves: its experts, its shared experts, its projections.

Whether such a layer sums is the block's choice, by a keyword of its constructor (`reduce_results=`) or by the default
that the constructor has for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from moe_lint.callers import Built, Callers
from moe_lint.facts import Call, CallResult, Passed
from moe_lint.formula import FALSE, TRUE, Atom, Formula, atom_set, disj, replace_atoms
from moe_lint.index import Ref
from moe_lint.model import Finding, Related
from moe_lint.remembered import remembered
from moe_lint.rules.base import Rule

#: How many classes down from a block the layer that sums is looked for.
_DEPTH = 2


class Part(Struct, frozen=True):
    """What ``self.attribute`` of class ``owner`` is built as.

    ``sums`` is whether it was made to sum over the ranks, ``by`` why (a keyword, or the class that does so by itself);
    None where that is not known. ``whole`` is when it is replicated: built for a group of one rank, as far as that can
    be seen; all of it where it is ``certain``.
    """

    owner: Ref
    path: str
    call: Call
    attribute: str
    sums: bool | None
    by: str
    whole: Formula
    certain: bool

    @property
    def explicit(self) -> bool:
        """Whether a keyword of the call says who sums."""
        return self.by.endswith(("=True", "=False"))


def quoted(why: str) -> str:
    """What a part is built with, as messages tell it: an argument is code, anything else is prose."""
    return f"`{why}`" if "=" in why else why


def at_part(rule: Rule, part: Part, message: str, remedy: str, related: tuple[Related, ...] = ()) -> Finding:
    """A finding where a part is built."""
    return Finding(
        rule.code,
        rule.name,
        part.path,
        part.call.span,
        rule.severity,
        rule.confidence,
        message,
        "__init__",
        part.owner.name,
        related=related,
        remedy=remedy,
    )


def parts(callers: Callers, owner: Ref, asked: Callable[[str], bool] = lambda attribute: True) -> Iterator[Part]:
    """The layers that a class's own constructor builds, in attributes that are asked for."""
    for attribute, call in constructed(callers, owner):
        if asked(attribute):
            yield part_of(callers, owner, attribute, call)


def constructed(callers: Callers, owner: Ref) -> Iterator[tuple[str, Call]]:
    """(attribute, call) of what a class's own constructor makes and keeps."""
    conduct = callers.conduct(Ref(owner.path, f"{owner.name}.__init__"))
    for call in conduct.calls if conduct is not None else ():
        if call.stored not in (None, "return") and call.condition != FALSE:
            yield call.stored, call


@remembered
def part_of(callers: Callers, owner: Ref, attribute: str, call: Call) -> Part:
    """What a class builds by a call."""
    sums, by = _sums(callers, owner, call)
    return Part(owner, owner.path, call, attribute, sums, by, *_whole(callers, owner, call))


def told(call: Call, reducing: tuple[str, ...]) -> Passed | None:
    """The argument that says whether a layer is to sum."""
    return next((passed for passed in call.arguments if passed.keyword in reducing), None)


def _sums(callers: Callers, owner: Ref, call: Call) -> tuple[bool | None, str]:
    reducing = callers.index.profile.reducing
    passed = told(call, reducing)
    if passed is not None:
        return passed.literal, f"{passed.keyword}={passed.text}"
    if any(passed.hides and (passed.given is None or _names(passed.given, reducing)) for passed in call.arguments):
        return None, ""
    built = [b for b in callers.built(owner).get(call.stored or "", ()) if b.call.span == call.span]
    answers = {sums_by_default(callers, b) for b in built or _chosen(callers, owner, call)}
    return answers.pop() if len(answers) == 1 else (None, "")


def _chosen(callers: Callers, owner: Ref, call: Call) -> Iterator[Built]:
    """What a call of a function's result builds, `chosen(config)(…)`: the class from which all that it may be derive.

    What the others add to that is for a kernel or an a2a backend of their own.
    """
    index = callers.index
    choice = index.resolve(owner.path, call.callee.removesuffix("()")) if call.callee.endswith("()") else None
    facts = index.facts(choice.path) if choice is not None else None
    if choice is None or facts is None or choice.name not in facts.functions:
        return
    names = facts.first_returned(choice.name)
    classes = {index.resolve(choice.path, name) if name is not None else None for name in names}
    for one in classes:
        if one is not None and all(other is not None and one in index.mro(other) for other in classes):
            yield Built(owner.path, call.stored or "", call, one, call.condition)


def sums_by_default(callers: Callers, built: Built, depth: int = 0) -> tuple[bool | None, str]:
    """Whether a layer sums that was not told whether to: by its constructor's default, or in a layer of its own.

    What makes it may be a function as well.
    """
    index, home = callers.index, callers.index.facts(built.owner.path)
    made = home is not None and built.owner.name in home.functions
    constructor = built.owner if made else index.method(built.owner, "__init__")
    facts = index.facts(constructor.path) if constructor is not None else None
    if constructor is None or facts is None:
        return None, ""
    _, params, defaults = facts.header(constructor.name)
    for name in index.profile.reducing:
        if name in params:
            given = any(bound.parameter == name for bound in callers.bind(built.call, constructor, skip_first=not made))
            changed = facts.stores(constructor.name, name)
            return (None, "") if given or changed else (defaults.get(name), f"the default of `{built.owner.name}`")
    forward = index.method(built.owner, "forward")
    body = index.function(forward) if forward is not None else None
    if body is None or depth >= _DEPTH:
        return None, ""
    last = {_last_layer(origins) for elements in body.returns for origins in elements[:1]}
    inner = callers.built(built.owner).get(next(iter(last)) or "", ()) if len(last) == 1 else ()
    answers = {_told(callers, one, depth) for one in inner}
    return answers.pop() if len(answers) == 1 else (None, "")


def _told(callers: Callers, built: Built, depth: int) -> tuple[bool | None, str]:
    passed = told(built.call, callers.index.profile.reducing)
    if passed is not None:
        return passed.literal, f"`self.{built.attribute}` of its class"
    if any(passed.hides for passed in built.call.arguments):
        return None, ""
    return sums_by_default(callers, built, depth + 1)


def _last_layer(origins: frozenset[object]) -> str | None:
    """The attribute whose output a value is, where it is that of one layer; what a gate weighs is not the gate's."""
    names = {o.callee[5:] for o in origins if isinstance(o, CallResult) and o.callee.startswith("self.")}
    layers = {name for name in names if len(names) == 1 or "gate" not in name}
    return layers.pop() if len(layers) == 1 and len(names) == len(origins) else None


def _whole(callers: Callers, owner: Ref, call: Call) -> tuple[Formula, bool]:
    """When a layer is built whole on every rank, and whether that is all of it."""
    profile = callers.index.profile
    hidden = any(passed.hides and passed.given is None for passed in call.arguments)
    built = [b for b in callers.built(owner).get(call.stored or "", ()) if b.call.span == call.span]
    inside = {_whole_inside(callers, one) for one in built}
    known = inside.pop() if len(inside) == 1 and not hidden else None
    if known is not None and known != FALSE:
        return known, True  # by whatever parameter the class asks for it
    alone: list[Formula] = []
    for passed in call.arguments:
        if passed.keyword is not None and profile.is_size(passed.keyword) and passed.text == "1":
            alone.append(TRUE)
        if passed.keyword in profile.replicating and passed.formula is not None:
            alone.append(passed.formula)  # `disable_tp=self.replicated`
        alone += [when for name, text, when in passed.given or () if profile.is_size(name) and text == "1"]
    return disj(alone), known is not None


def _whole_inside(callers: Callers, built: Built) -> Formula | None:
    """When the layer that a class returns the output of is built whole, in terms of who builds the class.

    None where that is not known.
    """
    index, keywords = callers.index, callers.index.profile.replicating
    holders = [(index.facts(ref.path), ref.name) for ref in index.mro(built.owner)]
    known = [(facts, name) for facts, name in holders if facts is not None and name in facts.classes]
    if not any(facts.holds(name, word) for word in keywords for facts, name in known):
        return FALSE if known else None
    constructor, forward = index.method(built.owner, "__init__"), index.method(built.owner, "forward")
    conduct = callers.conduct(constructor) if constructor is not None else None
    body = index.function(forward) if forward is not None else None
    if constructor is None or conduct is None or body is None:
        return None
    last = {_last_layer(origins) for elements in body.returns for origins in elements[:1]}
    calls = [c for c in conduct.calls if c.stored in last]
    whole = [p.formula for c in calls for p in c.arguments if p.keyword in keywords and p.formula is not None]
    if len(whole) != 1 or len(last) != 1:
        return None
    given = dict(callers.values(constructor, callers.bind(built.call, constructor, skip_first=True)))
    # what the class works out for itself is not known to who builds it
    own = {name: Atom(f"{built.owner.name}.{name}") for name in atom_set(whole[0]) - given.keys()}
    return replace_atoms(whole[0], {**own, **given})


def _names(given: tuple[tuple[str, str, Formula], ...], names: tuple[str, ...]) -> bool:
    return any(name in names for name, _, _ in given)
