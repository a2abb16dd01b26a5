"""JUnit XML: a suite for each file, a case for each judged reduction and each finding.

A case's name holds no line number: a CI system follows a case from run to run by its name.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import PurePath
from xml.etree import ElementTree

from msgspec import Struct

from moe_lint.model import Finding, MatrixRow, Report

#: What XML 1.0 cannot hold, not even as a reference.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Case(Struct, frozen=True):
    path: str
    line: int
    name: str
    outcome: str | None = None  # failure, error or skipped; None: passed
    message: str = ""
    text: str = ""


def render(report: Report) -> str:
    suites: dict[str, list[_Case]] = {}
    for case in _cases(report):
        suites.setdefault(case.path, []).append(case)
    root = ElementTree.Element("testsuites", {"name": "moe-lint"})
    for path, cases in sorted(suites.items()):
        root.append(_suite(path, sorted(cases, key=lambda c: (c.line, c.name))))
    every = [case for cases in suites.values() for case in cases]
    root.attrib.update(_counts(every))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _cases(report: Report) -> list[_Case]:
    cases = [_finding(finding) for finding in report.findings]
    cases += [_finding(silenced.finding, "skipped", f"suppressed: {silenced.reason}") for silenced in report.suppressed]
    cases += [_finding(finding, "skipped", "listed in the baseline") for finding in report.known]
    cases += [
        _Case(p.path, p.line, f"not judged ({p.reason.value})", "error" if p.failed else "skipped", p.message)
        for p in report.problems
    ]
    told = {(case.path, case.line) for case in cases}
    cases += [_passed(row) for row in report.rows if row.post_experts and (row.path, row.span.line) not in told]
    return cases


def _finding(finding: Finding, outcome: str = "failure", message: str = "") -> _Case:
    parts = (f"{finding.path}:{finding.span.line}:{finding.span.column}", finding.witness, finding.remedy)
    text = "\n".join(part for part in parts if part)
    name = f"{finding.rule} {finding.name}{f' in {finding.qualname}' if finding.qualname else ''}"
    return _Case(finding.path, finding.span.line, name, outcome, message or finding.message, text)


def _passed(row: MatrixRow) -> _Case:
    return _Case(row.path, row.span.line, f"{row.collective} in {row.qualname}")


def _suite(path: str, cases: list[_Case]) -> ElementTree.Element:
    shown = _text(PurePath(path).as_posix())
    suite = ElementTree.Element("testsuite", {"name": shown, **_counts(cases)})
    seen: Counter[str] = Counter()
    for case in cases:
        seen[case.name] += 1
        name = case.name if seen[case.name] == 1 else f"{case.name} ({seen[case.name]})"
        attributes = {"name": _text(name), "classname": shown, "file": shown, "line": str(case.line), "time": "0"}
        element = ElementTree.SubElement(suite, "testcase", attributes)
        if case.outcome is not None:
            told = ElementTree.SubElement(element, case.outcome, {"message": _text(case.message)})
            if case.outcome != "skipped":
                told.set("type", case.name.split(" ")[0] if case.outcome == "failure" else "not-judged")
                told.text = _text(case.text) or None
    return suite


def _counts(cases: list[_Case]) -> dict[str, str]:
    outcomes = Counter(case.outcome for case in cases)
    return {
        "tests": str(len(cases)),
        "failures": str(outcomes["failure"]),
        "errors": str(outcomes["error"]),
        "skipped": str(outcomes["skipped"]),
        "time": "0",
    }


def _text(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
