"""Remove assignments to locals that a rewrite left unused."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

from codemods.edits import Edit, Source, apply_edits, functions, parsed, words

#: What every assignment to one name looks like, and other code too.
_ASSIGNED = re.compile(r"(\w+)[ \t]*(?:=(?!=)|:)")
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_HARMLESS = (ast.Name, ast.Attribute, ast.Constant, ast.BoolOp, ast.UnaryOp, ast.Compare, ast.IfExp)
_PARTS = (ast.expr_context, ast.boolop, ast.unaryop, ast.cmpop)


def without_unused_locals(before: str, after: str, harmless: Collection[str]) -> str:
    """``after`` without the assignments to locals that ``before`` read and ``after`` does not.

    One goes only if it is the only one, shares no line with code or a comment, leaves its block with a statement, and
    if its value does nothing: it calls no more than the calls in ``harmless`` (as `ast.unparse` writes them).
    """
    fewer = words(before) - words(after)
    if not any(name in fewer for name in _ASSIGNED.findall(after)):
        return after
    old, lines = functions(parsed(before)), before.split("\n")
    while True:
        source, tree, new_lines = Source(after), parsed(after), after.split("\n")
        edits = {
            edit
            for was, function in zip(old, functions(tree), strict=True)
            if _written(was, lines) != _written(function, new_lines)
            for name in sorted({*_names(was, ast.Load)} - {*_names(function, ast.Load)})
            if (edit := _removal(function, name, source, harmless)) is not None
        }
        if not edits:
            return after
        after = apply_edits(after, edits)


def _written(function: _Function, lines: list[str]) -> list[str]:
    return lines[function.lineno - 1 : function.end_lineno]


def _names(node: ast.AST, context: type[ast.expr_context]) -> list[str]:
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)]


def _removal(function: _Function, name: str, source: Source, harmless: Collection[str]) -> Edit | None:
    declared = (n for n in ast.walk(function) if isinstance(n, ast.Global | ast.Nonlocal))
    if any(name in statement.names for statement in declared) or "locals" in _names(function, ast.Load):
        return None
    if _names(function, ast.Store).count(name) != 1 or name in _names(function, ast.Del):
        return None
    for block in _blocks(function):
        for statement in block:
            if len(block) > 1 and _assigned(statement) == name and not _acts(statement, harmless):
                return _lines_of(statement, source)
    return None


def _blocks(function: _Function) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                yield block


def _assigned(statement: ast.stmt) -> str | None:
    """The one name that a statement assigns a value to."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target = statement.target
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def _acts(statement: ast.stmt, harmless: Collection[str]) -> bool:
    """Whether the assigned value may do more than ask."""
    stack: list[ast.AST] = [getattr(statement, "value")]  # noqa: B009
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Call) and ast.unparse(node) in harmless:
            continue
        if not isinstance(node, _HARMLESS + _PARTS):
            return True
        stack += ast.iter_child_nodes(node)
    return False


def _lines_of(statement: ast.stmt, source: Source) -> Edit | None:
    """The edit that removes a statement with its lines, if they hold nothing else."""
    lines = source.text.split("\n")[statement.lineno - 1 : statement.end_lineno]
    before = lines[0].encode()[: statement.col_offset]
    end_line = lines[-1].encode()[statement.end_col_offset or 0 :]
    start = source.offset(statement.lineno, 1)
    end = source.offset(statement.lineno, 1) + sum(len(line) + 1 for line in lines)
    if before.strip() or end_line.strip() or "#" in source.text[start:end]:
        return None
    return Edit(start, min(end, len(source.text)), "")
