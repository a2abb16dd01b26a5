"""JSON: the stable form for other programs (version 1)."""

from __future__ import annotations

import json
from collections import Counter

from moe_lint.model import Finding, MatrixRow, Report


def render(report: Report) -> str:
    """The findings, what was not judged, what was silenced, and a summary."""
    document = {
        "version": 1,
        "findings": [_finding(finding) for finding in report.findings],
        "skipped": [
            {"path": p.path, "line": p.line, "reason": p.reason.value, "message": p.message, "failed": p.failed}
            for p in report.problems
        ],
        "suppressed": [{**_finding(s.finding), "reason": s.reason} for s in report.suppressed],
        "baseline": {
            "known": len(report.known),
            "stale": [
                {"fingerprint": e.fingerprint, "rule": e.rule, "path": e.path, "function": e.function}
                for e in report.stale
            ],
        },
        "notes": list(report.notes),
        "summary": {
            "files": report.files,
            "sites": sum(row.post_experts for row in report.rows),
            "findings": len(report.findings),
            "fixable": sum(f.fix is not None for f in report.findings),
            "by_rule": dict(sorted(Counter(f.rule for f in report.findings).items())),
        },
    }
    return json.dumps(document, indent=2)


def render_matrix(report: Report) -> str:
    """Every all-reduce-like call in scope."""
    return json.dumps({"version": 1, "sites": [_row(row) for row in report.rows]}, indent=2)


def _finding(finding: Finding) -> dict[str, object]:
    fix = finding.fix
    return {
        "rule": finding.rule,
        "name": finding.name,
        "path": finding.path,
        "line": finding.span.line,
        "column": finding.span.column,
        "end_line": finding.span.end_line,
        "end_column": finding.span.end_column,
        "severity": finding.severity.value,
        "confidence": finding.confidence.value,
        "message": finding.message,
        "function": finding.function,
        "class": finding.class_name,
        "relation": finding.relation,
        "witness": finding.witness,
        "remedy": finding.remedy,
        "related": [{"path": r.path, "line": r.line, "message": r.message} for r in finding.related],
        "fix": None
        if fix is None
        else {
            "safety": fix.safety.value,
            "reason": fix.reason,
            "kind": fix.kind,
            "call": fix.helper,
            "arguments": dict(fix.arguments),
        },
        "unfixable": finding.unfixable,
    }


def _row(row: MatrixRow) -> dict[str, object]:
    return {
        "path": row.path,
        "line": row.span.line,
        "column": row.span.column,
        "class": row.class_name,
        "function": row.function,
        "collective": row.collective,
        "axis": row.axis,
        "post_experts": row.post_experts,
        "route": row.route,
        "relation": row.relation,
        "missing": list(row.missing),
        "absorber": row.absorber,
        "guard": row.guard,
        "atoms": dict(row.atoms),
        "pair": row.pair,
        "law": None
        if row.law is None
        else {"verdict": row.law.verdict, "configuration": row.law.configuration, "reason": row.law.reason},
    }
