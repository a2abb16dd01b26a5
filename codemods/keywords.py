"""Pass arguments by keyword: positional ones get their parameter's name, new ones are added at the end of the call."""

from __future__ import annotations

import ast
import textwrap

from codemods.edits import CannotRewrite, Edit, Source
from codemods.listing import append, find_listing
from moe_lint.model import FixPlan


def keyword_edits(plan: FixPlan, source: Source) -> list[Edit]:
    """The edits that carry out a plan of kind ``keywords``. Raises ``CannotRewrite``."""
    assert plan.call is not None
    start, end = source.range(plan.call)
    written = source.text[start:end]
    call = ast.parse(f"({textwrap.dedent(written)})", mode="eval").body
    if not isinstance(call, ast.Call):
        raise CannotRewrite("what stands there is not a call")
    edits = []
    for (name, value), span in zip(plan.arguments, plan.replace, strict=False):
        at, to = source.range(span)
        if source.text[at:to] != value:
            raise CannotRewrite(f"the argument for `{name}` has changed")
        edits.append(Edit(at, at, f"{name}="))
    added = [f"{name}={value}" for name, value in plan.arguments[len(plan.replace) :]]
    return edits + ([append(source, find_listing(source, start, end), added)] if added else [])
