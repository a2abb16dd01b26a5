"""Text for people: a code frame for every finding, in the style of rustc; the matrix as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import groupby

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moe_lint.model import Finding, MatrixRow, Report, Severity, one_line, visible
from moe_lint.reporters.summary import notes, summary

_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.INFO: "bold blue"}
_MAX_FRAME = 9
#: Where there is no terminal, a row of a table is one line.
WIDE = 1000


def render(report: Report) -> str:
    """The whole text without colour, as it goes to a file."""
    return _plain(lambda console: show(report, console))


def render_matrix(report: Report) -> str:
    return _plain(lambda console: show_matrix(report, console, every=False))


def _plain(show: Callable[[Console], None]) -> str:
    stream = StringIO()
    show(Console(file=stream, markup=False, highlight=False, width=WIDE))
    return stream.getvalue()


def show(report: Report, console: Console, *, quiet: bool = False, aside: Sequence[str] = ()) -> None:
    """Print the findings; unless ``quiet``, the notes, what else is to be told ``aside``, and a summary line."""
    texts: dict[str, list[str]] = {}
    for _, group in groupby(report.findings, key=lambda finding: (finding.path, finding.span)):
        console.print(_frame(tuple(group), texts), soft_wrap=True)
    if quiet:
        return
    for note in notes(report, aside):
        console.print(_line("note", "bold cyan", note), soft_wrap=True)
    console.print(summary(report), soft_wrap=True)


def _line(label: str, style: str, message: str) -> Text:
    return Text.assemble((label, style), f": {message}")


def _frame(findings: Sequence[Finding], texts: dict[str, list[str]]) -> Text:
    """What is found at one place: a headline for each finding, the code once, and what they say about it once."""
    text = Text()
    for finding in findings:
        text.append(f"{finding.severity.value}[{finding.rule}]", _STYLE[finding.severity])
        text.append(f" {finding.name}: {finding.message}\n", "bold")
    finding = findings[0]
    pad = " " * len(str(finding.span.end_line))
    text.append(f"{pad}--> ", "blue")
    text.append(f"{one_line(finding.path)}:{finding.span.line}:{finding.span.column}")
    text.append(f" in `{finding.qualname}`\n" if finding.qualname else "\n")
    if finding.path not in texts:
        texts[finding.path] = _read(finding.path)
    text.append(f"{pad} |\n", "blue")
    _append_code(text, findings, texts[finding.path], pad)
    text.append(f"{pad} |\n", "blue")
    for label, message in dict.fromkeys(_told(findings)):
        text.append(f"{pad} = ", "blue")
        text.append(label, "bold")
        text.append(f": {message}\n")
    return text


def _append_code(text: Text, findings: Sequence[Finding], lines: Sequence[str], pad: str) -> None:
    """The lines from the guard to the reduction, numbered, the reduction marked; of many, the first and the last."""
    style, span = _STYLE[findings[0].severity], findings[0].span
    width, previous = len(pad), 0
    for number in _lines_shown(findings, lines):
        if previous and number != previous + 1:
            text.append(f"{'.' * width}\n", "blue")
        text.append(f"{number:>{width}} | ", "blue")
        line = lines[number - 1]
        text.append(f"{visible(line)}\n")
        if number == span.line:
            start, end = span.column - 1, span.end_column - 1 if span.end_line == span.line else len(line)
            before = "".join("\t" if c == "\t" else " " * cell_len(c) for c in visible(line[:start]))
            marks = "^" * max(1, cell_len(visible(line[start:end])))
            text.append(f"{pad} | ", "blue")
            text.append(f"{before}{marks}\n", style)
        previous = number


def _lines_shown(findings: Sequence[Finding], lines: Sequence[str]) -> list[int]:
    span = findings[0].span
    first = min([span.line, *(one.guard.line for one in findings if one.guard is not None)])
    if first > 1 and first <= len(lines) and lines[first - 2].rstrip().endswith("("):
        first -= 1  # the `if (` of a condition that begins on its own line
    shown = list(range(first, span.end_line + 1))
    if len(shown) > _MAX_FRAME:
        shown = [*shown[:3], *shown[-3:]]
    return [number for number in shown if number <= len(lines)]


def _told(findings: Sequence[Finding]) -> Iterator[tuple[str, str]]:
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


def show_matrix(report: Report, console: Console, every: bool) -> None:
    """Print sites as rows and skip atoms as columns; EP/TP pairs stand together under one letter."""
    from rich.table import Table

    rows = [row for row in report.rows if row.post_experts or every]
    if not rows:
        others = len(report.rows)
        told = f"; --all shows {others} that do{'es' * (others == 1)} not follow them" if others else ""
        console.print(_line("note", "bold cyan", f"no reduction after experts{told}"), soft_wrap=True)
        return
    for atom_number, atom in enumerate(report.atoms, 1):
        console.print(f"[{atom_number}] {atom}", markup=False, highlight=False, soft_wrap=True)
    table = Table(show_lines=False, pad_edge=False, box=None, header_style="bold")
    for column in ("site", "function", "axis", "pair", "route", "relation"):
        table.add_column(column, no_wrap=column != "site", overflow="fold")
    for number in range(1, len(report.atoms) + 1):
        table.add_column(Text(f"[{number}]"), justify="center")
    table.add_column("absorber", no_wrap=True)
    judged = any(row.law is not None for row in rows)
    if judged:
        table.add_column("sums", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row, report.atoms), *([_law(row)] if judged else []))
    console.print(table)
    for line in _why(rows):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for note in report.notes:
        console.print(_line("note", "bold cyan", one_line(note)), soft_wrap=True)


_LAW = {"once": "green", "undecided": "yellow"}


def _law(row: MatrixRow) -> Text:
    return Text("-", "dim") if row.law is None else Text(row.law.verdict, _LAW.get(row.law.verdict, "bold red"))


def _why(rows: list[MatrixRow]) -> list[str]:
    """What is behind the verdicts: a configuration for each that is broken, a count for each reason it is open."""
    broken = [
        f"{one_line(row.path)}:{row.span.line}: {row.law.verdict} with {row.law.configuration}: {row.law.reason}"
        for row in rows
        if row.law is not None and row.law.verdict in ("doubled", "lost")
    ]
    reasons = Counter(row.law.reason for row in rows if row.law is not None and row.law.verdict == "undecided")
    return [*broken, *(f"undecided ({count}): {reason}" for reason, count in sorted(reasons.items()))]


def _cells(row: MatrixRow, columns: tuple[str, ...]) -> list[Text]:
    colour = {"equal": "green", None: "dim"}.get(row.relation, "red")
    honoured = dict(row.atoms)
    marks = []
    for column in columns:
        value = honoured.get(column)
        marks.append(Text("-", "dim") if value is None else Text("yes", "green") if value else Text("NO", "bold red"))
    absorber = {True: Text("yes"), False: Text("no", "dim"), None: Text("?", "yellow")}[row.absorber]
    return [
        Text(f"{one_line(row.path)}:{row.span.line}"),
        Text(row.qualname),
        Text(row.axis),
        Text("" if row.pair is None else f"#{row.pair}"),
        Text(row.route),
        Text(row.relation or "-", colour),
        *marks,
        absorber,
    ]
