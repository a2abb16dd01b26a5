"""Plans that pass flags by keyword, with the safety that follows from what they change."""

from __future__ import annotations

from moe_lint.callers import Edge
from moe_lint.index import ProjectIndex
from moe_lint.model import FixPlan, Safety, Span


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
