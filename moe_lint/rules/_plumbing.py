"""How flags are handed on: as constants, and plans that pass them by keyword, with the safety that follows."""

from __future__ import annotations

from collections.abc import Iterator

from moe_lint.callers import Edge
from moe_lint.facts import CallFact
from moe_lint.index import ProjectIndex, Ref
from moe_lint.model import FixPlan, Safety, Span
from moe_lint.rules.base import Context


def plan_keywords(
    edge: Edge, named: tuple[tuple[str, str, Span], ...], added: tuple[tuple[str, str], ...], reason: str
) -> FixPlan | None:
    """Give positional arguments their parameter's name and add keywords. None where unpacked arguments hide some.

    Corrective: behaviour changes where the flag is set, and there the numbers were wrong.
    """
    if any(b.passed.hides for b in edge.bound):
        return None
    return FixPlan(
        edge.frame.path,
        "keywords",
        edge.call.span,
        None,
        True,
        (),
        "",
        (*((name, text) for name, text, _ in named), *added),
        "",
        Safety.CORRECTIVE,
        reason,
        call=edge.call.span,
        replace=tuple(span for _, _, span in named),
    )


def parameter_for(edge: Edge, flag: str, index: ProjectIndex) -> str | None:
    """The callee's parameter for a flag, whatever its spelling there."""
    facts = index.facts(edge.target.path)
    if facts is None:
        return None
    params = facts.header(edge.target.function.name)[1]
    return next((p for p in params if index.profile.flag_names.get(p) == flag), None)


def constants(function: Ref, context: Context) -> Iterator[tuple[CallFact, str]]:
    """(call, flag) of the flags that a function passes, or publishes around calls, as the constant True."""
    facts = context.index.facts(function.path)
    if facts is None or function.name not in facts.functions:
        return
    profile = context.policy.profile
    if not any(facts.holds(function.name, name) for name in profile.flag_names):
        return  # before its body is read
    for call in facts.function(function.name).calls:
        last = call.callee.rsplit(".", 1)[-1]
        if last == profile.helper or not (call.callee.startswith("self.") or last in profile.publishers):
            continue
        for argument in call.arguments:
            keyword = argument.keyword
            if keyword is not None and keyword in profile.flag_names and argument.literal is True:
                yield call, keyword
