"""Runs of the command line inside the test process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from moe_lint.cli import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "pretend_engine"

#: What a check of the whole pretend engine finds: file, line, rule.
EXPECTED = [
    ("fusion_only.py", 20, "MOE001"),
    ("pair.py", 19, "MOE001"),
    ("pair.py", 19, "MOE101"),
    ("pair.py", 28, "MOE001"),
    ("unguarded.py", 19, "MOE002"),
    ("wrong_axis.py", 29, "MOE004"),
]


def moe_lint(*args: str) -> Result:
    """One run of the command line, which ends by itself: nothing is raised but what exits."""
    result = CliRunner().invoke(main, args)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def document(output: str, *args: str) -> Any:
    """The JSON that a run prints in one of the formats that are JSON."""
    return json.loads(moe_lint("--format", output, *args).stdout)


def findings(*args: str) -> list[tuple[str, int, str]]:
    return [(Path(f["path"]).name, f["line"], f["rule"]) for f in document("json", *args)["findings"]]
