"""Text for people: a code frame for every finding, in the style of rustc. Rich is loaded where there are colours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from moe_lint.model import Finding, Report, Severity, one_line, visible
from moe_lint.reporters.summary import notes, summary

if TYPE_CHECKING:
    from rich.console import Console

#: A piece of text, and how it is shown where there are colours.
Piece = tuple[str, str]

_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold blue"}
_MAX_FRAME = 9
#: Cells between the stops of a terminal.
_TAB = 8


def render(report: Report) -> str:
    """The whole text without colour, as it goes to a file."""
    return plain(told(report))


def plain(paragraphs: Iterable[Sequence[Piece]]) -> str:
    lines = "".join(f"{''.join(text for text, _ in pieces)}\n" for pieces in paragraphs)
    return "\n".join(_with_blanks(line) if "\t" in line else line for line in lines.split("\n"))


def show(paragraphs: Iterable[Sequence[Piece]], console: Console) -> None:
    """Print them with what the console has of colours."""
    from rich.text import Text

    for pieces in paragraphs:
        console.print(Text.assemble(*pieces), soft_wrap=True)


def told(report: Report, *, quiet: bool = False, aside: Sequence[str] = ()) -> Iterator[Sequence[Piece]]:
    """The findings; unless ``quiet``, the notes, what else is to be told ``aside``, and a summary line."""
    texts: dict[str, list[str]] = {}
    for _, group in groupby(report.findings, key=lambda finding: (finding.path, finding.span)):
        yield list(_frame(tuple(group), texts))
    if quiet:
        return
    yield from (line("note", "bold cyan", note) for note in notes(report, aside))
    yield [(summary(report), "")]


def line(label: str, style: str, message: str) -> Sequence[Piece]:
    return (label, style), (f": {message}", "")


def _frame(findings: Sequence[Finding], texts: dict[str, list[str]]) -> Iterator[Piece]:
    """What is found at one place: a headline for each finding, the code once, and what they say about it once."""
    for finding in findings:
        yield f"{finding.severity.value}[{finding.rule}]", _STYLE[finding.severity]
        yield f" {finding.name}: {finding.message}\n", "bold"
    finding = findings[0]
    pad = " " * len(str(finding.span.end_line))
    yield f"{pad}--> ", "blue"
    yield f"{one_line(finding.path)}:{finding.span.line}:{finding.span.column}", ""
    yield f" in `{finding.qualname}`\n" if finding.qualname else "\n", ""
    if finding.path not in texts:
        texts[finding.path] = _read(finding.path)
    yield f"{pad} |\n", "blue"
    yield from _code(findings, texts[finding.path], pad)
    yield f"{pad} |\n", "blue"
    for label, message in dict.fromkeys(_said(findings)):
        yield f"{pad} = ", "blue"
        yield label, "bold"
        yield f": {message}\n", ""


def _code(findings: Sequence[Finding], lines: Sequence[str], pad: str) -> Iterator[Piece]:
    """The lines from the guard to the reduction, numbered, the reduction marked; of many, the first and the last."""
    style, span = _STYLE[findings[0].severity], findings[0].span
    width, previous = len(pad), 0
    for number in _lines_shown(findings, lines):
        if previous and number != previous + 1:
            yield f"{'.' * width}\n", "blue"
        yield f"{number:>{width}} | ", "blue"
        line = lines[number - 1]
        yield f"{visible(line)}\n", ""
        if number == span.line:
            start, end = span.column - 1, span.end_column - 1 if span.end_line == span.line else len(line)
            before = "".join("\t" if c == "\t" else " " * _cells(c) for c in visible(line[:start]))
            marks = "^" * max(1, _cells(visible(line[start:end])))
            yield f"{pad} | ", "blue"
            yield f"{before}{marks}\n", style
        previous = number


def _cells(text: str) -> int:
    """How wide a text is on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _with_blanks(line: str) -> str:
    """A line with blanks for its tabs."""
    shown, *rest = line.split("\t")
    for part in rest:
        shown += " " * (_TAB - _cells(shown) % _TAB) + part
    return shown


def _lines_shown(findings: Sequence[Finding], lines: Sequence[str]) -> list[int]:
    span = findings[0].span
    first = min([span.line, *(one.guard.line for one in findings if one.guard is not None)])
    if first > 1 and first <= len(lines) and lines[first - 2].rstrip().endswith("("):
        first -= 1  # the `if (` of a condition that begins on its own line
    shown = list(range(first, span.end_line + 1))
    if len(shown) > _MAX_FRAME:
        shown = [*shown[:3], *shown[-3:]]
    return [number for number in shown if number <= len(lines)]


def _said(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
    """(label, what findings say beside the code), each kind together."""
    yield from (("wrong", finding.witness) for finding in findings if finding.witness)
    yield from (("help", finding.remedy) for finding in findings if finding.remedy)
    for finding in findings:
        yield from (("see", f"{one_line(one.path)}:{one.line}: {one.message}") for one in finding.related)
    yield from (("fix", f"{one.fix.safety.value}: {one.fix.reason}") for one in findings if one.fix is not None)
    yield from (("no fix", one.unfixable) for one in findings if one.unfixable is not None)


def _read(path: str) -> list[str]:
    import tokenize  # only a run with findings shows code

    try:
        with tokenize.open(path) as stream:
            return stream.read().split("\n")
    except (OSError, SyntaxError, UnicodeDecodeError):
        return []
