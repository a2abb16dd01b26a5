"""The command line: arguments -> Options -> report -> output -> exit code. The one place that exits."""

from __future__ import annotations

import gc
import sys
from typing import Any

import click

EPILOG = "Exit status: 0 nothing left, 1 findings left (after fixing), 2 something could not be judged."


class _DefaultGroup(click.Group):
    """A group whose default command is `check`: `moe-lint --fix python/` is `moe-lint check --fix python/`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = ["check", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moe-lint", prog_name="moe-lint")
def main() -> None:
    """Find, judge and fix all-reduces after the experts of mixture-of-experts models.

    `check` is the default command: `moe-lint --fix python/`.
    """
    # A run builds syntax trees and drops them all at the end: the collector would walk them in vain.
    gc.disable()


def _fail(message: str) -> None:
    click.echo(f"moe-lint: error: {message}", err=True)
    sys.exit(2)


def _profile(reference: str) -> Any:
    from moe_lint.profile import ProfileError, load_profile

    try:
        return load_profile(reference)
    except ProfileError as error:
        return _fail(str(error))


def _codes(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(code.strip() for item in value for code in item.split(",") if code.strip())


_profile_option = click.option(
    "--profile", default="sglang", show_default=True, metavar="NAME|FILE", help="The engine's vocabulary."
)
_format_option = click.option("--format", "output", type=click.Choice(["text", "json"]), default="text")


@main.command(epilog=EPILOG)
@click.argument("paths", nargs=-1, metavar="PATH…")
@click.option("--fix", "do_fix", is_flag=True, help="Apply safe and corrective fixes.")
@click.option("--diff", "do_diff", is_flag=True, help="Show what --fix would change, and change nothing.")
@click.option("--safe-only", is_flag=True, help="Only fixes that keep the behaviour in every state.")
@click.option("--unsafe-fixes", is_flag=True, help="Also fixes that could lose a reduction.")
@click.option("--select", multiple=True, callback=_codes, metavar="CODE", help="Only these rules (code or name).")
@click.option("--ignore", multiple=True, callback=_codes, metavar="CODE", help="Not these rules.")
@_profile_option
@_format_option
def check(
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
    from moe_lint.engine import Options, UsageError, run

    if not paths:
        sys.exit(0)  # a pre-commit run in which no file matched
    if safe_only and unsafe_fixes:
        _fail("--safe-only and --unsafe-fixes exclude each other")
    options = Options(paths, _profile(profile), select, ignore)
    try:
        report = run(options)
    except UsageError as error:
        _fail(str(error))
    exit_code = report.exit_code
    if do_fix and exit_code == 2:
        _to_stderr("moe-lint: nothing was written: some files could not be judged")
    elif do_fix or do_diff:
        level = "safe" if safe_only else "unsafe" if unsafe_fixes else "default"
        report = _fixed(options, report, level, do_diff, output)
        exit_code = exit_code if do_diff else report.exit_code  # a diff leaves every finding where it is
    _show(report, output, diff_only=do_diff)
    for problem in report.problems:
        if problem.failed:
            click.echo(f"{problem.path}:{problem.line}: error: {problem.message}", err=True)
    sys.exit(exit_code)


def _fixed(options: Any, report: Any, level: str, do_diff: bool, output: str) -> Any:
    """Fix (or show the diff of fixing), and the report that is left."""
    from moe_lint import fixing

    result = fixing.fix(options, report, fixing.ALLOWED[level])
    if do_diff:
        click.echo(fixing.diff(result.fixed), nl=False)
    else:
        for one in result.fixed:
            try:
                fixing.write(one.path, one.before, one.after)
            except (OSError, UnicodeEncodeError) as error:
                _fail(f"{one.path}: cannot be written: {error}")
    told = click.echo if output == "text" else _to_stderr
    if not do_diff:
        for path, line, safety, reason in fixing.behaviour(result.fixed):
            told(f"fixed {path}:{line} ({safety.value}): {reason}")
    for path, line, reason in result.not_proven:
        _to_stderr(f"{path}:{line}: FIX_NOT_PROVEN: {reason}; left as it was")
    if result.held_back:
        _to_stderr(f"moe-lint: {result.held_back} fix(es) held back; see --unsafe-fixes")
    return result.report


def _to_stderr(message: str) -> None:
    click.echo(message, err=True)


def _console() -> Any:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 160
    return Console(markup=False, highlight=False, width=width)


def _show(report: Any, output: str, diff_only: bool = False) -> None:
    if output == "json":
        from moe_lint.reporters import json_report

        if not diff_only:
            click.echo(json_report.render(report))
        return
    from moe_lint.reporters import text

    if diff_only:
        _to_stderr(f"after these changes: {text.summary(report)}")
    else:
        text.show(report, _console())


@main.command(epilog=EPILOG)
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option(
    "--all", "every", is_flag=True, help="Also reductions that do not follow the experts (JSON has them all)."
)
@_profile_option
@_format_option
def matrix(paths: tuple[str, ...], every: bool, profile: str, output: str) -> None:
    """Show the sites as rows and the skip reasons of the tree as columns."""
    from moe_lint.engine import Options, UsageError, run

    try:
        report = run(Options(paths, _profile(profile)))
    except UsageError as error:
        _fail(str(error))
    if output == "json":
        from moe_lint.reporters import json_report

        click.echo(json_report.render_matrix(report))
    else:
        from moe_lint.reporters import text

        text.show_matrix(report, _console(), every)
    for problem in report.problems:
        if problem.failed:
            click.echo(f"{problem.path}:{problem.line}: error: {problem.message}", err=True)
    sys.exit(2 if any(problem.failed for problem in report.problems) else 0)


@main.command()
@click.argument("code", required=False)
def rule(code: str | None) -> None:
    """Show the documentation of a rule, or the list of rules."""
    from moe_lint.rules import all_rules

    if code is None:
        for one in all_rules():
            default = "" if one.on_by_default else "  (off by default)"
            click.echo(f"{one.code}  {one.name:28} {one.severity.value:8} {one.summary}{default}")
        return
    for one in all_rules():
        if code.upper() == one.code or code == one.name:
            default = "on" if one.on_by_default else "off"
            click.echo(f"{one.code} {one.name}")
            click.echo(f"severity {one.severity.value}, confidence {one.confidence.value}, {default} by default\n")
            click.echo(one.documentation)
            return
    _fail(f"unknown rule {code!r}; `moe-lint rule` lists them")


@main.command()
@click.argument("tree", metavar="TREE")
@click.option("--into", metavar="FILE", help="The module that gets the helper (default: beside the skip predicates).")
@click.option("--diff", "do_diff", is_flag=True, help="Show the change and write nothing.")
@_profile_option
def init(tree: str, into: str | None, do_diff: bool, profile: str) -> None:
    """Give a tree without a central helper the one that its own guards add up to."""
    from moe_lint import fixing
    from moe_lint.engine import UsageError
    from moe_lint.initialise import plan_init

    try:
        plan = plan_init(tree, _profile(profile), into)
    except UsageError as error:
        _fail(str(error))
    if plan is None:
        click.echo("the tree has its helper already; nothing to do")
        return
    if do_diff:
        click.echo(fixing.diff(plan.files), nl=False)
        return
    for one in plan.files:
        try:
            fixing.write(one.path, one.before, one.after)
        except (OSError, UnicodeEncodeError) as error:
            _fail(f"{one.path}: cannot be written: {error}")
        click.echo(f"wrote {one.path}")
    click.echo(f"added `{plan.helper.name}`; next: moe-lint --fix {tree}")
