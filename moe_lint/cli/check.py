"""`moe-lint check`: judge, fix or show the fix, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from msgspec import Struct
from msgspec.structs import replace

from moe_lint.api import options_of, path_of
from moe_lint.cli.adoption import check_reason, need_terminal, silence, write_baseline
from moe_lint.cli.caching import cache_of, cache_options
from moe_lint.cli.outputs import Output, chosen, echo_report, keep_inputs, output_options, wants_patches, write_files
from moe_lint.cli.settings import check_options, fix_level, settings_for
from moe_lint.cli.shared import EPILOG, console, fail, may_have_colours, tell_failures, to_stderr
from moe_lint.config import Settings
from moe_lint.discover import left_out
from moe_lint.engine import Options, run
from moe_lint.model import Report
from moe_lint.reporters import FORMATS, render
from moe_lint.reporters.summary import not_compared, notes, statistics, summary


@click.command("check", epilog=EPILOG)
@click.argument("paths", nargs=-1, type=click.Path(readable=False), metavar="PATH…")
@click.option("--fix", "do_fix", is_flag=True, help="Apply safe and corrective fixes.")
@click.option("--diff", "do_diff", is_flag=True, help="Show what --fix would change, and change nothing.")
@click.option(
    "--verify",
    "do_verify",
    is_flag=True,
    help="With --fix: run what is rewritten on several ranks, and leave a file as it was if a case breaks.",
)
@click.option("--interactive", is_flag=True, help="Ask fix by fix, with the diff. Implies --fix.")
@click.option("--add-ignores", "do_ignores", is_flag=True, help="Silence every finding with a comment.")
@click.option("--reason", metavar="TEXT", help="What these comments give as the reason.  [default: not looked at yet]")
@click.option("--write-baseline", "do_baseline", is_flag=True, help="Write what is found to the --baseline FILE.")
@click.option("--since", metavar="REV", help="Report only what the changes since this git revision touch.")
@check_options
@click.option("--statistics", is_flag=True, help="Count the findings of each rule instead of showing them.")
@click.option("--exit-zero", is_flag=True, help="Exit with 0 when there are findings.")
@click.option("--quiet", "-q", is_flag=True, help="Show findings and nothing else.")
@click.option(
    "--verbose",
    "-v",
    is_flag=True,
    help="Also list every reduction that was not compared and every file that was not read, and why.",
)
@output_options(FORMATS)
@cache_options
@click.pass_context
def command(
    context: click.Context,
    paths: tuple[str, ...],
    do_fix: bool,
    do_diff: bool,
    do_verify: bool,
    interactive: bool,
    do_ignores: bool,
    reason: str | None,
    do_baseline: bool,
    since: str | None,
    statistics: bool,
    exit_zero: bool,
    quiet: bool,
    verbose: bool,
    outputs: tuple[Output, ...],
    to_stdout: Output | None,
    cache_dir: Path | None,
    no_cache: bool,
) -> None:
    """Judge every all-reduce after the experts in files and folders."""
    asked = _Asked(do_fix, do_diff, do_verify, interactive, do_ignores, do_baseline, statistics, quiet, verbose)
    settings = settings_for(context, paths)
    level = fix_level(settings)
    _refuse_what_collides(asked)
    _refuse_half_requests(asked, settings, reason, alone=not (outputs or to_stdout or since is not None))
    stdout, files = chosen(outputs, to_stdout)
    _refuse_two_on_stdout(asked, stdout)
    keep_inputs([one.file for one in files], settings)
    if interactive:
        need_terminal(do_diff)
    if not paths:
        sys.exit(0)  # a pre-commit run in which no file matched
    shows_sums = any(output.format == "html" for output in (stdout, *files))
    options = options_of(paths, settings, baseline=not do_baseline, since=since)
    options = replace(options, law=shows_sums, cache=cache_of(cache_dir, no_cache), known={})
    report = run(options)
    if do_baseline:
        write_baseline(report, settings)
    told = _nothing if quiet else click.echo if stdout.format in ("text", "concise") else to_stderr
    report, exit_code = _rewritten(options, report, asked, level, reason, told)
    if wants_patches([stdout, *files]):
        from moe_lint.fixing import ALLOWED, patches

        report = replace(report, patches=patches(options, report, ALLOWED["default"]))
    write_files(files, lambda output: render(report, output))
    if not do_diff:
        _show(report, stdout.format, asked, _passed_over(report, options) if verbose else None)
    tell_failures(report)
    sys.exit(0 if exit_zero and exit_code == 1 else exit_code)


class _Asked(Struct, frozen=True):
    """What a run is to do with what it finds, and how much it is to tell."""

    fix: bool
    diff: bool
    verify: bool
    interactive: bool
    ignores: bool
    baseline: bool
    statistics: bool
    quiet: bool
    verbose: bool

    @property
    def writes_fixes(self) -> bool:
        return self.fix or self.interactive


def _refuse_what_collides(asked: _Asked) -> None:
    modes = {"--write-baseline": asked.baseline, "--add-ignores": asked.ignores, "--fix": asked.writes_fixes}
    several = [name for name, on in modes.items() if on]
    if len(several) > 1:
        fail(f"{several[0]} and {several[1]} do not go together: run one after the other")
    if asked.quiet and asked.verbose:
        fail("--quiet and --verbose exclude each other")


def _refuse_half_requests(asked: _Asked, settings: Settings, reason: str | None, alone: bool) -> None:
    """Options that need another one, or torch. ``alone``: no report and no revision is asked for."""
    if asked.baseline and settings.one("baseline").value is None:
        fail("--write-baseline needs to know where: give --baseline FILE too")
    if asked.baseline and (asked.diff or not alone):
        fail("--write-baseline takes all findings and makes no report: run it by itself")
    if asked.baseline:
        keep_inputs([path_of(settings.one("baseline"))], settings, "--baseline")
    if reason is not None and not asked.ignores:
        fail("--reason is what --add-ignores writes: give that too")
    check_reason(reason)
    if asked.verify:
        if asked.ignores or not (asked.writes_fixes or asked.diff):
            fail("--verify runs what a fix rewrites: give --fix or --diff too")
        from moe_lint.cli.fixes import need_runtime

        need_runtime()


def _refuse_two_on_stdout(asked: _Asked, stdout: Output) -> None:
    for option, on in {"--diff": asked.diff, "--interactive": asked.interactive}.items():
        if on and stdout.format != "text":
            fail(f"{option} and {stdout.format} both go to standard output; give {stdout.format} a file")
    if asked.statistics and stdout.format not in ("text", "concise"):
        fail(f"--statistics and {stdout.format} both go to standard output; give {stdout.format} a file")


def _rewritten(
    options: Options, report: Report, asked: _Asked, level: str, reason: str | None, told: Callable[[str], None]
) -> tuple[Report, int]:
    """Silence, fix or show the fixes, as asked; (the report that is left, the exit status). A diff leaves both."""
    if (asked.writes_fixes or asked.ignores) and report.exit_code == 2:
        to_stderr("moe-lint: nothing was written: some files could not be judged")
        return report, 2
    after = report
    if asked.ignores:
        after = silence(options, report, reason, asked.diff, told)
    elif asked.diff or asked.writes_fixes:
        from moe_lint.cli import fixes

        make = fixes.maker(asked.verify, asked.quiet)
        if asked.diff:
            to_stderr(f"after these changes: {summary(fixes.shown(options, report, level, make))}")
        else:
            after = fixes.fixed(options, report, level, told, asked.interactive, make)
    left = report if asked.diff else after
    return left, left.exit_code


def _nothing(_: str) -> None:
    """What --quiet tells besides findings and what could not be done."""


def _show(report: Report, output: str, asked: _Asked, aside: Sequence[str] | None) -> None:
    """The report on standard output. ``aside``: what --verbose adds; beside a program's output, on standard error."""
    if output == "text" and not asked.statistics:
        from moe_lint.reporters.text import plain, show, told

        paragraphs = told(report, quiet=asked.quiet, aside=aside or ())
        if may_have_colours():
            show(paragraphs, console())
        else:
            click.echo(plain(paragraphs), nl=False)
        return
    echo_report(statistics(report) if asked.statistics else render(report, output))
    for_people = asked.statistics or output == "concise"
    if aside is not None or (for_people and not asked.quiet):
        for note in notes(report, aside or ()):
            click.echo(f"note: {note}", err=not for_people)
    if for_people and not asked.quiet:
        click.echo(summary(report))


def _passed_over(report: Report, options: Options) -> list[str]:
    """Every reduction that was not compared and everything that was not read, each with its reason."""
    told = [f"{path}:{line}: {why}" for path, line, why in not_compared(report)]
    for path in options.paths:
        if os.path.isdir(path):
            told += [f"{name}: not read: {why}" for name, why in left_out(path, options.files).items()]
    return told
