"""GitLab code quality: the list that a job hands over as `artifacts:reports:codequality`."""

from __future__ import annotations

import json
from pathlib import PurePath

from moe_lint.fingerprint import fingerprints
from moe_lint.model import Finding, Report, Severity

_SEVERITY = {Severity.ERROR: "critical", Severity.WARNING: "minor", Severity.INFO: "info"}


def render(report: Report) -> str:
    marks = fingerprints(report.everything)
    return json.dumps([_issue(finding, marks[finding]) for finding in report.findings], indent=2)


def _issue(finding: Finding, fingerprint: str) -> dict[str, object]:
    span = finding.span
    return {
        "description": f"{finding.rule} {finding.message}",
        "check_name": finding.rule,
        "fingerprint": fingerprint,
        "severity": _SEVERITY[finding.severity],
        "location": {
            "path": PurePath(finding.path).as_posix(),
            "positions": {
                "begin": {"line": span.line, "column": span.column},
                "end": {"line": span.end_line, "column": span.end_column},
            },
        },
    }
