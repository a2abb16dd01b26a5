"""What the outputs for people say in one line each: counts, and why a reduction was not compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from moe_lint.model import MatrixRow, Report, Route, counted, one_line

_ROUTES = {
    Route.WRAPPER.value: "the wrapper decides, and is judged where it is defined",
    Route.DEFERRED.value: "it settles a sum that an earlier block left owed",
    Route.KEPT.value: "the layer has told its block to leave this sum",
}


def summary(report: Report) -> str:
    """One line: what was found, what can be fixed, what was judged."""
    sites = sum(row.post_experts for row in report.rows)
    judged = f"{counted(sites, 'post-experts reduction')} in {counted(report.files, 'file')}"
    others = len(report.rows) - sites
    if others and not sites:
        judged += f" ({counted(others, 'other')}: `moe-lint matrix --all`)"
    failed = sum(problem.failed for problem in report.problems)
    if failed:
        judged += f"; {counted(failed, 'problem')} kept some from being judged"
    aside = [f"{len(report.suppressed)} suppressed"] if report.suppressed else []
    aside += [f"{len(report.known)} in the baseline"] if report.known else []
    if not report.findings:
        new = "new " if report.known else ""
        told = f" ({', '.join(aside)})" if aside else ""
        return f"No {new}findings{told}: {judged}."
    fixable = sum(f.fix is not None for f in report.findings)
    told = "".join(f", {part}" for part in aside)
    return f"{counted(len(report.findings), 'finding')} ({fixable} fixable){told}: {judged}."


def statistics(report: Report) -> str:
    """One line for each rule with findings, the most frequent first: count, code, how many can be fixed, name."""
    count = Counter((f.rule, f.name) for f in report.findings)
    fixable = Counter(f.rule for f in report.findings if f.fix is not None)
    return "\n".join(
        f"{number:5}  {code}  {f'[{fixable[code]} fixable]' if fixable[code] else '':14}  {name}"
        for (code, name), number in sorted(count.items(), key=lambda item: (-item[1], item[0]))
    )


def notes(report: Report, aside: Sequence[str] = ()) -> tuple[str, ...]:
    """What an output for people tells besides findings and failures: what stays open, what else there is, remarks."""
    told = (f"{p.path}:{p.line}: {p.message}" for p in report.problems if not p.failed)
    return tuple(map(one_line, (*told, *aside, *report.notes)))


def not_compared(report: Report) -> Iterator[tuple[str, int, str]]:
    """(path, line, why) of every reduction in scope that no rule compared with the helper."""
    told = {(problem.path, problem.line) for problem in report.problems}
    for row in report.rows:
        why = None if (row.path, row.span.line) in told else _why(row)
        if why is not None:
            yield row.path, row.span.line, f"`{row.collective}` is not compared with the helper: {why}"


def _why(row: MatrixRow) -> str | None:
    if not row.post_experts:
        return "it does not sum the output of experts"
    if row.relation is not None:
        return None
    return _ROUTES.get(row.route, "the tree has no helper to compare it with")
