"""The body of the `verify` command: a run with a live display, and its report in the formats there are."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from reference_runtime.launch import Progress, verify
from reference_runtime.plan import Settings
from reference_runtime.report import html, json_report, text
from reference_runtime.verdicts import RunReport


def run(before: str, after: str, patterns: tuple[str, ...], settings: Settings, quiet: bool = False) -> RunReport:
    """Verify; show the progress if standard error is a terminal, unless asked to be quiet.

    Raises:
        VerifyError: the run cannot begin.
    """
    with live(sys.stderr.isatty() and not quiet) as progress:
        return verify(Path(before), Path(after), patterns, settings, progress)


def render(report: RunReport, name: str, every: bool, colour: bool) -> str:
    """The report in the format of that name, without a newline at its end.

    Args:
        every: in text, also the cases in which nothing changed.
        colour: for a terminal.
    """
    if name == "json":
        return json_report.render(report)
    if name == "html":
        return html.render(report)
    buffer = io.StringIO()
    width = None if colour else 160
    text.show(report, Console(file=buffer, markup=False, highlight=False, force_terminal=colour, width=width), every)
    return buffer.getvalue().rstrip("\n")


@contextmanager
def live(terminal: bool) -> Iterator[Progress | None]:
    """A bar per block that is being run; gone when the run is over."""
    if not terminal:
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, visible=done < total)

        yield progress
