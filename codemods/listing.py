"""Add entries to a bracketed list (the arguments of a call, the parameters of a function) in the layout that it has.

Told by tokens, so that no comment moves to another entry and everything that stays is left byte for byte.
"""

from __future__ import annotations

import io
import tokenize
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from codemods.edits import LINE_LENGTH, CannotRewrite, Edit, Source

_SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


class Listing(Struct, frozen=True):
    """A bracketed list, by offsets. ``last`` is where its last entry ends, a comma behind it included."""

    opening: int
    closing: int
    entries: tuple[str, ...]
    last: int
    trailing: bool
    comments: bool


def find_listing(source: Source, start: int, end: int | None = None) -> Listing:
    """The first parenthesised list from ``start`` on; with ``end``, the one that closes there."""
    rest = source.text[start:]
    inner = Source(rest)
    depth, opened = 0, list[int]()
    marks: list[tuple[int, int, int]] = []  # (depth inside, start, end) of each token that says something
    comments: list[int] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(rest, newline="").readline):
            at = start + inner.offset(token.start[0], token.start[1] + 1)
            to = start + inner.offset(token.end[0], token.end[1] + 1)
            if token.type == tokenize.COMMENT:
                comments.append(at)
            if token.type in _SILENT:
                continue
            if token.type == tokenize.OP and token.string in "([{":
                opened.append(at)
                marks.append((depth, at, to))
                depth += 1
            elif token.type == tokenize.OP and token.string in ")]}":
                depth -= 1
                opening = opened.pop() if opened else -1
                done = to == end if end is not None else depth == 0 and token.string == ")"
                if done:
                    return _listing(source, opening, at, depth + 1, marks, comments)
                marks.append((depth, at, to))
            else:
                marks.append((depth, at, to))
    except (tokenize.TokenError, IndexError, IndentationError):
        pass
    raise CannotRewrite("the end of the list was not found")


def _listing(
    source: Source, opening: int, closing: int, depth: int, marks: Sequence[tuple[int, int, int]], comments: list[int]
) -> Listing:
    inside = [mark for mark in marks if mark[1] > opening]
    commas = [mark for mark in inside if mark[0] == depth and source.text[mark[1] : mark[2]] == ","]
    bounds = [opening + 1, *(to for _, _, to in commas), closing]
    texts = [source.text[a:b].strip().removesuffix(",").rstrip() for a, b in pairwise(bounds)]
    last = inside[-1][2] if inside else opening + 1
    trailing = bool(commas) and commas[-1][2] == last
    return Listing(
        opening,
        closing,
        tuple(text for text in texts if text),
        last,
        trailing,
        any(at > opening for at in comments),
    )


def append(source: Source, listing: Listing, items: Sequence[str]) -> Edit:
    """The edit that adds ``items`` behind the last entry, laid out as black would (88 columns)."""
    text, newline = source.text, source.newline
    joined = ", ".join(items)
    lead = "" if not listing.entries else " " if listing.trailing else ", "
    _, last_end = source.line_of(listing.last)
    indent = source.indent_at(listing.last)
    own_line = last_end < listing.closing  # the closing bracket stands on a line below the last entry
    spread = "\n" in text[listing.opening : listing.last].strip("( \t\r\n")
    if listing.entries and own_line and (listing.trailing or listing.comments or spread):
        comma = "" if listing.trailing else ","
        behind = text[listing.last : last_end]
        lines = "".join(f"{newline}{_line(item, indent, newline)}" for item in items)
        return Edit(listing.last, last_end, comma + behind + lines)
    fits = last_end - source.line_of(listing.last)[0] + len(lead + joined) <= LINE_LENGTH
    if listing.entries and (fits or spread or listing.comments):
        if not fits and (spread or listing.comments):
            lead = f"{'' if listing.trailing else ','}{newline}{indent}"
        return Edit(listing.last, listing.last, lead + joined)
    if listing.comments:
        raise CannotRewrite("the brackets hold a comment, which would be lost")
    outer = source.indent_at(listing.opening)
    line_start, _ = source.line_of(listing.opening)
    _, line_end = source.line_of(listing.closing)
    if not listing.entries and line_end - line_start + len(joined) <= LINE_LENGTH:
        return Edit(listing.opening + 1, listing.closing, joined)
    step = "\t" if outer.startswith("\t") else "    "
    everything = [*listing.entries, *items]
    inner = f"{newline}{outer}{step}{', '.join(everything)}"
    if own_line or len(inner) - len(newline) > LINE_LENGTH:
        inner = "".join(f"{newline}{_line(entry, outer + step, newline)}" for entry in everything)
    return Edit(listing.opening + 1, listing.closing, f"{inner}{newline}{outer}")


def _line(entry: str, indent: str, newline: str) -> str:
    """An entry on a line of its own; a call that is too long for it has its arguments on the next one."""
    line = f"{indent}{entry},"
    head, bracket, arguments = entry.rpartition("(")
    if len(line) <= LINE_LENGTH or not bracket or not arguments.endswith(")") or "\n" in entry or len(arguments) == 1:
        return line
    step = "\t" if indent.startswith("\t") else "    "
    return f"{indent}{head}({newline}{indent}{step}{arguments[:-1]}{newline}{indent}),"
