"""SARIF 2.1.0: results with rules, related places, fixes, suppressions, and fingerprints that survive line moves.

Paths are relative to the folder of the run, so run it where the repository begins: code hosts match them with files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from moe_lint.fingerprint import SCHEME, fingerprints
from moe_lint.model import Confidence, Finding, FixPlan, Patch, Problem, Related, Report, Severity, Span
from moe_lint.rules import Rule, all_rules
from moe_lint.rules.pages import page

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

_LEVEL = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_PRECISION = {Confidence.HIGH: "very-high", Confidence.MEDIUM: "high", Confidence.LOW: "low"}
_ROOT = "SRCROOT"


def render(report: Report) -> str:
    rules = {rule.code: number for number, rule in enumerate(all_rules())}
    silenced = {one.finding: _suppression("inSource", one.reason) for one in report.suppressed}
    silenced |= {finding: _suppression("external", "listed in the baseline") for finding in report.known}
    marks = fingerprints(report.everything)
    patches = {patch.plan: patch for patch in report.patches}
    results = []
    for finding in sorted(set(report.everything), key=lambda f: f.order):
        result = _result(finding, marks[finding], rules[finding.rule])
        if finding.fix is not None and finding.fix in patches:
            result["fixes"] = [_fix(finding.path, finding.fix, patches[finding.fix])]
        # where any result has suppressions, all must say whether they have one (3.27.23)
        result["suppressions"] = [silenced[finding]] if finding in silenced else []
        results.append(result)
    run = {
        "tool": {"driver": _driver()},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The folder in which moe-lint ran."}}},
        "invocations": [_invocation(report)],
        "results": results,
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _driver() -> dict[str, Any]:
    own = version("moe-lint")
    return {"name": "moe-lint", "version": own, "semanticVersion": own, "rules": [_rule(rule) for rule in all_rules()]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.summary},
        "help": {"text": rule.documentation, "markdown": page(rule)},
        "defaultConfiguration": {"enabled": rule.on_by_default, "level": _LEVEL[rule.severity]},
        "properties": {"tags": ["correctness"], "precision": _PRECISION[rule.confidence]},
    }


def _result(finding: Finding, fingerprint: str, index: int) -> dict[str, Any]:
    place = _location(finding.path, _region(finding.span))
    if finding.qualname:
        place["logicalLocations"] = [{"fullyQualifiedName": finding.qualname, "kind": "function"}]
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": _LEVEL[finding.severity],
        "message": {"text": _message(finding)},
        "locations": [place],
        # GitHub knows an alert again by `primaryLocationLineHash` alone
        "partialFingerprints": {SCHEME: fingerprint, "primaryLocationLineHash": fingerprint},
        "properties": {
            "confidence": finding.confidence.value,
            "relation": finding.relation,
            "fixSafety": finding.fix.safety.value if finding.fix is not None else None,
        },
    }
    if finding.related:
        result["relatedLocations"] = [_related(number, one) for number, one in enumerate(finding.related, 1)]
    return result


def _message(finding: Finding) -> str:
    parts = [finding.message, finding.witness, finding.remedy]
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts if part)


def _related(number: int, related: Related) -> dict[str, Any]:
    return {
        "id": number,
        "message": {"text": related.message},
        **_location(related.path, {"startLine": related.line}),
    }


def _fix(path: str, plan: FixPlan, patch: Patch) -> dict[str, Any]:
    return {
        "description": {"text": f"{plan.safety.value}: {plan.reason}"},
        "artifactChanges": [
            {
                "artifactLocation": _artifact(path),
                "replacements": [
                    {"deletedRegion": _region(one.span), "insertedContent": {"text": one.text}}
                    for one in patch.replacements
                ],
            }
        ],
    }


def _suppression(kind: str, reason: str) -> dict[str, Any]:
    return {"kind": kind, "status": "accepted", **({"justification": reason} if reason else {})}


def _invocation(report: Report) -> dict[str, Any]:
    told: Sequence[Problem] = report.problems
    return {
        "executionSuccessful": not any(problem.failed for problem in told),
        "toolExecutionNotifications": [
            {
                "level": "error" if problem.failed else "note",
                "descriptor": {"id": problem.reason.value},
                "message": {"text": problem.message},
                "locations": [_location(problem.path, {"startLine": max(1, problem.line)})],
            }
            for problem in told
        ],
    }


def _location(path: str, region: dict[str, int]) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": _artifact(path), "region": region}}


def _region(span: Span) -> dict[str, int]:
    return {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": span.end_line,
        "endColumn": span.end_column,
    }


def _artifact(path: str) -> dict[str, str]:
    if Path(path).is_absolute():
        return {"uri": Path(path).as_uri()}
    return {"uri": quote(PurePath(path).as_posix(), errors="surrogateescape"), "uriBaseId": _ROOT}
