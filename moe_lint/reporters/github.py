"""GitHub annotations: workflow commands that a job prints, one for each finding and each thing not judged.

The escapes are those of the Actions toolkit (`packages/core/src/command.ts`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath

from moe_lint.model import Finding, Report, Severity

_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def render(report: Report) -> str:
    return "\n".join(_commands(report))


def _commands(report: Report) -> Iterator[str]:
    for finding in report.findings:
        span = finding.span
        place: dict[str, object] = {"file": PurePath(finding.path).as_posix(), "line": span.line}
        if span.end_line == span.line:  # columns count only where an annotation covers one line
            place |= {"col": span.column, "endColumn": span.end_column}
        else:
            place["endLine"] = span.end_line
        title = f"{finding.rule} {finding.name}"
        yield _command(_LEVEL[finding.severity], {**place, "title": title}, _message(finding))
    for problem in report.problems:
        level = "error" if problem.failed else "notice"
        place = {"file": PurePath(problem.path).as_posix(), "line": problem.line}
        yield _command(level, {**place, "title": f"not judged ({problem.reason.value})"}, problem.message)


def _message(finding: Finding) -> str:
    return "\n".join(part for part in (finding.message, finding.witness, finding.remedy) if part)


def _command(level: str, properties: dict[str, object], message: str) -> str:
    told = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items())
    return f"::{level} {told}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
