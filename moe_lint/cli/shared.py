"""What several commands need: options, messages, the console."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console

    from moe_lint.model import Report
    from moe_lint.profile import Profile

EPILOG = "Exit status: 0 nothing left, 1 findings left (after fixing), 2 something could not be judged."

profile_option = click.option(
    "--profile", default="sglang", show_default=True, metavar="NAME|FILE", help="The engine's vocabulary."
)


def fail(message: str) -> NoReturn:
    """One line on stderr, exit status 2."""
    to_stderr(f"moe-lint: error: {message}")
    sys.exit(2)


def to_stderr(message: str) -> None:
    click.echo(message, err=True)


def read_profile(reference: str) -> Profile:
    from moe_lint.profile import ProfileError, load_profile

    try:
        return load_profile(reference)
    except ProfileError as error:
        fail(str(error))


def codes(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Rule codes, given one by one or with commas."""
    return tuple(code.strip() for item in value for code in item.split(",") if code.strip())


def console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(markup=False, highlight=False, width=width)


def tell_failures(report: Report) -> None:
    """What could not be judged, on stderr."""
    for problem in report.problems:
        if problem.failed:
            to_stderr(f"{problem.path}:{problem.line}: error: {problem.message}")
