"""Pass arguments by keyword: positional ones get their parameter's name, new ones are added at the end of the call."""

from __future__ import annotations

import ast
import textwrap

from codemods.edits import CannotRewrite, Edit, Source
from moe_lint.model import FixPlan

LINE_LENGTH = 88


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
    return edits + ([_append(written, start, added, source, call)] if added else [])


def _append(written: str, start: int, added: list[str], source: Source, call: ast.Call) -> Edit:
    """New keywords behind the last argument; on a line of its own where the arguments stand one per line."""
    closing = written.rindex(")")
    inside = written[:closing].rstrip()
    if "#" in inside[inside.rfind("\n") + 1 :]:
        raise CannotRewrite("a comment stands behind the last argument")
    trailing = inside.endswith(",")
    empty = not call.args and not call.keywords
    body = inside.removesuffix(",")
    at = start + len(body)
    newline = source.newline
    if empty:
        return Edit(at, start + closing, ", ".join(added))
    if trailing and "\n" in written:
        indent = source.indent_at(start + len(body) - 1)
        lines = "".join(f",{newline}{indent}{one}" for one in added)
        return Edit(at, at, lines)
    joined = ", " + ", ".join(added)
    line_start, line_end = source.line_of(at)
    if "\n" in written or line_end - line_start + len(joined) <= LINE_LENGTH:
        return Edit(at, at, joined)
    opening = written.index("(", _function_end(call))
    indent = source.indent_at(start)
    arguments = [written[opening + 1 : len(body)].strip(), *added]
    step = "\t" if indent.startswith("\t") else "    "
    inner = f"{newline}{indent}{step}{', '.join(arguments)}"
    if len(indent) + len(step) + len(", ".join(arguments)) > LINE_LENGTH:
        parts = [ast.unparse(a) for a in call.args] + [ast.unparse(k) for k in call.keywords] + added
        inner = "".join(f"{newline}{indent}{step}{part}," for part in parts)
    return Edit(start + opening + 1, start + closing, f"{inner}{newline}{indent}")


def _function_end(call: ast.Call) -> int:
    """Where the called expression ends; a single-line one, as it was parsed behind one parenthesis."""
    if call.func.end_lineno != 1 or call.func.end_col_offset is None:
        raise CannotRewrite("the called expression spans several lines")
    return call.func.end_col_offset - 1
