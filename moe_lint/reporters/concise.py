"""One line for each finding, as editors and `grep` read it; `[*]` marks those that `--fix` can rewrite."""

from __future__ import annotations

from moe_lint.model import Finding, Report, one_line


def render(report: Report) -> str:
    return "\n".join(map(_line, report.findings))


def _line(finding: Finding) -> str:
    mark = "[*] " if finding.fix is not None else ""
    return f"{one_line(finding.path)}:{finding.span.line}:{finding.span.column}: {finding.rule} {mark}{finding.message}"
