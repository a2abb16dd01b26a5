"""The matrix for people: a table of sites and skip reasons."""

from __future__ import annotations

from collections import Counter
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe_lint.model import MatrixRow, Report, one_line
from moe_lint.reporters.text import line

#: Where there is no terminal, a row of a table is one line.
WIDE = 1000


def render(report: Report) -> str:
    """The whole text without colour, as it goes to a file."""
    stream = StringIO()
    show(report, Console(file=stream, markup=False, highlight=False, width=WIDE), every=False)
    return stream.getvalue()


def show(report: Report, console: Console, every: bool) -> None:
    """Print sites as rows and skip atoms as columns; EP/TP pairs stand together under one letter."""
    rows = [row for row in report.rows if row.post_experts or every]
    if not rows:
        others = len(report.rows)
        told = f"; --all shows {others} that do{'es' * (others == 1)} not follow them" if others else ""
        console.print(Text.assemble(*line("note", "bold cyan", f"no reduction after experts{told}")), soft_wrap=True)
        return
    for atom_number, atom in enumerate(report.atoms, 1):
        console.print(Text(f"[{atom_number}] {atom}"), soft_wrap=True)
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
    for reason in _why(rows):
        console.print(Text(reason), soft_wrap=True)  # of a plain `:100:` rich would make a picture
    for note in report.notes:
        console.print(Text.assemble(*line("note", "bold cyan", one_line(note))), soft_wrap=True)


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
