"""`--fix`, `--diff`, `--interactive` and `--verify`: which fixes are made, and what is told about them."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence

import click
from msgspec.structs import replace

from moe_lint.cli.shared import fail, to_stderr
from moe_lint.engine import Options
from moe_lint.fixing import ALLOWED, FixResult, choices, fix, refuted, rewrite
from moe_lint.model import FixPlan, Report, Safety, counted, one_line, visible
from moe_lint.rewritten import Rewritten, diff, encoded, write_all

#: Makes the fixes of a report that are wanted, at a level.
Maker = Callable[[Options, Report, str, Callable[[FixPlan], bool]], FixResult]


def need_runtime() -> None:
    """Fail, before anything is judged, where nothing can be run."""
    from reference_runtime.launch import VerifyError, need_torch

    try:
        need_torch("--verify")
    except VerifyError as error:
        fail(str(error))


def maker(verify: bool, quiet: bool) -> Maker:
    """Who makes the fixes: those that judge right, or, to ``verify``, those of them that also run right."""

    def make(options: Options, report: Report, level: str, wanted: Callable[[FixPlan], bool]) -> FixResult:
        return fix(options, report, ALLOWED[level], wanted)

    return functools.partial(_make_and_run, make, quiet) if verify else make


def _make_and_run(
    make: Maker, quiet: bool, options: Options, report: Report, level: str, wanted: Callable[[FixPlan], bool]
) -> FixResult:
    """The fixes, run. A file stays as it was if a case that was right breaks; what cannot be run is told and kept."""
    from reference_runtime.cli import live
    from reference_runtime.launch import VerifyError
    from reference_runtime.plan import Settings
    from reference_runtime.rewrites import Prover

    refused = frozenset[FixPlan]()
    broken: list[tuple[str, int, str]] = []
    lines: tuple[str, ...] = ()
    result = make(options, report, level, wanted)
    try:
        with live(sys.stderr.isatty() and not quiet) as progress:
            prover = Prover(Settings(parallel=os.cpu_count() or 1), progress)
            while result.fixed:
                proof = prover.prove(encoded(result.fixed))
                lines = proof.lines
                if not proof.broken:
                    break
                plans, places = refuted(result, proof.broken)
                refused, broken = refused | plans, broken + places
                left = functools.partial(_left, wanted, refused)
                result = make(options, report, level, left)
    except VerifyError as error:
        fail(f"{error}; nothing was written")
    for line in lines if result.fixed and not quiet else ():
        to_stderr(line)
    return replace(result, not_proven=tuple(sorted({*result.not_proven, *broken})))


def _left(wanted: Callable[[FixPlan], bool], refused: frozenset[FixPlan], plan: FixPlan) -> bool:
    return wanted(plan) and plan not in refused


def fixed(
    options: Options, report: Report, level: str, told: Callable[[str], None], interactive: bool, make: Maker
) -> Report:
    """Make the fixes, and the report that is left. Raises ``UsageError`` when a file cannot be written."""
    if interactive:
        taken = _ask(report, level)
        result = make(options, report, level, lambda plan: plan in taken)
    else:
        result = make(options, report, level, _any)
    write_all(result.fixed)
    for line in _behaviour(result.fixed, report):
        told(one_line(line))
    _tell_what_is_left(result, report, level)
    return result.report


def _behaviour(fixes: Sequence[Rewritten], before: Report) -> list[str]:
    """What changed in behaviour, in lines for people: every rewrite, the state in which it matters, and a sum."""
    witness = {finding.fix: finding.witness for finding in before.findings if finding.fix and finding.witness}
    lines: list[str] = []
    plans = [(one.path, plan) for one in fixes for plan in one.plans]
    for path, plan in sorted(plans, key=lambda item: (item[0], item[1].statement)):
        lines.append(f"fixed {path}:{plan.statement.line} ({plan.safety.value}): {plan.reason}")
        if plan.safety is not Safety.SAFE and _tells_of(witness.get(plan, ""), plan):
            lines.append(f"    before: {witness[plan]}")
    changed = sum(plan.safety is not Safety.SAFE for _, plan in plans)
    if plans:
        lines.append(
            f"{counted(len(plans), 'place')} fixed in {counted(len(fixes), 'file')}: "
            f"{len(plans) - changed} as before in every state, {changed} with the change told above"
        )
    return lines


def _tells_of(witness: str, plan: FixPlan) -> bool:
    """Whether a finding's witness is a state that its fix changes: a fix need not repair all that is wrong."""
    condition = re.search(r"`([^`=]+)", witness)
    return condition is not None and (plan.safety is Safety.UNSAFE or condition[1] in plan.reason.partition(";")[0])


def _any(_: FixPlan) -> bool:
    return True


def shown(options: Options, report: Report, level: str, make: Maker) -> Report:
    """Print what `fixed` would change, and the report that would be left."""
    result = make(options, report, level, _any)
    click.echo(diff(result.fixed), nl=False)
    _tell_what_is_left(result, report, level)
    without = sum(finding.fix is None for finding in result.report.findings)
    if without:
        to_stderr(f"moe-lint: {counted(without, 'finding has', 'findings have')} no fix: see the report without --diff")
    return result.report


def _tell_what_is_left(result: FixResult, report: Report, level: str) -> None:
    for path, line, reason in result.not_proven:
        to_stderr(f"{path}:{line}: FIX_NOT_PROVEN: {reason}; left as it was")
    planned = (finding.fix.safety for finding in report.findings if finding.fix is not None)
    levels = Counter(safety for safety in planned if safety not in ALLOWED[level])
    changing, unsafe = levels[Safety.CORRECTIVE], levels[Safety.UNSAFE]
    waiting = result.held_back - changing - unsafe
    if changing:
        told = counted(changing, "fix changes", "fixes change")
        to_stderr(f"moe-lint: {told} behaviour: not made with --safe-only")
    if unsafe:
        told = counted(unsafe, "fix is", "fixes are")
        to_stderr(f"moe-lint: {told} unsafe: made with --unsafe-fixes only")
    if waiting:
        told = counted(waiting, "fix waits", "fixes wait")
        to_stderr(f"moe-lint: {told} for the other half of an EP/TP pair, which is left as it is")


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


def _show(report: Report, preview: Rewritten) -> None:
    for finding in report.findings:
        if finding.fix in preview.plans:
            place = f"{one_line(finding.path)}:{finding.span.line}"
            click.secho(f"\n{place}: {finding.rule} {finding.message}", bold=True)
            if finding.witness:
                click.echo(f"  wrong: {finding.witness}")
    for plan in preview.plans:
        click.echo(f"  fix ({plan.safety.value}): {plan.reason}")
    colours = {"+": "green", "-": "red", "@": "cyan"}
    for line in diff([preview]).rstrip("\n").split("\n"):
        click.secho(visible(line.rstrip("\r")), fg=colours.get(line[:1]))


def _answer(question: str) -> str:
    while True:
        try:
            answer = click.prompt(question, default="", show_default=False, prompt_suffix=" ").strip().lower()[:1]
        except click.Abort:
            fail("interrupted; nothing was written")
        if answer and answer in "ynaq":
            return str(answer)
