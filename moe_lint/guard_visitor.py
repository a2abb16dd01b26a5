"""The second front end: find a reduction in the libcst tree and read its guard again.

`ast` narrows a tree down quickly; every site that is about to be reported is read once more from the concrete syntax,
by code that shares nothing with `facts`. When the two disagree about a site, the site is not reported: the
disagreement is.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

import libcst as cst

from moe_lint.facts import GuardPart, RawSite
from moe_lint.source import overflows_libcst

#: (condition, whether it must hold), outermost first
Conditions = list[tuple[str, bool]]

#: Indentation up to a form feed: it does not count.
_FORM_FEED = re.compile(r"^[ \t\f]*\f")
_PARENTHESES = re.compile(r"[( \t]*")
#: Put before the first name of the call that is looked for, to know it by. libcst can tell positions, but only by
#: writing the whole text out, which costs as much as all the rest and takes several frames for each level of nesting.
_MARK = "_moe_lint_mark_"
_LEAVES = (cst.Return, cst.Raise, cst.Continue, cst.Break)
#: Where the first operand of an expression is kept.
_FIRST = ("func", "value", "left", "body")


class GuardVisitor(cst.CSTVisitor):
    """Collects the conditions around the marked call; ``parentheses`` open between its start and the marked name."""

    def __init__(self, parentheses: int) -> None:
        super().__init__()
        self._parentheses = parentheses
        self._path: list[cst.CSTNode] = []
        self._module = cst.Module(body=[])
        self.conditions: Conditions | None = None

    def on_visit(self, node: cst.CSTNode) -> bool:
        if self.conditions is not None:
            return False
        self._path.append(node)
        if isinstance(node, cst.Name) and node.value.startswith(_MARK) and (call := self._call_around(node)):
            del self._path[call + 1 :]
            self.conditions = self._read()
        return True

    def _call_around(self, name: cst.Name) -> int | None:
        """Where on the path the outermost call stands that begins where the mark says."""
        opened = len(name.lpar)
        found = None
        for place in range(len(self._path) - 2, -1, -1):
            node, inner = self._path[place : place + 2]
            if not any(getattr(node, field, None) is inner for field in _FIRST):
                break
            if opened == self._parentheses and isinstance(node, cst.Call):
                found = place
            opened += len(getattr(node, "lpar", ()))
        return found

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if self._path and self._path[-1] is original_node:
            self._path.pop()

    def _read(self) -> Conditions:
        found: Conditions = []
        for node, inner in zip(self._path, self._path[1:], strict=False):
            if (isinstance(node, cst.If | cst.While) and inner is not node.test) or (
                isinstance(node, cst.IfExp) and inner is not node.test
            ):
                found.append((self._text(node.test), inner is node.body))
            elif isinstance(node, cst.BooleanOperation) and inner is node.right:
                found.append((self._text(node.left), isinstance(node.operator, cst.And)))
            elif isinstance(node, cst.FunctionDef | cst.ClassDef | cst.Lambda):
                # what guards the definition of a lambda guards its call; a nested function starts afresh
                found = found if isinstance(node, cst.Lambda) else []
            if isinstance(node, cst.IndentedBlock | cst.Module):
                found += self._early_exits(node.body, inner)
        return found

    def _early_exits(self, body: Sequence[cst.CSTNode], until: cst.CSTNode | None) -> Conditions:
        """`if c: return …` before the statement: c does not hold after it. Blocks that always run count as well."""
        found: Conditions = []
        for statement in body:
            if statement is until:
                break
            if isinstance(statement, cst.If) and statement.orelse is None and _leaves(statement.body):
                found.append((self._text(statement.test), False))
            for block in _always_run(statement):
                found += self._early_exits(block.body, None)
        return found

    def _text(self, node: cst.BaseExpression) -> str:
        return normal(self._module.code_for_node(node))


def _always_run(statement: cst.CSTNode) -> Iterator[cst.IndentedBlock]:
    """The blocks of a statement that run whenever it does: that of a `with`, all of a `try` but its handlers."""
    parts: list[cst.CSTNode | None] = []
    if isinstance(statement, cst.With):
        parts = [statement.body]
    elif isinstance(statement, cst.Try | cst.TryStar):
        orelse, final = statement.orelse, statement.finalbody
        parts = [statement.body, orelse and orelse.body, final and final.body]
    yield from (part for part in parts if isinstance(part, cst.IndentedBlock))


def _leaves(body: cst.BaseSuite) -> bool:
    """Whether a block ends by leaving: its last statement returns, raises, continues or breaks."""
    last = body.body[-1] if body.body else None
    if isinstance(last, cst.SimpleStatementLine):
        return bool(last.body) and isinstance(last.body[-1], _LEAVES)
    if isinstance(body, cst.SimpleStatementSuite):
        return isinstance(last, _LEAVES)
    if isinstance(last, cst.If) and isinstance(last.orelse, cst.Else):
        return _leaves(last.body) and _leaves(last.orelse.body)
    return isinstance(last, cst.With) and _leaves(last.body)


def normal(source: str) -> str:
    """A condition's text without layout and comments."""
    return ast.unparse(ast.parse(f"({source}\n)", mode="eval").body)


def read_again(site: RawSite, function: tuple[int, int], lines: Sequence[str]) -> Conditions | None:
    """The conditions around a site as libcst sees them; None when the call is not found.

    ``function`` is the first and last line of the function around it: only that much is parsed.
    Raises ``RecursionError`` when it is nested too deeply.
    """
    first, last = function
    text = [_FORM_FEED.sub("", line) for line in lines[first - 1 : last]]
    row = site.span.line - first
    column = site.span.column - 1 - (len(lines[site.span.line - 1]) - len(text[row]))
    parentheses = _PARENTHESES.match(text[row], column)
    assert parentheses is not None  # there may be none
    text[row] = f"{text[row][: parentheses.end()]}{_MARK}{text[row][parentheses.end() :]}"
    # under a condition of its own a method keeps its indentation, whatever that is
    source = "\n".join(["if 1:", *text] if text[0][:1].isspace() else ["", *text]) + "\n"
    if overflows_libcst(source):
        raise RecursionError
    try:
        module = cst.parse_module(source)
    except cst.ParserSyntaxError:
        return None
    visitor = GuardVisitor(parentheses[0].count("("))
    module.visit(visitor)
    return visitor.conditions


def seen_by_ast(guard: Sequence[GuardPart]) -> Conditions:
    """The conditions of a guard in the form in which the visitor reads them."""
    return [(part.text, part.polarity) for part in guard if part.plain]
