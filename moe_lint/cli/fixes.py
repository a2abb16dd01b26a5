"""`--fix`, `--diff` and `--interactive`: which fixes are made, and what is told about them."""

from __future__ import annotations

from collections.abc import Callable

import click

from moe_lint.cli.shared import fail, to_stderr
from moe_lint.engine import Options
from moe_lint.fixing import ALLOWED, FileFix, FixResult, behaviour, choices, diff, fix, rewrite, write_all
from moe_lint.model import FixPlan, Report


def fixed(options: Options, report: Report, level: str, told: Callable[[str], None], interactive: bool) -> Report:
    """Make the fixes, and the report that is left. Raises ``UsageError`` when a file cannot be written."""
    if interactive:
        taken = _ask(report, level)
        result = fix(options, report, ALLOWED[level], lambda plan: plan in taken)
    else:
        result = fix(options, report, ALLOWED[level])
    write_all(result.fixed)
    for line in behaviour(result.fixed, report):
        told(line)
    _tell_what_is_left(result)
    return result.report


def shown(options: Options, report: Report, level: str) -> Report:
    """Print what `fixed` would change, and the report that would be left."""
    result = fix(options, report, ALLOWED[level])
    click.echo(diff(result.fixed), nl=False)
    _tell_what_is_left(result)
    return result.report


def _tell_what_is_left(result: FixResult) -> None:
    for path, line, reason in result.not_proven:
        to_stderr(f"{path}:{line}: FIX_NOT_PROVEN: {reason}; left as it was")
    if result.held_back:
        to_stderr(f"moe-lint: {result.held_back} fix(es) held back; see --unsafe-fixes")


def _ask(report: Report, level: str) -> frozenset[FixPlan]:
    """The plans that the user takes, one question for each place. To quit leaves the rest; an interrupt, everything."""
    offered = choices(report, ALLOWED[level])
    taken: set[FixPlan] = set()
    for number, (path, plans) in enumerate(offered, 1):
        preview = rewrite(path, list(plans), [])
        if preview is None:
            continue
        _show(report, preview)
        answer = _answer(f"Make this change ({number} of {len(offered)})? [y]es, [n]o, [a]ll that follow, [q]uit")
        if answer in "ya":
            taken.update(plans)
        if answer == "a":
            taken.update(plan for _, rest in offered[number:] for plan in rest)
        if answer in "aq":
            break
    return frozenset(taken)


def _show(report: Report, preview: FileFix) -> None:
    for finding in report.findings:
        if finding.fix in preview.plans:
            click.secho(f"\n{finding.path}:{finding.span.line}: {finding.rule} {finding.message}", bold=True)
            if finding.witness:
                click.echo(f"  wrong: {finding.witness}")
    for plan in preview.plans:
        click.echo(f"  fix ({plan.safety.value}): {plan.reason}")
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in diff([preview]).splitlines():
        click.secho(line, fg=colours.get(line[:1]))


def _answer(question: str) -> str:
    while True:
        try:
            answer = click.prompt(question, default="", show_default=False, prompt_suffix=" ").strip().lower()[:1]
        except click.Abort:
            fail("interrupted; nothing was written")
        if answer and answer in "ynaq":
            return str(answer)
