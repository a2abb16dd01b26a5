"""What several commands need: options, messages, the console."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from moe_lint.model import one_line

if TYPE_CHECKING:
    from rich.console import Console

    from moe_lint.model import Report

EPILOG = "Exit status: 0 nothing left, 1 findings left (after fixing), 2 something could not be judged."


def fail(message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    to_stderr(f"moe-lint: error: {message}")
    sys.exit(2)


def to_stderr(message: str) -> None:
    click.echo(one_line(message), err=True)


def may_have_colours() -> bool:
    """Whether standard output may be shown in colours, as far as can be told without loading rich, which decides."""
    return sys.stdout.isatty() or any(name in os.environ for name in ("FORCE_COLOR", "TTY_COMPATIBLE"))


def console() -> Console:
    from rich.console import Console

    from moe_lint.reporters.table import WIDE

    width = None if sys.stdout.isatty() else WIDE
    return Console(markup=False, highlight=False, width=width)


def tell_failures(report: Report) -> None:
    """What could not be judged, on stderr."""
    for problem in report.problems:
        if problem.failed:
            to_stderr(f"{problem.path}:{problem.line}: error: {problem.message}")
