"""`moe-lint matrix`: sites as rows, skip reasons as columns."""

from __future__ import annotations

import sys

import click

from moe_lint.cli.shared import EPILOG, console, fail, format_option, profile_option, read_profile, tell_failures
from moe_lint.engine import Options, UsageError, run


@click.command("matrix", epilog=EPILOG)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option(
    "--all", "every", is_flag=True, help="Also reductions that do not follow the experts (JSON has them all)."
)
@profile_option
@format_option
def command(paths: tuple[str, ...], every: bool, profile: str, output: str) -> None:
    """Show the sites as rows and the skip reasons of the tree as columns."""
    try:
        report = run(Options(paths, read_profile(profile)))
    except UsageError as error:
        fail(str(error))
    if output == "json":
        from moe_lint.reporters import json_report

        click.echo(json_report.render_matrix(report))
    else:
        from moe_lint.reporters import text

        text.show_matrix(report, console(), every)
    tell_failures(report)
    sys.exit(2 if any(problem.failed for problem in report.problems) else 0)
