"""The field report is true: what it lists is what a run finds."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.corpus.releases import findings

TEXT = (Path(__file__).parents[2] / "docs" / "field-report.md").read_text()
VERSIONS = (
    "0.5.3", "0.5.9", "0.5.10.post1", "0.5.11", "0.5.12", "0.5.15", "0.5.18", "0.5.20", "0.5.21", "0.5.22", "0.5.23"
)  # fmt: skip
#: Counted in a table of their own.
APART = ("MOE303", "MOE306", "MOE308")


def tables(header: str) -> dict[str, dict[str, int]]:
    """Release -> rule -> number, as the table below a header says it."""
    lines = TEXT[TEXT.index(f"\n## {header}\n") :].split("\n## ")[1].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    rules = rows[0][1:]
    return {
        row[0]: {rule: int(cell) for rule, cell in zip(rules, row[1:], strict=True) if cell and rule != "all"}
        for row in rows[2:]
    }


def listed() -> dict[str, Counter[tuple[str, int]]]:
    """Rule -> (release, line) of each finding in the long table; `version:line`, a bare line has the version before."""
    found: dict[str, Counter[tuple[str, int]]] = {}
    rule = version = ""
    for line in TEXT[TEXT.index("## The findings") : TEXT.index("## What reading changed")].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or cells[0] in ("rule", "---"):
            continue
        rule = cells[0] or rule
        for token in re.findall(r"(?<![\w.])(?:\w+:)?\d+(?!\w)", cells[2]):
            before, _, number = token.rpartition(":")
            version = {"": version, "P1": "0.5.10.post1"}.get(before, f"0.5.{before}")
            found.setdefault(rule, Counter())[version, int(number)] += 1
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_the_numbers_by_release_are_those_of_a_run(version: str) -> None:
    found = Counter(finding.rule for finding in findings(version))
    assert tables("By release")[version] == {rule: n for rule, n in found.items() if rule not in APART}
    apart = tables("Findings of MOE303, MOE306 and MOE308").get(version, {})
    assert apart == {rule: n for rule, n in found.items() if rule in APART}


def test_every_finding_is_listed_at_its_line_and_no_other() -> None:
    found: dict[str, Counter[tuple[str, int]]] = {}
    for version in VERSIONS:
        for finding in findings(version):
            if finding.rule not in APART:
                found.setdefault(finding.rule, Counter())[version, finding.span.line] += 1
    assert listed() == found
