"""Take a comment away, or put another in its place; code and other tools' comments on its line stay."""

from __future__ import annotations

from codemods.edits import Edit, Source
from moe_lint.model import FixPlan


def comment_edits(plan: FixPlan, source: Source) -> list[Edit]:
    """The edits that carry out a plan of kind "comment"."""
    start, end = source.range(plan.statement)
    if plan.helper:
        return [Edit(start, end, plan.helper)]
    line_start, line_end = source.line_of(start)
    before, after = source.text[line_start:start], source.text[end:line_end]
    if before.strip():
        return [Edit(line_start + len(before.rstrip()), end, "")]
    if after.strip():
        return [Edit(start, end + len(after) - len(after.lstrip()), "")]
    following = source.text.find("\n", line_end)
    return [Edit(line_start, len(source.text) if following < 0 else following + 1, "")]
