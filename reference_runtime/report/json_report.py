"""JSON: the stable form for other programs (version 1)."""

from __future__ import annotations

import json
from typing import Any

from reference_runtime.verdicts import CaseResult, ModelReport, RunReport, Verdict, outcome_to_dict


def render(report: RunReport) -> str:
    """Everything that the run found out."""
    totals = {verdict.value: 0 for verdict in Verdict}
    for model in report.models:
        for verdict, count in model.counts.items():
            totals[verdict.value] += count
    document = {
        "version": 1,
        "before": report.before,
        "after": report.after,
        "settings": dict(report.settings),
        "versions": dict(report.versions),
        "models": [_model(model) for model in report.models],
        "notes": list(report.notes),
        "summary": {"models": len(report.models), "verdicts": totals, "exit_code": report.exit_code},
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _model(model: ModelReport) -> dict[str, Any]:
    return {
        "model": model.model,
        "path": model.path,
        "seconds": model.seconds,
        "problem": model.problem or None,
        "oracles": {
            note.level: {"dense": note.dense, "error": note.error, "text": str(note)} for note in model.oracles
        },
        "not_reached": [{"path": one.path, "line": one.line, "function": one.function} for one in model.unreached],
        "cases": [_case(case) for case in model.cases],
    }


def _case(case: CaseResult) -> dict[str, Any]:
    return {
        "level": case.level,
        "case": case.case,
        "world_size": case.world_size,
        "verdict": case.verdict.value,
        "regression": case.regression,
        "detail": case.detail,
        "before": outcome_to_dict(case.before),
        "after": outcome_to_dict(case.after),
    }
