"""Plans that run a deferred sum before the tensor that owes it is handed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from moe_lint.callers import Callers, Frame, Layer
from moe_lint.facts import Call
from moe_lint.index import ProjectIndex
from moe_lint.model import FixPlan, Safety, Span
from moe_lint.rules._layers import block_sums, has_experts
from moe_lint.rules.base import Context


def plan_settle(
    context: Context, layer: Layer, flag: str, frame: Frame, runs: Iterable[Call], leaks: Sequence[Call]
) -> FixPlan | str:
    """Reduce what the layer marked in front of everything that hands it on; or the reason why that is not for sure.

    Corrective: it changes what is handed on only where the tensor is marked, and there it was one rank's partial sum.
    """
    callers, index, profile = context.callers, context.index, context.index.profile
    if not _marks_its_output(callers, layer):
        return f"which of its values `{layer.owner.name}` marks is not seen"
    facts = index.facts(frame.path)
    runs = list(runs)
    place = facts.leaving(frame.function.name, {c.span for c in runs}, {c.span for c in leaks}) if facts else None
    if place is None or place.part != _returns_several(layer, index) or not _is_in_time(place.statement, runs, leaks):
        return f"what `{layer.owner.name}` returns is not handed on under one name"
    collective = _of_all_ranks(context, layer, flag)
    if collective is None:
        return f"the sum that `{layer.owner.name}` defers is not seen to be one over all ranks"
    module = _module_of(collective, frame.path, context)
    if module is None:
        return f"from where to import `{collective}` is not seen"
    return FixPlan(
        frame.path,
        "settle",
        place.statement,
        None,
        True,
        (),
        collective,
        ((place.name, profile.markers[0]),),
        module,
        Safety.CORRECTIVE,
        f"reduces `{place.name}` where it is marked, before it is handed on",
    )


def _marks_its_output(callers: Callers, layer: Layer) -> bool:
    """Whether every function of the layer that marks a tensor returns it first."""
    for frame in layer.frames:
        conduct, facts = callers.conduct(frame.function), callers.index.facts(frame.path)
        for mark in conduct.marks if conduct is not None and facts is not None else ():
            if mark.value is not False and facts is not None:
                if mark.tensor is None or mark.tensor not in facts.first_returned(frame.function.name):
                    return False
    return True


def _returns_several(layer: Layer, index: ProjectIndex) -> bool | None:
    """Whether a layer returns its output beside other values; None where it returns now this, now that."""
    forward = index.method(layer.owner, "forward")
    body = index.function(forward) if forward is not None else None
    several = {len(elements) > 1 for elements in body.returns} if body is not None else set()
    return several.pop() if len(several) == 1 else None


def _is_in_time(statement: Span, runs: Sequence[Call], leaks: Sequence[Call]) -> bool:
    """Whether a statement comes after the layers ran: behind their loop, or again and again inside it."""
    loops = {call.loop for call in leaks}
    if loops & {call.loop for call in runs}:
        return len(loops) == 1 and all(loop is not None and loop < statement for loop in loops)
    return all(call.span < statement for call in runs)


def _of_all_ranks(context: Context, layer: Layer, flag: str) -> str | None:
    """The collective over all ranks, if that is what the layer's blocks of experts leave out, in one sum or in two.

    Of several, the one that most of the tree calls.
    """
    callers, profile = context.callers, context.index.profile
    whole = profile.launch.group_of("", "TP")
    names = [n for n, axis in profile.collectives.items() if axis == "TP" and profile.launch.group_of(n, axis) == whole]
    edges = [e for frame in layer.frames for e in callers.edges(frame) if e.built is not None]
    told = [e for e in edges if callers.asked(e.frame, e.call, flag) and has_experts(callers, e)]
    for edge in told:
        sums = block_sums(callers, edge)
        groups = {profile.launch.group_of(found.site.raw.collective, found.site.axis) for found in sums}
        if whole not in groups and {found.site.axis for found in sums} != {"EP", "TP"}:
            return None
    used = Counter(site.raw.collective for site in context.sites)
    return max(names, key=lambda name: used[name]) if told and names else None


def _module_of(name: str, importer: str, context: Context) -> str | None:
    """The module from which a file imports a function, or from which most files of its tree do."""
    index: ProjectIndex = context.index
    found: Counter[str] = Counter()
    for path in dict.fromkeys((importer, *(site.path for site in context.sites if site.raw.collective == name))):
        facts = index.facts(path)
        module, original = facts.imports.get(name, ("", None)) if facts is not None else ("", None)
        if original == name and path == importer:
            return module
        if original == name:
            home = index.module_path(module, path) if module.startswith(".") else None
            known = module if home is None else context.policy.import_module(importer, name, home)
            if known is not None:
                found[known] += 1
    return min(found, key=lambda module: (-found[module], module)) if found else None
