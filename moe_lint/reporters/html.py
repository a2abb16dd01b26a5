"""The drift matrix as one HTML page: no file beside it, nothing loaded from elsewhere, readable without scripts.

A filter is part of the address: `matrix.html#axis=EP&drift=1` is a link to what drifts on the EP axis.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from importlib.metadata import version
from importlib.resources import files

from moe_lint.model import Finding, MatrixRow, Report, Span
from moe_lint.reporters.summary import summary

_SLOT = re.compile(r"\{\{(\w+)\}\}")
_COLUMNS = ("site", "function", "axis", "pair", "route", "relation")
_ABSORBER = {True: "yes", False: "no", None: "?"}


def render(report: Report) -> str:
    at: dict[tuple[str, Span], list[Finding]] = {}
    for finding in report.findings:
        at.setdefault((finding.path, finding.span), []).append(finding)
    places = {(row.path, row.span) for row in report.rows}
    slots = {
        "version": escape(version("moe-lint")),
        "notes": "\n".join(f"<p>{_prose(note)}</p>" for note in report.notes),
        "tiles": _tiles(report),
        "axes": _options(row.axis for row in report.rows),
        "routes": _options(row.route for row in report.rows),
        "relations": _options(row.relation for row in report.rows if row.relation is not None),
        "heads": _heads(report.atoms),
        "rows": "\n".join(_row(row, report.atoms, at.get((row.path, row.span), [])) for row in report.rows),
        "others": _others(report, places),
    }
    page = files(__package__).joinpath("matrix.html").read_text(encoding="utf-8")
    text = _SLOT.sub(lambda slot: slots[slot[1]], page)
    return text.encode("utf-8", "backslashreplace").decode()  # a name of a file need not be text, a page has to be


def _tiles(report: Report) -> str:
    experts = [row for row in report.rows if row.post_experts]
    counts = (
        ("reductions after experts", len(experts), False),
        ("ask the helper", sum(row.route in ("helper", "wrapper") for row in experts), False),
        ("drift from it", sum(_drifts(row) for row in experts), True),
        ("EP/TP pairs", len({row.pair for row in experts} - {None}), False),
        ("findings", len(report.findings), True),
    )
    return "".join(
        f'<div class="tile{" bad" if bad and number else ""}"><b>{number}</b>{label}</div>'
        for label, number, bad in counts
    )


def _drifts(row: MatrixRow) -> bool:
    """Whether a guard decides differently where that matters: it owns the sum, and somebody may reduce downstream."""
    return row.relation not in (None, "equal") and row.absorber is not False and row.route != "owned"


def _options(values: Iterable[str]) -> str:
    return "".join(f"<option>{escape(value)}</option>" for value in sorted(set(values)))


def _heads(atoms: tuple[str, ...]) -> str:
    heads = [f'<th scope="col"><button type="button">{name}</button></th>' for name in _COLUMNS]
    heads += [
        f'<th scope="col" class="atom"><button type="button"><span class="code">{_breakable(atom)}</span></button></th>'
        for atom in atoms
    ]
    heads += [f'<th scope="col"><button type="button">{name}</button></th>' for name in ("absorber", "findings")]
    return "".join(heads)


def _breakable(name: str) -> str:
    return escape(name).replace("_", "_<wbr>")


def _row(row: MatrixRow, atoms: tuple[str, ...], findings: list[Finding]) -> str:
    relation = row.relation or "–"
    absorber = _ABSORBER[row.absorber] if row.post_experts else "–"
    rules = sorted({finding.rule for finding in findings})
    words = " ".join((row.path, str(row.span.line), row.qualname, row.collective, row.guard, *rules)).lower()
    data = {
        "axis": row.axis,
        "route": row.route,
        "relation": relation,
        "absorber": absorber,
        "drift": str(int(_drifts(row) or bool(findings))),
        "experts": str(int(row.post_experts)),
        "text": words,
    }
    attributes = " ".join(f'data-{name}="{escape(value)}"' for name, value in data.items())
    place = f"{row.path}:{row.span.line}"
    pair = "" if row.pair is None else f'<span class="tag pair">#{row.pair}</span>'
    colour = relation if relation == "equal" or _drifts(row) else ""
    named = f'<span class="tag {colour}">{relation}</span>' if row.relation else relation
    tags = " ".join(f'<span class="tag {finding.severity.value}">{finding.rule}</span>' for finding in findings)
    cells = [
        f'<td><button type="button" class="site code">{escape(place)}</button></td>',
        f'<td class="code">{escape(row.qualname)}</td>',
        f"<td>{row.axis}</td><td>{pair}</td><td>{row.route}</td><td>{named}</td>",
        *(_mark(dict(row.atoms).get(atom), atom, _drifts(row)) for atom in atoms),
        f"<td>{absorber}</td><td>{tags}</td>",
    ]
    width = len(_COLUMNS) + len(atoms) + 2
    return (
        f"<tbody {attributes}><tr>{''.join(cells)}</tr>"
        f'<tr class="detail"><td colspan="{width}">{_detail(row, findings)}</td></tr></tbody>'
    )


def _mark(honoured: bool | None, atom: str, drifts: bool) -> str:
    if honoured is None:
        return '<td class="mark none" data-key="1">–</td>'
    if honoured:
        return f'<td class="mark yes" data-key="2" title="honours {escape(atom)}">✓</td>'
    return f'<td class="mark {"no" if drifts else "none"}" data-key="0" title="forgets {escape(atom)}">✗</td>'


def _detail(row: MatrixRow, findings: list[Finding]) -> str:
    guard = f"if {row.guard}:" if row.guard else "no condition"
    parts = [f'<pre class="code">{escape(guard)}\n    {escape(row.collective)}(…)</pre>']
    if row.law is not None:
        shown = f" with {row.law.configuration}" if row.law.configuration else ""
        parts.append(f'<p><span class="soft">sums:</span> {_prose(f"{row.law.verdict}{shown}: {row.law.reason}")}</p>')
    return "".join([*parts, *(_finding(finding) for finding in findings)])


def _finding(finding: Finding) -> str:
    lines = [
        f'<span class="tag {finding.severity.value}">{finding.rule}</span> <b>{escape(finding.name)}</b>: '
        f"{_prose(finding.message)}"
    ]
    lines += [
        f'<span class="soft">{label}:</span> {_prose(text)}'
        for label, text in (
            ("wrong", finding.witness),
            ("help", finding.remedy),
            ("fix", f"{finding.fix.safety.value}: {finding.fix.reason}" if finding.fix is not None else None),
            ("no fix", finding.unfixable),
        )
        if text
    ]
    return f'<div class="finding">{"".join(f"<p>{line}</p>" for line in lines)}</div>'


def _prose(text: str) -> str:
    """A message, with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _others(report: Report, places: set[tuple[str, Span]]) -> str:
    """What has no row of its own: findings elsewhere, and what could not be judged."""
    elsewhere = [finding for finding in report.findings if (finding.path, finding.span) not in places]
    parts = []
    if elsewhere:
        parts.append("<h2>Findings elsewhere</h2>")
        parts += [f'<p class="code">{escape(f"{f.path}:{f.span.line}")}</p>{_finding(f)}' for f in elsewhere]
    if report.problems:
        parts.append("<h2>Not judged</h2>")
        parts += [
            f'<p><span class="code">{escape(f"{problem.path}:{problem.line}")}</span> {_prose(problem.message)}</p>'
            for problem in report.problems
        ]
    return "\n".join([*parts, f'<p class="soft">{escape(summary(report))}</p>'])
