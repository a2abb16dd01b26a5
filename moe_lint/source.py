"""Bytes -> text and syntax tree. `ast` first; libcst's parser decides whether a file that `ast` refuses is broken."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate, chain, count
from operator import add
from symtable import symtable
from typing import overload

from moe_lint.model import Problem, SkipReason

_BARE_RETURN = re.compile(r"\r(?!\n)")
#: What is one flat node to `ast`, and to libcst a level of nesting for each: `a and b and …`, `"a" "b" …`.
_LEVEL = re.compile(r"""\b(?:and|or)\b|["'][\s\\]*[rbfuRBFU]{0,2}["']""")
_LEVELS = 3000
_BRACKET = re.compile(r"[()\[\]{}]")
#: Python itself takes 200.
_BRACKETS = 500


class SourceError(ValueError):
    """A file that cannot be judged: why, and on which line."""

    def __init__(self, reason: SkipReason, line: int, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.line = line
        self.message = message


def problem_of(path: str, error: OSError | SourceError) -> Problem:
    """Why a file could not be read, decoded or parsed."""
    if isinstance(error, SourceError):
        return Problem(error.reason, path, error.line, error.message)
    return Problem(SkipReason.UNREADABLE, path, 1, f"cannot be read: {error.strerror or error}")


def decode(data: bytes) -> str:
    """The text of a Python file: PEP 263 encodings and byte-order marks are honoured. Raises ``SourceError``."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise SourceError(SkipReason.UNDECODABLE, 1, f"not readable as text: {error}") from None
    if "\r" in text and (bare := _BARE_RETURN.search(text)) is not None:
        line = text.count("\n", 0, bare.start()) + 1
        raise SourceError(
            SkipReason.UNDECODABLE, line, "a line ends in a bare carriage return: lines cannot be counted"
        )
    return text


def parse(text: str) -> ast.Module:
    """The syntax tree. Raises ``SourceError``; its message tells grammar newer than this Python from a real error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like in the target's strings are not our business
            return ast.parse(text)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        what = getattr(error, "msg", None) or str(error)
        if not what.startswith("too many ") and _libcst_parses(text):  # nested brackets, levels of indentation
            what = f"needs a newer Python than this one to be parsed: {what}"
        raise SourceError(SkipReason.SYNTAX_ERROR, line, f"syntax error: {what}") from None
    except (RecursionError, MemoryError):
        raise SourceError(SkipReason.SYNTAX_ERROR, 1, "nested too deeply to be parsed") from None


def parse_part(text: str) -> ast.Module | None:
    """The syntax tree of a part of a file; None when it cannot be parsed alone."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


class Lines(Sequence[str]):
    """The lines of a text without their ends, cut out when asked for: as strings of their own they take twice its size.

    ``text`` ends no line but by `\\n`, as `str.split` has it. It may be a question that is asked
    when the text is needed.
    """

    def __init__(self, text: str | Callable[[], str]) -> None:
        self._text = text

    @property
    def text(self) -> str:
        if not isinstance(self._text, str):
            self._text = self._text()
        return self._text

    @property
    def known(self) -> str | None:
        """The text, if it is at hand."""
        return self._text if isinstance(self._text, str) else None

    def supply(self, text: str) -> None:
        """Answer the question before it is asked."""
        if self.known is None:
            self._text = text

    @cached_property
    def _starts(self) -> array[int]:
        """Where each line begins, and where one behind the last would."""
        return array("I", chain((0,), map(add, accumulate(map(len, self.text.split("\n"))), count(1))))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            found = self.block(first + 1, last).split("\n") if first < last else []
            return found[::step]
        starts = self._starts
        if index < 0:
            index -= 1  # behind the last line there is one more start
        return self.text[starts[index] : starts[index + 1] - 1]

    def column(self, number: int, offset: int) -> int:
        """The column, counted from 1 in characters, of an offset into a line as `ast` counts it: in bytes of UTF-8."""
        if self.text.isascii() or number > len(self) or (line := self[number - 1]).isascii():
            return offset + 1
        return len(line.encode()[:offset].decode(errors="ignore")) + 1

    def block(self, first: int, last: int) -> str:
        """The text of the lines from ``first`` to ``last``, counted from 1."""
        return self.text[self._starts[first - 1] : self._starts[last] - 1]

    def number(self, position: int) -> int:
        """The line, counted from 1, in which a position of the text is."""
        return bisect_right(self._starts, position)


def lines_with_ends(text: str) -> list[str]:
    """The lines with their newlines. Not `splitlines`, for which a form feed also ends a line."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def can_be_parsed(text: str) -> bool:
    """Whether a part of a file parses. A symbol table takes half the time of a syntax tree."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            symtable(text, "", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def overflows_libcst(text: str) -> bool:
    """Whether libcst's parser could run out of stack on a text: that would end the process. Errs on the safe side."""
    opened = accumulate(1 if bracket in "([{" else -1 for bracket in _BRACKET.findall(text))
    return max(opened, default=0) > _BRACKETS or sum(1 for _ in _LEVEL.finditer(text)) > _LEVELS


def _libcst_parses(text: str) -> bool:
    import libcst

    if overflows_libcst(text):
        return False
    try:
        libcst.parse_module(text)
    except Exception:  # libcst raises several kinds; any of them means that it cannot parse the text either
        return False
    return True
