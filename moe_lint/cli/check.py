"""`moe-lint check`: judge, fix or show the fix, report."""

from __future__ import annotations

import sys

import click

from moe_lint.cli.shared import (
    EPILOG,
    codes,
    console,
    fail,
    format_option,
    profile_option,
    read_profile,
    tell_failures,
    to_stderr,
)
from moe_lint.engine import Options, UsageError, run
from moe_lint.model import Report


@click.command("check", epilog=EPILOG)
@click.argument("paths", nargs=-1, metavar="PATH…")
@click.option("--fix", "do_fix", is_flag=True, help="Apply safe and corrective fixes.")
@click.option("--diff", "do_diff", is_flag=True, help="Show what --fix would change, and change nothing.")
@click.option("--safe-only", is_flag=True, help="Only fixes that keep the behaviour in every state.")
@click.option("--unsafe-fixes", is_flag=True, help="Also fixes that could lose a reduction.")
@click.option("--select", multiple=True, callback=codes, metavar="CODE", help="Only these rules (code or name).")
@click.option("--ignore", multiple=True, callback=codes, metavar="CODE", help="Not these rules.")
@profile_option
@format_option
def command(
    paths: tuple[str, ...],
    do_fix: bool,
    do_diff: bool,
    safe_only: bool,
    unsafe_fixes: bool,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    profile: str,
    output: str,
) -> None:
    """Judge every all-reduce after the experts below the given files and folders."""
    if not paths:
        sys.exit(0)  # a pre-commit run in which no file matched
    if safe_only and unsafe_fixes:
        fail("--safe-only and --unsafe-fixes exclude each other")
    options = Options(paths, read_profile(profile), select, ignore)
    try:
        report = run(options)
    except UsageError as error:
        fail(str(error))
    exit_code = report.exit_code
    if do_fix and exit_code == 2:
        to_stderr("moe-lint: nothing was written: some files could not be judged")
    elif do_fix or do_diff:
        level = "safe" if safe_only else "unsafe" if unsafe_fixes else "default"
        report = _fixed(options, report, level, do_diff, output)
        exit_code = exit_code if do_diff else report.exit_code  # a diff leaves every finding where it is
    _show(report, output, diff_only=do_diff)
    tell_failures(report)
    sys.exit(exit_code)


def _fixed(options: Options, report: Report, level: str, do_diff: bool, output: str) -> Report:
    """Fix (or show the diff of fixing), and the report that is left."""
    from moe_lint.fixing import ALLOWED, behaviour, diff, fix, write

    result = fix(options, report, ALLOWED[level])
    if do_diff:
        click.echo(diff(result.fixed), nl=False)
    else:
        for one in result.fixed:
            try:
                write(one.path, one.before, one.after)
            except (OSError, UnicodeEncodeError) as error:
                fail(f"{one.path}: cannot be written: {error}")
    told = click.echo if output == "text" else to_stderr
    if not do_diff:
        for path, line, safety, reason in behaviour(result.fixed):
            told(f"fixed {path}:{line} ({safety.value}): {reason}")
    for path, line, reason in result.not_proven:
        to_stderr(f"{path}:{line}: FIX_NOT_PROVEN: {reason}; left as it was")
    if result.held_back:
        to_stderr(f"moe-lint: {result.held_back} fix(es) held back; see --unsafe-fixes")
    return result.report


def _show(report: Report, output: str, diff_only: bool = False) -> None:
    if output == "json":
        from moe_lint.reporters import json_report

        if not diff_only:
            click.echo(json_report.render(report))
        return
    from moe_lint.reporters import text

    if diff_only:
        to_stderr(f"after these changes: {text.summary(report)}")
    else:
        text.show(report, console())
