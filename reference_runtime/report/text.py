"""Text: one line per block and level, then every case that a reader should look at."""

from __future__ import annotations

import itertools

from rich.console import Console
from rich.text import Text

from moe_lint.model import counted
from reference_runtime.verdicts import CaseResult, ModelReport, RunReport, Verdict

_STYLE = {
    Verdict.EQUIVALENT: "green",
    Verdict.REORDERED: "green",
    Verdict.CORRECTED: "bold green",
    Verdict.BROKEN: "bold red",
    Verdict.MISMATCH: "bold red",
    Verdict.DEADLOCK: "bold red",
    Verdict.BOTH_WRONG: "yellow",
    Verdict.UNMODELLED: "magenta",
    Verdict.INFEASIBLE: "dim",
}
#: Shown case by case; the others only with `every`.
_TOLD = (
    Verdict.BROKEN, Verdict.MISMATCH, Verdict.DEADLOCK, Verdict.CORRECTED, Verdict.BOTH_WRONG, Verdict.UNMODELLED,
)  # fmt: skip


def show(report: RunReport, console: Console, every: bool = False) -> None:
    """Print the report.

    Args:
        every: all cases, also those in which nothing changed.
    """
    for model in report.models:
        _show_model(model, console, every)
    for note in report.notes:
        console.print(Text.assemble(("note", "bold cyan"), f": {note}"), soft_wrap=True)
    console.print(summary(report), soft_wrap=True)


def _show_model(model: ModelReport, console: Console, every: bool) -> None:
    if not model.cases:
        console.print(Text.assemble((model.model, "bold"), f"  {model.path}"), soft_wrap=True)
    for level, group in itertools.groupby(model.cases, key=lambda case: case.level):
        cases = list(group)
        head = Text.assemble((model.model, "bold"), f" {level}: ")
        counts = {verdict: sum(case.verdict is verdict for case in cases) for verdict in Verdict}
        shown = [(verdict, count) for verdict, count in counts.items() if count]
        for number, (verdict, count) in enumerate(shown):
            head.append(", " if number else "")
            head.append(f"{count} {verdict.value}", _STYLE[verdict])
        oracle = model.oracle(level)
        head.append(f"  {model.path}" + (f"  oracle: {oracle}" if oracle is not None else ""), "dim")
        console.print(head, soft_wrap=True)
        for verdict in Verdict:
            told = [case for case in cases if case.verdict is verdict and (every or verdict in _TOLD)]
            _show_cases(told, console)
    for one in model.unreached if model.judged else ():
        console.print(Text.assemble(("  site not reached", "yellow"), f": {one}"), soft_wrap=True)
    if model.problem:
        console.print(Text.assemble(("  problem", "bold red"), f": {model.problem}"), soft_wrap=True)


def _show_cases(cases: list[CaseResult], console: Console) -> None:
    """Cases with one reason stand together."""
    for detail, group in itertools.groupby(sorted(cases, key=lambda c: c.detail), key=lambda c: c.detail):
        same = list(group)
        verdict = same[0].verdict
        names = "; ".join(case.case for case in same)
        tail = f": {detail}" if detail else ""
        console.print(Text.assemble("  ", (verdict.value, _STYLE[verdict]), f"  {names}{tail}"), soft_wrap=True)


def summary(report: RunReport) -> str:
    """One line: what was run and what came of it."""
    cases = [case for model in report.models for case in model.cases]
    broken = sum(case.regression for case in cases)
    corrected = sum(case.verdict is Verdict.CORRECTED for case in cases)
    unmodelled = sum(case.verdict is Verdict.UNMODELLED for case in cases)
    unjudged = [model.model for model in report.models if not model.judged]
    run = f"{counted(len(cases), 'case')} of {counted(len(report.models), 'block')}"
    counts = f"{broken} broken, {corrected} corrected, {unmodelled} unmodelled"
    left = f" Not judged: {', '.join(unjudged)}." if unjudged else ""
    return f"{'BROKEN' if broken else 'Nothing broken'}: {run}, {counts}.{left}"
