"""Edits of a text: what to replace, by position; everything else stays as it is, byte for byte."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate, pairwise

from msgspec import Struct

from moe_lint.model import Span

#: What rewritten code is laid out for, as black does.
LINE_LENGTH = 88
_WORD = re.compile(r"\w+")


class CannotRewrite(ValueError):
    """A rewrite that would not keep what the file says; the text is the reason."""


class Edit(Struct, frozen=True, order=True):
    """Replace the characters from ``start`` up to ``end`` (offsets from 0) by ``text``."""

    start: int
    end: int
    text: str


@lru_cache(maxsize=8)
def parsed(text: str) -> ast.Module:
    """The syntax tree of a text, to look at: one rewrite after the other asks for those of the same texts."""
    return ast.parse(text)


@lru_cache(maxsize=8)
def words(text: str) -> Counter[str]:
    """How often each word occurs, in code or not. Names that code uses less often occur less often."""
    return Counter(_WORD.findall(text))


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function that a syntax tree defines, in order. Not a walk: most of a tree are expressions."""
    found: list[ast.FunctionDef | ast.AsyncFunctionDef] = []
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(node)
        for field in ("cases", "finalbody", "orelse", "handlers", "body"):
            inside = getattr(node, field, None)
            if isinstance(inside, list):
                stack += reversed(inside)
    return found


class Source:
    """A text with its lines, for turning spans into offsets."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self._starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]

    def offset(self, line: int, column: int) -> int:
        """The offset of a position; both count from 1, columns in characters."""
        return self._starts[line - 1] + column - 1

    def range(self, span: Span) -> tuple[int, int]:
        return self.offset(span.line, span.column), self.offset(span.end_line, span.end_column)

    def line_of(self, offset: int) -> tuple[int, int]:
        """Start and end (without its newline) of the line around an offset."""
        start = self.text.rfind("\n", 0, offset) + 1
        end = self.text.find("\n", offset)
        end = len(self.text) if end < 0 else end
        return start, end - 1 if self.text[start:end].endswith("\r") else end

    def indent_at(self, offset: int) -> str:
        start, end = self.line_of(offset)
        line = self.text[start:end]
        return line[: len(line) - len(line.lstrip())]


def apply_edits(text: str, edits: Iterable[Edit]) -> str:
    """The text with all edits made. Raises ``CannotRewrite`` when two of them overlap."""
    ordered = sorted(set(edits), reverse=True)
    for later, earlier in pairwise(ordered):
        if earlier.end > later.start:
            raise CannotRewrite("two rewrites overlap")
    for edit in ordered:
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text
