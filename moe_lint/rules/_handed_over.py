"""What becomes of shared experts that a block hands to its experts: who runs them there, and when it sums.

The contract is the tree's own. Whoever takes the shared experts (the experts' class, the runner that it builds, a
class that is named beside them) is looked at for reductions of what they return; so is the block, which may sum behind
the experts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from msgspec import Struct

from moe_lint.callers import Callers
from moe_lint.dataflow import SharedOutput, Where
from moe_lint.facts import Call, Passed
from moe_lint.formula import FALSE, TRUE, Formula, assign, atom_set, conj, replace_atoms
from moe_lint.index import Ref
from moe_lint.reaching import reaching
from moe_lint.rules._parts import Part
from moe_lint.rules.base import Context
from moe_lint.sites import Site

#: How many calls down from the experts' constructor whoever runs the shared experts is looked for.
_DEPTH = 4
_WORD = re.compile(r"\b[A-Za-z_]\w*\b")
#: What an object asks of itself, or of what it holds: `self.config.is_sequence_parallel`. A guard that asks the helper
#: says the class's name in place of `self`.
_OWN = re.compile(r"(?:self|[A-Z]\w*)(?:\.\w+)+$")


class HandedOver(Struct, frozen=True):
    """Shared experts, the call that takes them, when it does, and what it was told beside them.

    ``told`` maps keywords of that call to their truth values in the block's terms, defaults put in.
    """

    part: Part
    call: Call
    when: Formula
    told: Mapping[str, Formula]
    takers: tuple[Ref, ...]
    #: classes that the call names and that may run the shared experts in place of a taker
    others: tuple[Ref, ...]


class SumOver(Struct, frozen=True):
    """A reduction of what shared experts return: when it runs, in the block's terms; ``by`` is who makes it.

    ``told`` is what it asks for that the block has told the experts; what the block asks itself, where it is its own.
    """

    site: Site
    runs: Formula
    by: Ref
    told: tuple[Formula, ...]

    def compares(self, whole: Formula) -> bool:
        """Whether it can be told that whoever built a layer and whoever sums went by the same: by the same names.

        So it can where the reduction asks for nothing that the block decides.
        """
        asked = frozenset(name for formula in self.told for name in atom_set(formula))
        return not asked or atom_set(whole) <= asked


def handed_over(part: Part, callers: Callers) -> Iterator[HandedOver]:
    """The calls in a block's constructor that take its shared experts, where whoever takes them is known."""
    conduct = callers.conduct(Ref(part.path, f"{part.owner.name}.__init__"))
    itself = f"self.{part.attribute}"
    for call in conduct.calls if conduct is not None else ():
        for passed in call.arguments:
            when = _handed(passed, itself)
            if passed.keyword is None or passed.hides or when == FALSE or call.stored is None:
                continue
            takers = tuple(dict.fromkeys(_takers(callers, part.path, call.callee, passed.keyword, 0)))
            if takers:
                others = tuple(_others(callers, part.path, call, takers))
                told = dict(_told(callers, part.path, call))
                yield HandedOver(part, call, conj((when, part.call.condition, call.condition)), told, takers, others)


def _handed(passed: Passed, itself: str) -> Formula:
    """When an argument is the shared experts: always, or in the other arm of `None if … else self.shared_experts`."""
    if passed.text == itself:
        return TRUE
    node = ast.parse(passed.text, mode="eval").body if itself in passed.text else None
    arms = {ast.unparse(node.body), ast.unparse(node.orelse)} if isinstance(node, ast.IfExp) else set()
    if arms != {"None", itself} or passed.formula is None:
        return FALSE
    return assign(assign(passed.formula, itself, TRUE), "None", FALSE)


def _takers(callers: Callers, path: str, callee: str, keyword: str, depth: int) -> Iterator[Ref]:
    """The classes that a constructor or factory hands on to what it takes for a keyword, its own class included."""
    index = callers.index
    found = index.resolve(path, callee)
    facts = index.facts(found.path) if found is not None else None
    if found is None or facts is None or depth > _DEPTH:
        return
    function: Ref | None = found
    if found.name in facts.classes:
        yield found
        function = index.method(found, "__init__")
    conduct = callers.conduct(function) if function is not None else None
    if function is None or conduct is None:
        return
    for call in conduct.calls:
        for passed in call.arguments:
            if passed.text == keyword and passed.keyword is not None and not passed.hides:
                yield from _takers(callers, function.path, call.callee, passed.keyword, depth + 1)


def _others(callers: Callers, path: str, call: Call, takers: tuple[Ref, ...]) -> Iterator[Ref]:
    """The classes derived from a taker that a call names in an argument."""
    for passed in call.arguments:
        for word in _WORD.findall(passed.text) if passed.keyword is not None else ():
            found = callers.index.resolve(path, word)
            facts = callers.index.facts(found.path) if found is not None else None
            if found is not None and facts is not None and found.name in facts.classes:
                if any(taker in callers.index.mro(found) for taker in takers):
                    yield found


def _told(callers: Callers, path: str, call: Call) -> Iterator[tuple[str, Formula]]:
    found = callers.index.resolve(path, call.callee)
    facts = callers.index.facts(found.path) if found is not None else None
    if found is not None and facts is not None:
        function = callers.index.method(found, "__init__") if found.name in facts.classes else found
        if function is not None:
            bound = callers.bind(call, function, skip_first=found.name in facts.classes)
            yield from callers.values(function, bound)
    for passed in call.arguments:  # also those that go through `**options`
        if passed.keyword is not None and not passed.hides and passed.formula is not None:
            yield passed.keyword, passed.formula


def sums_of(handed: HandedOver, taker: Ref, context: Context) -> Iterator[SumOver]:
    """The reductions of what the shared experts return that are in force in a class that runs them."""
    for site in context.sites:
        name = site.raw.class_name
        if name is None or Ref(site.path, name) not in context.index.mro(taker):
            continue
        method = site.raw.function.removeprefix(f"{name}.").partition(".")[0]
        if context.index.method(taker, method) == Ref(site.path, f"{name}.{method}") and _is_shared(site, context):
            runs = _runs(site, context)
            known = _told_names(runs, handed, taker, context.callers)
            yield SumOver(site, replace_atoms(runs, known), taker, tuple(known.values()))


def sums_behind(handed: HandedOver, context: Context) -> Iterator[SumOver]:
    """The reductions of what the shared experts return that the block makes behind its experts."""
    part = handed.part
    for site in context.sites:
        same = site.path == part.path and site.raw.class_name == part.owner.name
        if same and site.post_experts and _is_shared(site, context):
            runs = _runs(site, context)
            yield SumOver(site, runs, part.owner, (runs,))


def is_run(handed: HandedOver, context: Context) -> bool:
    """Whether the block runs the shared experts itself, too."""
    facts = context.index.facts(handed.part.path)
    names = facts.functions_in(handed.part.owner.name) if facts is not None else ()
    conducts = (context.callers.conduct(Ref(handed.part.path, name)) for name in names)
    return any(call.callee == f"self.{handed.part.attribute}" for c in conducts if c is not None for call in c.calls)


def _is_shared(site: Site, context: Context) -> bool:
    where = Where(site.path, site.raw.class_name, site.raw.function.removesuffix(".<lambda>"))
    return SharedOutput(context.index).reaches(site.raw.origins, where)


def _runs(site: Site, context: Context) -> Formula:
    """When a reduction runs, where every group has more than one rank."""
    above = reaching(context.index, Ref(site.path, site.raw.function.removesuffix(".<lambda>")), site.raw.class_name)
    return conj((site.guard, above))


def _told_names(runs: Formula, handed: HandedOver, taker: Ref, callers: Callers) -> dict[str, Formula]:
    """What a taker asks of itself -> what the call told it, where the two have one name."""
    asked = {name: name.rpartition(".")[2] for name in atom_set(runs) if _OWN.match(name)}
    return {
        name: handed.told[keyword]
        for name, keyword in asked.items()
        if keyword in handed.told and (name.count(".") > 1 or _keeps(taker, keyword, callers))
    }


def _keeps(owner: Ref, parameter: str, callers: Callers) -> bool:
    """Whether the attribute of a parameter's name holds what was passed for it."""
    constructors = (callers.conduct(Ref(ref.path, f"{ref.name}.__init__")) for ref in callers.index.mro(owner))
    kept = [c.kept.get(parameter) for c in constructors if c is not None]
    return next((value for value in kept if value is not None), None) == parameter
