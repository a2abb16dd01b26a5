"""What helps to bring moe-lint to a tree full of findings: writing them down, silencing them, fixing with questions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import click

from moe_lint.cli.shared import fail, tell_failures, to_stderr
from moe_lint.model import counted

if TYPE_CHECKING:
    from moe_lint.config import Settings
    from moe_lint.engine import Options
    from moe_lint.model import Report


def write_baseline(report: Report, settings: Settings) -> NoReturn:
    """Write down what is found, and exit."""
    from moe_lint.api import path_of
    from moe_lint.atomic import replace_file
    from moe_lint.baseline import render_baseline

    if report.exit_code == 2:
        tell_failures(report)
        fail("no baseline was written: something could not be judged")
    file = path_of(settings.one("baseline"))
    text = render_baseline(report.findings, (silenced.finding for silenced in report.suppressed), file)
    try:
        replace_file(file, text.encode())
    except OSError as error:
        fail(f"{file}: the baseline cannot be written: {error.strerror or error}")
    to_stderr(f"moe-lint: {counted(len(report.findings), 'finding')} written down in {file}")
    sys.exit(0)


def check_reason(reason: str | None) -> None:
    """Raises ``UsageError`` for a reason that no comment can hold."""
    if reason is not None:
        from moe_lint.silencing import require_reason

        require_reason(reason)


def silence(options: Options, report: Report, reason: str | None, do_diff: bool, told: Callable[[str], None]) -> Report:
    """Write (or show) a comment for every finding, and the report that is left."""
    from moe_lint.rewritten import diff, write_all
    from moe_lint.silencing import DEFAULT_REASON, add_ignores

    done = add_ignores(options, report, DEFAULT_REASON if reason is None else reason)
    if do_diff:
        click.echo(diff(done.files), nl=False)
    else:
        write_all(done.files)
        if done.files:
            told(f"silenced {counted(done.count, 'finding')} in {counted(len(done.files), 'file')}")
    for finding in done.left:
        to_stderr(f"{finding.path}:{finding.span.line}: {finding.rule}: there is no room for a comment; left as it was")
    return done.report


def need_terminal(do_diff: bool) -> None:
    """Exits when nobody can answer."""
    if do_diff:
        fail("--interactive shows each diff and asks; it does not go with --diff")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        fail("--interactive asks questions: it needs a terminal")
