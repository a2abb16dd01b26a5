"""Text -> the classes and functions at its top level, and its local imports, told without parsing.

Parsing is the dearest step of a run, and a question leads to one class of a file, seldom to all of them. What the
outline gets wrong (a string that holds code at the left margin) does not parse, and then the whole file is parsed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from msgspec import Struct

_QUOTES = re.compile(r'"""|\'\'\'')
#: A line that starts a statement at the left margin; brackets there close one.
_MARGIN = re.compile(r"^[^\s#)\]}][^\n]*", re.MULTILINE)
_DEFINITION = re.compile(r"(?:async[ \t]+def|def|class)[ \t]+(\w+)")
#: What may stand before the keyword of an import below the top level.
_BEFORE_IMPORT = re.compile(r"(?:[ \t]+|[^\n]*[:;][ \t]*)((?:from[ \t]+[.\w]+[ \t]+)?)$")
#: The rest of an import: to its end, over parentheses and backslashes.
_IMPORT = re.compile(r"import[ \t]*(?:[^\n;#(]*\([^)]*\)|(?:[^\n;#\\]|\\\n)*)")


class Block(Struct, frozen=True):
    """A class or function at the top level: its name and its lines, decorators included."""

    name: str
    is_class: bool
    first: int
    last: int


def outline(text: str) -> list[Block]:
    """The blocks of a file, in order."""
    strings = _strings(text)
    found: list[Block] = []
    name, is_class, first = "", False, 0
    decorated = 0  # the first line of the decorators above
    line, position = 1, 0
    for match in _MARGIN.finditer(text):
        if _inside(strings, match.start()):
            continue
        line += text.count("\n", position, match.start())
        position = match.start()
        if name:
            found.append(Block(name, is_class, first, line - 1))
            name = ""
        statement = match.group()
        definition = _DEFINITION.match(statement)
        if definition is not None:
            name, is_class, first = definition.group(1), statement.startswith("class"), decorated or line
        decorated = (decorated or line) if statement.startswith("@") else 0
    if name:
        found.append(Block(name, is_class, first, text.count("\n") + 1))
    return found


def local_imports(text: str) -> list[str]:
    """The import statements below the top level, as written."""
    found: list[str] = []
    for match in _IMPORT.finditer(text):
        start = text.rfind("\n", 0, match.start()) + 1
        before = _BEFORE_IMPORT.match(text[start : match.start()])
        if before is not None:
            found.append(before.group(1) + match.group())
    return found


def _strings(text: str) -> list[int]:
    """Where strings in triple quotes begin and end, by turns."""
    found: list[int] = []
    position = 0
    quotes = [quote for quote in ('"""', "'''") if quote in text]
    while quotes:
        starts = [(start, quote) for quote in quotes if (start := text.find(quote, position)) >= 0]
        if not starts:
            break
        start, quote = min(starts)
        end = text.find(quote, start + 3)
        found += [start] if end < 0 else [start, end + 3]
        position = end + 3
        if end < 0:
            break
    return found


def _inside(strings: list[int], position: int) -> bool:
    return bisect_right(strings, position) % 2 == 1


def without(lines: list[str], blocks: list[Block]) -> Iterator[str]:
    """The lines of a file with those of the blocks left empty: what runs at its top level."""
    covered = 0
    for block in blocks:
        yield from lines[covered : block.first - 1]
        yield from [""] * (block.last - block.first + 1)
        covered = block.last
    yield from lines[covered:]
