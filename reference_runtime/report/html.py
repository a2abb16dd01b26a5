"""One HTML page: blocks as rows, configurations as columns, the verdict as colour; error and scale on hover.

Nothing is loaded from elsewhere, and the page is readable without scripts: it has none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from html import escape
from importlib.resources import files

from reference_runtime.verdicts import CaseResult, ModelReport, Outcome, RunReport, Verdict

_SLOT = re.compile(r"\{\{(\w+)\}\}")
#: Verdict -> (letter in a cell, what it means).
_LEGEND: dict[Verdict, tuple[str, str]] = {
    Verdict.EQUIVALENT: ("=", "the same bits by the same collectives"),
    Verdict.REORDERED: ("~", "right before and after, by other collectives"),
    Verdict.CORRECTED: ("+", "wrong before, right after"),
    Verdict.BROKEN: ("✗", "right before, wrong after"),
    Verdict.BOTH_WRONG: ("!", "wrong before and after"),
    Verdict.MISMATCH: ("≠", "ranks meet in different collectives"),
    Verdict.DEADLOCK: ("∞", "ranks wait for each other for ever"),
    Verdict.UNMODELLED: ("?", "needs a part that has no implementation here"),
    Verdict.INFEASIBLE: ("·", "the engine has no such configuration"),
}


def render(report: RunReport) -> str:
    """The page, as text."""
    page = files(__package__).joinpath("verify.html").read_text(encoding="utf-8")
    slots = {
        "before": escape(report.before),
        "after": escape(report.after),
        "settings": _settings(report),
        "tiles": _tiles(report),
        "legend": "".join(_entry(verdict) for verdict in Verdict),
        "tables": "\n".join(_table(report, level) for level in _levels(report)),
        "notes": "".join(f"<p>{escape(note)}</p>" for note in [*_problems(report.models), *report.notes]),
    }
    return _SLOT.sub(lambda slot: slots[slot[1]], page)


def _levels(report: RunReport) -> list[str]:
    return list(dict.fromkeys(case.level for model in report.models for case in model.cases))


def _settings(report: RunReport) -> str:
    shown = {key: report.settings.get(key) for key in ("backend", "device", "dtype", "kernels", "world_sizes")}
    words = [f"{key.replace('_', ' ')}: {_text(value)}" for key, value in shown.items() if value is not None]
    words += [f"{name} {number}" for name, number in report.versions.items()]
    return escape(" · ".join(words))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _tiles(report: RunReport) -> str:
    counts = Counter((case.verdict, _colour(case)) for model in report.models for case in model.cases)
    tiles = [f'<div class="tile"><b>{len(report.models)}</b>blocks</div>']
    for verdict in Verdict:
        for (of, colour), count in sorted(counts.items()):
            if of is verdict:
                before = ", as before" if colour != verdict.value.lower() else ""
                tiles.append(f'<div class="tile {colour}"><b>{count}</b>{_name(verdict)}{before}</div>')
    return "".join(tiles)


def _colour(case: CaseResult) -> str:
    """The class of a verdict's colour: red is only what was right before."""
    stood = case.verdict in (Verdict.MISMATCH, Verdict.DEADLOCK) and not case.regression
    return (Verdict.BOTH_WRONG if stood else case.verdict).value.lower()


def _name(verdict: Verdict) -> str:
    return verdict.value.lower().replace("_", " ")


def _entry(verdict: Verdict) -> str:
    letter, meaning = _LEGEND[verdict]
    sample = f'<span class="cell {verdict.value.lower()}">{letter}</span>'
    return f'<span class="entry">{sample} {_name(verdict)}: {meaning}</span>'


def _table(report: RunReport, level: str) -> str:
    columns = list(dict.fromkeys(c.case for model in report.models for c in model.cases if c.level == level))
    heads = "".join(f'<th scope="col"><span>{escape(column)}</span></th>' for column in columns)
    rows = "".join(_row(model, level, columns) for model in report.models)
    table = f'<table><thead><tr><th scope="col">block</th>{heads}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<h2>{escape(level)} level</h2><div class="scroll">{table}</div>'


def _row(model: ModelReport, level: str, columns: Iterable[str]) -> str:
    at = {case.case: case for case in model.cases if case.level == level}
    cells = "".join(_cell(at.get(column)) for column in columns)
    oracle = model.oracle(level)
    title = escape(model.path + (f"\noracle: {oracle}" if oracle is not None else ""))
    return f'<tr><th scope="row" title="{title}">{escape(model.model)}</th>{cells}</tr>'


def _cell(case: CaseResult | None) -> str:
    if case is None:
        return '<td class="cell"></td>'
    letter, _ = _LEGEND[case.verdict]
    lines = [
        f"{case.verdict.value}: {case.case}",
        f"before: {_outcome(case.before)}",
        f"after: {_outcome(case.after)}",
    ]
    title = escape("\n".join(lines))
    return f'<td class="cell {_colour(case)}" tabindex="0" title="{title}">{letter}</td>'


def _outcome(outcome: Outcome) -> str:
    """What a variant did: its status, relative error and scale, its collectives or what went wrong."""
    words = [outcome.status.value]
    if outcome.error is not None:
        words.append(f"relative error {outcome.error:.2g}")
    if outcome.scale is not None:
        words.append(f"scale {outcome.scale:.2f}")
    if outcome.trace:
        words.append(" ".join(outcome.trace))
    if outcome.detail:
        words.append(outcome.detail)
    return ", ".join(words)


def _problems(models: Iterable[ModelReport]) -> list[str]:
    found = []
    for model in models:
        found += [f"{model.model}: {model.problem}"] if model.problem else []
        found += [f"{model.model}: site not reached: {one}" for one in model.unreached if model.judged]
    return found
