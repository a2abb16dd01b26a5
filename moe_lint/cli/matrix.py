"""`moe-lint matrix`: sites as rows, skip reasons as columns."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from msgspec.structs import replace

from moe_lint.api import options_of
from moe_lint.cli.caching import cache_of, cache_options
from moe_lint.cli.outputs import Output, chosen, echo_report, keep_inputs, output_options, write_files
from moe_lint.cli.settings import settings_for, tree_options
from moe_lint.cli.shared import EPILOG, console, tell_failures
from moe_lint.engine import run
from moe_lint.reporters import MATRIX_FORMATS, render_matrix


@click.command("matrix", epilog=EPILOG)
@click.argument("paths", nargs=-1, type=click.Path(readable=False), required=True, metavar="PATH…")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Also other reductions in files that speak of experts (JSON and HTML have them).",
)
@output_options(MATRIX_FORMATS)
@tree_options
@cache_options
@click.pass_context
def command(
    context: click.Context,
    paths: tuple[str, ...],
    every: bool,
    outputs: tuple[Output, ...],
    to_stdout: Output | None,
    cache_dir: Path | None,
    no_cache: bool,
) -> None:
    """Show the sites as rows and the tree's skip reasons as columns."""
    stdout, files = chosen(outputs, to_stdout)
    settings = settings_for(context, paths)
    keep_inputs([one.file for one in files], settings)
    options = options_of(paths, settings, baseline=False)
    report = run(replace(options, law=True, cache=cache_of(cache_dir, no_cache)))
    write_files(files, lambda output: render_matrix(report, output))
    if stdout.format == "text":
        from moe_lint.reporters.table import show

        show(report, console(), every)
    else:
        echo_report(render_matrix(report, stdout.format))
    tell_failures(report)
    sys.exit(2 if any(problem.failed for problem in report.problems) else 0)
