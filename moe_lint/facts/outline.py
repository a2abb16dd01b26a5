"""Text -> the classes and functions at its top level, the methods of a class, and local imports, told without parsing.

Parsing is the dearest step of a run, and a question leads to one class of a file and to few of its methods, seldom to
all of them. What the outline gets wrong (a string that holds code at the left margin) does not parse, and then the
class, or the whole file, is parsed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from moe_lint.facts.syntax import is_property_name
from moe_lint.source import Lines

_QUOTED_OR_COMMENT = re.compile(r"""["'#]""")
#: A comment or a string.
_TOKEN = re.compile(
    r"""#[^\n]*|\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL
)
_DEFINITION = re.compile(r"(?:async[ \t]+def|def|class)[ \t]+(\w+)")
_METHOD = re.compile(r"(?:async[ \t]+)?def[ \t]+(\w+)")
_DEF = re.compile(r"def[ \t]")
_DECORATOR = re.compile(r"@[ \t]*([\w.]+)")
#: What may stand before the keyword of an import below the top level.
_BEFORE_IMPORT = re.compile(r"(?:[ \t]+|[^\n]*[:;][ \t]*)((?:from[ \t]+[.\w]+[ \t]+)?)$")
#: The rest of an import: to its end, over parentheses and backslashes.
_IMPORT = re.compile(r"import[ \t]*(?:[^\n;#(]*\([^)]*\)|(?:[^\n;#\\]|\\\n)*)")


class Block(Struct, frozen=True, array_like=True):
    """A class or function at the top level: its name and its lines, decorators included."""

    name: str
    is_class: bool
    first: int
    last: int


class Method(Struct, frozen=True, tag=True, array_like=True):
    """A method as its class's text shows it: its lines with decorators (``first``), from its `def` on (``line``)."""

    name: str
    first: int
    line: int
    last: int
    is_property: bool
    #: how far its `def` stands from the margin
    indent: int


def outline(lines: Lines) -> list[Block]:
    """The blocks of a file, in order."""
    text = lines.text
    found: list[Block] = []
    name, is_class, first = "", False, 0
    decorated = 0  # the first line of the decorators above
    for line, _, start in _statements(text, 0):
        if name:
            found.append(Block(name, is_class, first, line - 1))
            name = ""
        definition = _DEFINITION.match(text, start)
        if definition is not None:
            name, is_class, first = definition.group(1), text.startswith("class", start), decorated or line
        decorated = (decorated or line) if text[start] == "@" else 0
    if name:
        found.append(Block(name, is_class, first, len(lines)))
    return found


def methods(lines: Lines, block: Block) -> list[Method]:
    """The methods right below a class, in order; none where they cannot be told surely."""
    text = lines.block(block.first, block.last)
    indents = list(_definition_indents(text))
    if not indents or "\t" in "".join(indents) or "\f" in text:
        return []
    width = min(map(len, indents))
    found: list[Method] = []
    open_method: Method | None = None
    decorators: list[tuple[int, str]] = []
    for offset, indent, start in _statements(text, width):
        number = block.first - 1 + offset
        if open_method is not None:
            found.append(_closed(open_method, number - 1, lines))
            open_method = None
        decorator = _DECORATOR.match(text, start)
        if decorator is not None:
            decorators.append((number, decorator.group(1)))
            continue
        definition = _METHOD.match(text, start) if indent == width else None
        if definition is not None:
            first = decorators[0][0] if decorators else number
            is_property = is_property_name(name for _, name in decorators)
            open_method = Method(definition.group(1), first, number, number, is_property, width)
        decorators = []
    if open_method is not None:
        found.append(_closed(open_method, block.last, lines))
    return found


def _statements(text: str, width: int) -> Iterator[tuple[int, int, int]]:
    """(line, from 1 on; blanks before it; its position) of what starts at most ``width`` blanks from the margin.

    Text in strings is left out, and so are the lines that close a bracket.
    """
    strings = _strings(text)
    line, counted = 1, 0
    # a line's end comes first: a pattern that starts with plain text is searched several times faster
    for match in re.finditer(rf"\n( {{0,{width}}})(?=[^\s#)\]}}])", f"\n{text}"):
        start = match.start()  # of the line, in the text without the end put before it
        line += text.count("\n", counted, start)
        counted = start
        if not _inside(strings, start):
            yield line, len(match.group(1)), start + len(match.group(1))


def _definition_indents(text: str) -> Iterator[str]:
    """What stands before each indented `def`."""
    strings = _strings(text)
    for match in _DEF.finditer(text):
        start = text.rfind("\n", 0, match.start()) + 1
        before = text[start : match.start()]
        indent = before[: len(before) - len(before.lstrip(" \t"))]
        if indent and before[len(indent) :].rstrip(" \t") in ("", "async") and not _inside(strings, start):
            yield indent


def _closed(method: Method, last: int, lines: Lines) -> Method:
    """The method with its last line: blank lines and comments behind it are not part of it."""
    while not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#"):
        last -= 1
    return replace(method, last=last)


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
        if _QUOTED_OR_COMMENT.search(text, text.rfind("\n", 0, start) + 1, start):
            return _strings_by_token(text)  # perhaps it stands in another string, or in a comment
        end = text.find(quote, start + 3)
        found += [start] if end < 0 else [start, end + 3]
        position = end + 3
        if end < 0:
            break
    return found


def _strings_by_token(text: str) -> list[int]:
    """The same, reading every string and comment on the way: slower, and seldom needed."""
    return [
        place
        for match in _TOKEN.finditer(text)
        if match.group().startswith(('"""', "'''"))
        for place in (match.start(), match.end())
    ]


def _inside(strings: list[int], position: int) -> bool:
    return bisect_left(strings, position) % 2 == 1


def without(lines: Lines, blocks: list[Block]) -> str:
    """The text of a file with the lines of the blocks left empty: what runs at its top level."""
    parts = []
    covered = 0
    for block in blocks:
        if covered < block.first - 1:
            parts.append(lines.block(covered + 1, block.first - 1))
        parts.append("\n" * (block.last - block.first))
        covered = block.last
    if covered < len(lines):
        parts.append(lines.block(covered + 1, len(lines)))
    return "\n".join(parts)
