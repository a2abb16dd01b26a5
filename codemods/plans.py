"""Carry out plans on the text of a file: their edits, then the locals and imports that these leave unused or need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

from msgspec.structs import replace

from codemods.comments import comment_edits
from codemods.edits import Edit, Source, apply_edits
from codemods.guards import call_edits, condition_edits, wrap_edits, wrapper_edits
from codemods.imports import import_edits
from codemods.keywords import keyword_edits
from codemods.parameters import parameter_edits
from codemods.settle import settle_edits
from codemods.unused import without_unused_locals
from moe_lint.model import FixPlan

_BY_KIND: Mapping[str, Callable[[FixPlan, Source], list[Edit]]] = {
    "guard": condition_edits,
    "call": call_edits,
    "wrap": wrap_edits,
    "wrapper": wrapper_edits,
    "keywords": keyword_edits,
    "parameters": parameter_edits,
    "settle": settle_edits,
    "comment": comment_edits,
}


@lru_cache(maxsize=256)
def plan_edits(plan: FixPlan, text: str) -> tuple[Edit, ...]:
    """The edits that carry out a plan, imports left aside: asked for to see whether it can be, and to do it.

    Raises ``CannotRewrite``.
    """
    return tuple(_BY_KIND[plan.kind](plan, Source(text)))


def carry_out(before: str, plans: Iterable[FixPlan]) -> str:
    """The text with plans carried out. Raises ``CannotRewrite`` and ``SyntaxError``."""
    steps = _steps(plans)
    after = apply_edits(before, [edit for step in steps for edit in plan_edits(step, before)])
    if any(step.kind in ("guard", "wrapper") for step in steps):
        after = without_unused_locals(before, after, {text for step in steps for text in step.harmless})
    imported = {(step.import_from, _imported_name(step)): None for step in steps if step.kind != "comment"}
    # what became unused goes with the first
    for module, name in [pair for pair in imported if pair[1]] or list(imported)[:1]:
        after = apply_edits(after, import_edits(before, after, module, name))
    return after


def _imported_name(step: FixPlan) -> str:
    """What a rewrite needs by name: of a method, whom it asks (`get_parallel().…`)."""
    return re.split(r"\W", step.helper, maxsplit=1)[0] if step.import_from and step.kind != "call" else ""


def _steps(plans: Iterable[FixPlan]) -> list[FixPlan]:
    """The plans with their parts in the same file, each once; what is added at one place is added together."""
    found: dict[tuple[object, ...], FixPlan] = {}
    for plan in plans:
        for step in (plan, *(part for part in plan.parts if part.path == plan.path)):
            adds = step.kind in ("parameters", "keywords")
            key = (step.kind, step.statement) if adds else (replace(step, parts=()),)
            known = found.get(key)
            if known is None:
                found[key] = step
            elif adds and len(known.replace) < len(step.replace):
                found[key] = replace(step, arguments=_union(step.arguments, known.arguments))
            elif adds:
                found[key] = replace(known, arguments=_union(known.arguments, step.arguments))
    return list(found.values())


def _union(first: tuple[tuple[str, str], ...], more: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    names = {name for name, _ in first}
    return (*first, *((name, value) for name, value in more if name not in names))
