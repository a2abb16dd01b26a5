"""Reductions of a layer, of what a block returned whose experts have summed already."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from moe_lint.dataflow import OutputOf, Where
from moe_lint.formula import TRUE
from moe_lint.index import Ref
from moe_lint.model import Route
from moe_lint.profile import matches
from moe_lint.rules._parts import Part, parts
from moe_lint.rules.base import Context
from moe_lint.sites import Site

_SET = r"\.(\w+)(?:\s*:[^=\n]+)?\s*=(?!=)"


class BlockBelow(Struct, frozen=True):
    """A block that a layer holds as ``attribute``, and its experts."""

    attribute: str
    owner: Ref
    experts: Part


def whole_blocks(site: Site, context: Context) -> Iterator[BlockBelow]:
    """The blocks whose output a reduction of their layer sums, always, although their experts were made to sum."""
    index, callers = context.index, context.callers
    layer = Ref(site.path, site.raw.class_name or "")
    where = Where(site.path, site.raw.class_name, site.raw.function.removesuffix(".<lambda>"))
    always = site.guard == TRUE and site.route is not Route.WRAPPER
    if site.raw.class_name is None or not always or not site.post_experts:
        return
    for attribute, group in callers.built(layer).items():
        for built in group:
            told = any(p.hides or p.keyword in index.profile.reducing for p in built.call.arguments)
            for part in parts(callers, built.owner, index.profile.is_expert_attribute) if not told else ():
                if part.sums is not True or not OutputOf(index, layer, attribute).reaches(site.raw.origins, where):
                    continue
                entry = index.method(built.owner, "forward")
                leaves = entry is not None and OutputOf(index, built.owner, part.attribute).leaves(entry)
                if leaves and not _sets_owner(built.owner, context) and not _sets_owner(layer, context):
                    yield BlockBelow(attribute, built.owner, part)


def _sets_owner(owner: Ref, context: Context) -> bool:
    """Whether a class or one around sets an attribute that says who sums, on whatever object: told from the text."""
    index = context.index
    family = {ref for one in (owner, *index.users(owner)) for ref in (*index.mro(one), *index.subclasses(one))}
    facts = ((index.facts(ref.path), ref.name) for ref in family)
    known = [(found, name) for found, name in facts if found is not None and name in found.classes]
    return any(matches(word, index.profile.ownership) for found, name in known for word in found.finds(name, _SET))
