"""What a condition decides besides one reduction: whether it may be changed for the reduction's sake alone."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from copy import deepcopy

from moe_lint.expressions import nodes
from moe_lint.facts.syntax import assignment, inner_blocks, span_of
from moe_lint.model import Span
from moe_lint.source import Lines

#: What comes after a block in a way that is not followed: the same for all that reach it.
_ELSEWHERE = "..."


def only_guards(function: ast.AST, call: Span, condition: Span, lines: Lines) -> bool:
    """Whether both ways that a condition can turn out do the same if the reduction at ``call`` is left out.

    Told by comparing the text of both ways, up to where the function is left; what is not understood is not the same.
    """
    found = next((n for n in nodes(function) if isinstance(n, ast.Call) and span_of(n, lines) == call), None)
    test = next(
        (n for n in nodes(function) if isinstance(n, ast.If | ast.IfExp) and span_of(n.test, lines) == condition), None
    )
    if found is None or test is None or not (found.args or found.keywords):
        return False
    left_out = _LeftOut(found)
    try:
        if isinstance(test, ast.IfExp):
            return left_out.text(test.body) == left_out.text(test.orelse)
        return left_out.same_both_ways(getattr(function, "body", []), test)
    except RecursionError:  # nested too deeply to be compared
        return False


class _LeftOut:
    """Code as it would be if a call gave its operand back."""

    def __init__(self, call: ast.Call) -> None:
        self._call = call

    def text(self, node: ast.expr | ast.stmt) -> str:
        """One expression or statement; nothing for a statement that does nothing."""
        copies: dict[int, object] = {}
        copied: ast.AST = deepcopy(node, copies) if _holds(node, self._call) else node
        call = copies.get(id(self._call))
        if isinstance(call, ast.Call):
            operand = call.args[0] if call.args else call.keywords[0].value
            copied = _Replacer(call, operand).visit(copied)
        if isinstance(copied, ast.Pass) or (isinstance(copied, ast.Expr) and isinstance(copied.value, ast.Name)):
            return ""
        written = ast.unparse(copied)
        targets, value = assignment(copied) or ([], None)
        if value is not None and len(targets) == 1:
            return "" if ast.unparse(targets[0]) == ast.unparse(value) else written
        return "return" if written == "return None" else written

    def same_both_ways(self, body: Sequence[ast.stmt], test: ast.If, after: str | None = "return") -> bool:
        """Whether an `if` somewhere in a block, behind which comes ``after``, does the same whichever way it goes."""
        for position, statement in enumerate(body):
            if not _holds(statement, test):
                continue
            rest = self.block(body[position + 1 :], after)
            if statement is not test:
                behind = rest if isinstance(statement, ast.If) else _ELSEWHERE
                return any(
                    self.same_both_ways(inner, test, behind)
                    for inner in inner_blocks(statement)
                    if any(_holds(one, test) for one in inner)
                )
            then, otherwise = self.block(test.body, rest), self.block(test.orelse, rest)
            if then is None or otherwise is None:
                return False
            # `y = x` just before: to assign it once more changes nothing
            again = f"{ast.unparse(body[position - 1])}\n" if position and _copies(body[position - 1]) else ""
            return then == otherwise or then == again + otherwise or again + then == otherwise
        return False

    def block(self, body: Sequence[ast.stmt], after: str | None) -> str | None:
        """What a block does up to where it leaves the function, with what comes behind it; None: cannot be told."""
        text = ""
        for position, statement in enumerate(body):
            if isinstance(statement, ast.If) and _holds(statement, self._call):
                rest = self.block(body[position + 1 :], after)
                then, otherwise = self.block(statement.body, rest), self.block(statement.orelse, rest)
                if then is None or then != otherwise or _acts(statement.test):
                    return None
                return text + then
            if list(inner_blocks(statement)) and _holds(statement, self._call):
                return None
            written = self.text(statement)
            text += f"{written}\n" if written else ""
            if isinstance(statement, ast.Return | ast.Raise | ast.Continue | ast.Break):
                return text
        return None if after is None else text + after + "\n" * (not after.endswith("\n"))


class _Replacer(ast.NodeTransformer):
    def __init__(self, old: ast.expr, new: ast.expr) -> None:
        self._old = old
        self._new = new

    def visit(self, node: ast.AST) -> ast.AST:
        return self._new if node is self._old else self.generic_visit(node)


def _holds(node: ast.AST, wanted: ast.AST) -> bool:
    return any(inner is wanted for inner in nodes(node))


def _copies(statement: ast.stmt) -> bool:
    """Whether a statement gives one name the value of another."""
    targets, value = assignment(statement) or ([], None)
    return isinstance(value, ast.Name) and all(isinstance(target, ast.Name) for target in targets)


def _acts(test: ast.expr) -> bool:
    """Whether a condition does more than ask."""
    return any(isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom) for node in nodes(test))
