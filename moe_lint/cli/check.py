"""`moe-lint check`: judge, fix or show the fix, report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import click

from moe_lint.api import options_of
from moe_lint.cli.adoption import write_baseline
from moe_lint.cli.outputs import Output, chosen, echo_report, output_options, wants_patches, write_files
from moe_lint.cli.settings import check_options, fix_level, settings_for
from moe_lint.cli.shared import EPILOG, console, fail, tell_failures, to_stderr
from moe_lint.engine import Options, run
from moe_lint.model import Report
from moe_lint.reporters import FORMATS, render
from moe_lint.reporters.summary import not_compared, statistics, summary


@click.command("check", epilog=EPILOG)
@click.argument("paths", nargs=-1, metavar="PATH…")
@click.option("--fix", "do_fix", is_flag=True, help="Apply safe and corrective fixes.")
@click.option("--diff", "do_diff", is_flag=True, help="Show what --fix would change, and change nothing.")
@click.option("--write-baseline", "do_baseline", is_flag=True, help="Write what is found to the --baseline FILE.")
@check_options
@click.option("--statistics", is_flag=True, help="Count the findings of each rule instead of showing them.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 when there are findings.")
@click.option("--quiet", "-q", is_flag=True, help="Show findings and nothing else.")
@click.option("--verbose", "-v", is_flag=True, help="Also list every reduction that was not compared, and why.")
@output_options(FORMATS)
@click.pass_context
def command(
    context: click.Context,
    paths: tuple[str, ...],
    do_fix: bool,
    do_diff: bool,
    do_baseline: bool,
    statistics: bool,
    exit_zero: bool,
    quiet: bool,
    verbose: bool,
    outputs: tuple[Output, ...],
    to_stdout: Output | None,
) -> None:
    """Judge every all-reduce after the experts below the given files and folders."""
    settings = settings_for(context, paths)
    level = fix_level(settings)
    if do_baseline and (do_fix or do_diff or outputs or to_stdout):
        fail("--write-baseline takes no --fix, --diff or --output: fix first, then write down what is left")
    if do_baseline and settings.one("baseline").value is None:
        fail("--write-baseline needs to know where: give --baseline FILE too")
    if quiet and verbose:
        fail("--quiet and --verbose exclude each other")
    stdout, files = chosen(outputs, to_stdout)
    if do_diff and stdout.format != "text":
        fail(f"--diff and {stdout.format} both go to standard output; give {stdout.format} a file")
    if not paths:
        sys.exit(0)  # a pre-commit run in which no file matched
    shows_sums = any(output.format == "html" for output in (stdout, *files))
    options = replace(options_of(paths, settings, baseline=not do_baseline), law=shows_sums)
    report = run(options)
    if do_baseline:
        write_baseline(report, settings)
    exit_code = report.exit_code
    told = to_stderr if quiet or stdout.format not in ("text", "concise") else click.echo
    if do_fix and exit_code == 2:
        to_stderr("moe-lint: nothing was written: some files could not be judged")
    elif do_fix or do_diff:
        after = _fixed(options, report, level, do_diff, told)
        if do_diff:  # a diff leaves every finding where it is
            to_stderr(f"after these changes: {summary(after)}")
        else:
            report, exit_code = after, after.exit_code
    if wants_patches([stdout, *files]):
        from moe_lint.fixing import ALLOWED, patches

        report = replace(report, patches=patches(options, report, ALLOWED["default"]))
    write_files(files, lambda output: render(report, output))
    if not do_diff:
        _show(report, stdout.format, statistics, quiet, verbose)
    tell_failures(report)
    sys.exit(0 if exit_zero and exit_code == 1 else exit_code)


def _show(report: Report, output: str, statistics_only: bool, quiet: bool, verbose: bool) -> None:
    """The report on standard output."""
    if statistics_only:
        echo_report(statistics(report))
    elif output == "text":
        from moe_lint.reporters.text import show

        show(report, console(), quiet=quiet, verbose=verbose)
        return
    else:
        echo_report(render(report, output))
    for_people = statistics_only or output == "concise"
    if verbose:
        for path, line, why in not_compared(report):
            click.echo(f"{path}:{line}: note: {why}", err=not for_people)
    if for_people and not quiet:
        click.echo(summary(report))


def _fixed(options: Options, report: Report, level: str, do_diff: bool, told: Callable[[str], None]) -> Report:
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
        for path, line, safety, reason in behaviour(result.fixed):
            told(f"fixed {path}:{line} ({safety.value}): {reason}")
    for path, line, reason in result.not_proven:
        to_stderr(f"{path}:{line}: FIX_NOT_PROVEN: {reason}; left as it was")
    if result.held_back:
        to_stderr(f"moe-lint: {result.held_back} fix(es) held back; see --unsafe-fixes")
    return result.report
