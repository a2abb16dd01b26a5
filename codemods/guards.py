"""Rewrite the guard of a reduction: the skip part of its condition becomes one call of the central helper.

Each function makes the edits that carry out a plan of its kind, or raises ``CannotRewrite``. The condition is taken
apart with libcst, which keeps every space and comment; the parts that stay are put back as they were written. The
layout of a condition without comments follows black (88 columns).
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence

import libcst as cst
from msgspec.structs import replace

from codemods.edits import LINE_LENGTH, CannotRewrite, Edit, Source
from moe_lint.model import FixPlan

_KEYWORDS = ("if", "elif", "while", "assert", "return", "=", "not")


def condition_edits(plan: FixPlan, source: Source) -> list[Edit]:
    """The edits of kind ``guard``: the skip part of a condition becomes a call of the helper."""
    assert plan.guard is not None
    start, end = _with_parentheses(source, *source.range(plan.guard))
    written = source.text[start:end]
    core_start, core_end = source.range(plan.guard)
    core = source.text[core_start:core_end]
    first, rest = _chain(core, plan.polarity)
    operands = [first, *(operand for _, operand in rest)]
    drop = [_normal(operand) in plan.drop for operand in operands]
    if sum(drop) < len(plan.drop):
        raise CannotRewrite("a condition to be replaced is not an operand of its own")
    if all(drop) and not plan.helper:
        raise CannotRewrite("nothing would be left of a condition")
    negation = "not " if plan.polarity else ""
    if "#" in written:
        core = _splice(first, rest, drop, plan, negation, source, core_start)
        return [Edit(core_start, core_end, core)]
    kept: list[str | None] = []
    for operand, dropped in zip(operands, drop, strict=True):
        if not dropped:
            kept.append(operand.strip())
        elif plan.helper and None not in kept:
            kept.append(None)
    if plan.helper and None not in kept:
        kept.append(None)
    return [Edit(start, end, _apart(_layout(kept, plan, negation, source, start, end), source.text, start, end))]


def _apart(new: str, text: str, start: int, end: int) -> str:
    """What takes the place of `(…)`, kept apart from the words around it: `if(a)else` needs no spaces, `a` does."""
    before = " " if text[:start][-1:].isidentifier() and new[:1] != "(" else ""
    after = " " if text[end : end + 1].isidentifier() and new[-1:] != ")" else ""
    return f"{before}{new}{after}"


def _chain(core: str, conjunction: bool) -> tuple[str, list[tuple[str, str]]]:
    """The operands of the top-level `and` (or `or`) and the operators between them; joined, they are the source."""
    newline = "\r\n" if "\r\n" in core else "\n"
    module = cst.Module(body=[], default_newline=newline)
    node = cst.parse_expression(f"({core})", cst.PartialParserConfig(default_newline=newline))
    if module.code_for_node(node) != f"({core})":
        raise CannotRewrite("libcst does not give the condition back as it is written")
    wanted = cst.And if conjunction else cst.Or
    node = node.with_changes(lpar=node.lpar[1:], rpar=node.rpar[:-1])
    rest: list[tuple[str, str]] = []
    while isinstance(node, cst.BooleanOperation) and isinstance(node.operator, wanted) and not node.lpar:
        rest.append((module.code_for_node(node.operator), module.code_for_node(node.right)))
        node = node.left
    lead = core[: len(core) - len(core.lstrip())]
    joined = module.code_for_node(node) + "".join(o + r for o, r in reversed(rest))
    if lead + joined != core and joined != core.strip():
        raise CannotRewrite("the condition cannot be taken apart without loss")
    return module.code_for_node(node), rest[::-1]


def _splice(
    first: str,
    rest: Sequence[tuple[str, str]],
    drop: Sequence[bool],
    plan: FixPlan,
    negation: str,
    source: Source,
    start: int,
) -> str:
    """Replace operands one by one and keep every comment and line break between them."""
    operator = "and" if plan.polarity else "or"
    indent = source.indent_at(start)
    placed = False
    result = ""

    def call(column: int, inner_indent: str) -> str:
        one_line = negation + _call(plan)
        if column + len(one_line) <= LINE_LENGTH:
            return one_line
        return negation + _exploded(plan, inner_indent, source.newline)

    for position, ((glue, operand), dropped) in enumerate(zip([("", first), *rest], drop, strict=True)):
        line_indent = _last_indent(result + glue, indent)
        if not dropped:
            result += glue + operand
        elif not placed:
            placed = True
            here = len((result + glue).rsplit("\n", 1)[-1]) if position else len(indent) + 3
            result += glue + call(here, line_indent)
        elif "#" in glue:
            result += glue[: glue.rindex(operator)].rstrip(" \t").removesuffix(source.newline + indent)
    if not placed:
        glue = rest[-1][0] if rest else f" {operator} "
        if "#" in glue:
            glue = f"{source.newline}{_last_indent(result, indent)}{operator} "
        result += glue + call(len((result + glue).rsplit("\n", 1)[-1]), _last_indent(result + glue, indent))
    return result


def _last_indent(text: str, fallback: str) -> str:
    if "\n" not in text:
        return fallback
    line = text.rsplit("\n", 1)[-1]
    return line[: len(line) - len(line.lstrip())]


def _layout(kept: Sequence[str | None], plan: FixPlan, negation: str, source: Source, start: int, end: int) -> str:
    """The new condition as black would lay it out. None stands for the helper call."""
    operator = " and " if plan.polarity else " or "
    newline = source.newline
    line_start, _ = source.line_of(start)
    _, line_end = source.line_of(end)
    prefix, suffix = source.text[line_start:start], source.text[end:line_end]
    indent = source.indent_at(start)
    call = negation + _call(plan)
    one_line = operator.join(call if part is None else part for part in kept)
    inside_not = source.text[start:].startswith("(") and prefix.rstrip().endswith("not") and kept != [None]
    if inside_not:
        one_line = f"({one_line})"
    if "\n" not in one_line and len(prefix + one_line + suffix) <= LINE_LENGTH:
        return one_line
    plain = all(part is None or "\n" not in part for part in kept)
    head = operator.join(f"{negation}{plan.helper}(" if part is None else part for part in kept)
    if not inside_not and kept[-1] is None and len(kept) <= 2 and plain and len(prefix + head) <= LINE_LENGTH:
        before = "".join(f"{part}{operator}" for part in kept[:-1])
        return before + negation + _exploded(plan, indent, newline)
    inner = f"{indent}    "
    lines = []
    for position, part in enumerate(kept):
        lead = inner if position == 0 else f"{inner}{operator.lstrip()}"
        if part is not None:
            lines.append(lead + part)
        elif len(lead + call) <= LINE_LENGTH:
            lines.append(lead + call)
        else:
            lines.append(lead + negation + _exploded(plan, inner, newline))
    return f"({newline}{newline.join(lines)}{newline}{indent})"


def _call(plan: FixPlan) -> str:
    arguments = ", ".join(f"{name}={value}" if name else value for name, value in plan.arguments)
    return f"{plan.helper}({arguments})"


def _exploded(plan: FixPlan, indent: str, newline: str) -> str:
    """The call with its arguments on lines of their own: one line if they fit, else one line each."""
    inner = f"{indent}    "
    arguments = [f"{name}={value}" for name, value in plan.arguments]
    together = inner + ", ".join(arguments)
    lines = [together] if len(together) <= LINE_LENGTH else [f"{inner}{argument}," for argument in arguments]
    return f"{plan.helper}({newline}{newline.join(lines)}{newline}{indent})"


def _with_parentheses(source: Source, start: int, end: int) -> tuple[int, int]:
    """The span of a condition with the parentheses around the whole of it, if there are any."""
    text = source.text
    before, after = text[:start].rstrip(), text[end:]
    if not before.endswith("(") or not after.lstrip().startswith(")"):
        return start, end
    opener = len(before) - 1
    word = text[:opener].rstrip()
    if not any(word.endswith(keyword) for keyword in _KEYWORDS):
        return start, end
    between = text[opener + 1 : start] + after[: len(after) - len(after.lstrip())]
    if between.strip():
        return start, end
    return opener, end + len(after) - len(after.lstrip()) + 1


class _Calls(cst.CSTVisitor):
    """Finds the calls of a function, whatever it is called on."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self.found: list[cst.Call] = []

    def visit_Call(self, node: cst.Call) -> None:
        function = node.func
        name = function.attr.value if isinstance(function, cst.Attribute) else getattr(function, "value", None)
        if name == self._name:
            self.found.append(node)


def call_edits(plan: FixPlan, source: Source) -> list[Edit]:
    """The edits of kind ``call``: the helper call in a condition gets other arguments."""
    assert plan.guard is not None
    start, end = source.range(plan.guard)
    core = source.text[start:end]
    calls = _Calls(plan.helper)
    cst.parse_expression(f"({core})").visit(calls)
    if len(calls.found) != 1:
        raise CannotRewrite(f"`{plan.helper}` is not called by its own name exactly once in the condition")
    old = cst.Module(body=[]).code_for_node(calls.found[0])
    if "#" in old or core.count(old) != 1:
        raise CannotRewrite("the helper call holds comments, which would be lost")
    at = start + core.index(old)
    line_start, _ = source.line_of(at)
    _, line_end = source.line_of(at + len(old))
    prefix, suffix = source.text[line_start:at], source.text[at + len(old) : line_end]
    asked = replace(plan, helper=cst.Module(body=[]).code_for_node(calls.found[0].func))  # of whom it is asked stays
    new = _call(asked)
    if len(prefix + new + suffix) > LINE_LENGTH or "\n" in old:
        new = _exploded(asked, source.indent_at(at), source.newline)
    return [Edit(at, at + len(old), new)]


def wrap_edits(plan: FixPlan, source: Source) -> list[Edit]:
    """The edits of kind ``wrap``: a bare `x = f(x)`, `y = f(x)` or `return f(x)` gets a condition of its own."""
    start, end = source.range(plan.statement)
    line_start, _ = source.line_of(start)
    _, line_end = source.line_of(end)
    behind = source.text[end:line_end].strip()
    if source.text[line_start:start].strip() or (behind and not behind.startswith("#")):
        raise CannotRewrite("the reduction shares its line with another statement")
    statement = source.text[start:end]
    indent, newline = source.indent_at(start), source.newline
    step = "\t" if indent.startswith("\t") else "    "
    condition = f"if not {_call(plan)}:"
    if len(indent + condition) > LINE_LENGTH:
        condition = f"if not {_exploded(plan, indent, newline)}:"
    inner = textwrap.indent(statement, step).removeprefix(step)
    text = f"{condition}{newline}{indent}{step}{inner}"
    node = ast.parse(statement).body[0]
    call = node.value if isinstance(node, ast.Return | ast.Assign | ast.AnnAssign) else None
    if not isinstance(call, ast.Call):
        raise CannotRewrite("the reduction is not a statement of its own")
    operand = ast.unparse(call.args[0] if call.args else call.keywords[0].value)
    if isinstance(node, ast.Return):
        return [Edit(start, end, text), Edit(line_end, line_end, f"{newline}{indent}return {operand}")]
    target = _target(node) or operand
    if target != operand:
        text = f"{target} = {operand}{newline}{indent}{text}"
    return [Edit(start, end, text)]


def wrapper_edits(plan: FixPlan, source: Source) -> list[Edit]:
    """The edits of kind ``wrapper``: a call of the tree's wrapper replaces a guarded reduction, guard included."""
    span = plan.replace[0]
    start, end = source.range(span)[0], source.range(plan.replace[-1])[1]
    if "#" in source.text[start:end]:
        raise CannotRewrite("the guard holds comments, which would be lost")
    inner_start, inner_end = source.range(plan.statement)
    node = ast.parse(source.text[inner_start:inner_end]).body[0]  # a simple statement: no indentation counts in it
    call = _call(plan)
    if isinstance(node, ast.Return):
        following = source.text[end:].lstrip()
        operand = plan.arguments[0][1]
        if span != plan.statement and not following.startswith(f"return {operand}"):
            raise CannotRewrite("the function goes on after the guarded return")
        return [Edit(start, end, f"return {call}")]
    target = _target(node)
    if target is None:
        raise CannotRewrite("the reduction is not an assignment of its own")
    return [Edit(start, end, f"{target} = {call}")]


def _target(node: ast.stmt) -> str | None:
    """What an assignment, annotated or not, gives its value to."""
    if isinstance(node, ast.AnnAssign):
        return ast.unparse(node.target)
    return ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else None


def _normal(operand: str) -> str:
    return ast.unparse(ast.parse(f"({operand}\n)", mode="eval").body)
