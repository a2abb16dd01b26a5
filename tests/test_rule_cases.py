"""Every rule on its own examples: it reports exactly the lines that its cases mark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moe_lint.engine import Options, run
from moe_lint.model import Report, Severity
from moe_lint.profile import load_profile
from moe_lint.rules import Case, Rule, all_rules

CODES = {
    "MOE001": "hand-written-guard",
    "MOE002": "unguarded-reduction",
    "MOE003": "unguarded-without-absorber",
    "MOE004": "wrong-axis",
    "MOE005": "forgotten-flag",
    "MOE006": "literal-flag",
    "MOE007": "helper-misused",
    "MOE101": "axis-drift",
    "MOE102": "sibling-drift",
    "MOE103": "hand-listed-backends",
    "MOE104": "path-of-no-backend",
    "MOE201": "flag-not-forwarded",
    "MOE202": "positional-flag",
    "MOE203": "override-without-flag",
    "MOE204": "permitted-but-never-asked",
    "MOE205": "flag-never-read",
    "MOE206": "flag-changed",
    "MOE207": "flag-lost-on-the-way",
    "MOE301": "deferred-without-marker",
    "MOE302": "last-layer-defers",
    "MOE303": "deferred-sum-leaves",
    "MOE304": "reduced-by-nobody",
    "MOE305": "helper-without-absorber",
    "MOE306": "reduced-by-experts-too",
    "MOE307": "path-without-reduction",
    "MOE308": "added-behind-a-deferred-sum",
    "MOE309": "reduced-twice",
    "MOE310": "block-and-boundary-sum",
    "MOE311": "input-in-the-sum",
    "MOE312": "handed-over-misfit",
    "MOE401": "twin-drift",
    "MOE402": "copied-predicate",
    "MOE403": "summed-in-combine",
    "MOE404": "wrapper-bypassed",
    "MOE405": "one-sum-of-two",
    "MOE406": "scatter-without-sum",
    "MOE407": "marked-and-not-summed",
    "MOE408": "fallback-without-sum",
    "MOE901": "unused-suppression",
    "MOE902": "suppression-without-reason",
    "MOE903": "malformed-suppression",
}
#: What a rule's documentation must say about what goes wrong: with the sum, or with later findings.
CONSEQUENCES = {
    "MOE001": "scaled by the group size",
    "MOE002": "scaled by the group size",
    "MOE003": "lose the only reduction",
    "MOE004": "fails to skip",
    "MOE005": "both do",
    "MOE006": "never reduces",
    "MOE007": "summed twice",
    "MOE101": "summed twice",
    "MOE102": "numbers depend on the path",
    "MOE103": "once more than they should be",
    "MOE104": "scaled by the group size",
    "MOE201": "scaled by the group size",
    "MOE202": "keeps its own partial sum",
    "MOE203": "scaled by the group size",
    "MOE204": "scaled by the group size",
    "MOE205": "scaled by the group size",
    "MOE206": "scaled by the group size",
    "MOE207": "scaled by the group size",
    "MOE301": "loses the sum",
    "MOE302": "sum is lost",
    "MOE303": "every token after it is wrong",
    "MOE304": "its own partial sum",
    "MOE305": "the sum is lost",
    "MOE306": "scaled by the group size",
    "MOE307": "its own partial sum",
    "MOE308": "once for every rank",
    "MOE309": "scaled by the group size",
    "MOE310": "scaled by the group size",
    "MOE311": "scaled by the group size",
    "MOE312": "counts once for every rank",
    "MOE401": "summed twice",
    "MOE402": "the sum runs twice",
    "MOE403": "sums twice",
    "MOE404": "passes it by",
    "MOE405": "with a partial sum",
    "MOE406": "turns to noise",
    "MOE407": "its own partial sum",
    "MOE408": "its own partial sum",
    "MOE901": "silence the next bug",
    "MOE902": "not why",
    "MOE903": "silences nothing",
}
MARK = re.compile(r"[ \t]*# <- (MOE\d{3})$", re.MULTILINE)
RULES = {rule.code: rule for rule in all_rules()}


def every_case(valid: bool = True) -> list[object]:
    return [
        pytest.param(rule, case, id=f"{rule.code}-{case.name}")
        for rule in all_rules()
        for case in (*(rule.VALID if valid else ()), *rule.INVALID)
    ]


def marked(case: Case, code: str) -> set[tuple[str, int]]:
    return {
        (path, number)
        for path, text in case.files.items()
        for number, line in enumerate(text.splitlines(), 1)
        if (mark := MARK.search(line)) and mark[1] == code
    }


def judged(rule: Rule, case: Case, folder: Path) -> Report:
    for name, text in case.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MARK.sub("", text))  # in a directive's line the mark would be part of its reason
    select: tuple[str, ...] = (rule.code,)
    if rule.code.startswith("MOE9"):  # a directive is about other rules' findings
        select = (*(other.code for other in all_rules() if other.on_by_default), rule.code)
    return run(Options((str(folder),), load_profile("sglang"), select=select))


@pytest.mark.parametrize(("rule", "case"), every_case())
def test_a_rule_reports_exactly_the_marked_lines(rule: Rule, case: Case, tmp_path: Path) -> None:
    report = judged(rule, case, tmp_path)
    assert report.problems == ()
    found = [
        (Path(finding.path).resolve().relative_to(tmp_path.resolve()).as_posix(), finding.span.line)
        for finding in report.findings
        if finding.rule == rule.code
    ]
    assert sorted(found) == sorted(marked(case, rule.code))


@pytest.mark.parametrize("code", RULES)
def test_a_rule_has_at_least_as_many_valid_cases_as_invalid_ones(code: str) -> None:
    rule = RULES[code]
    assert len(rule.VALID) >= len(rule.INVALID) >= 1
    names = [case.name for case in (*rule.VALID, *rule.INVALID)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("code", RULES)
def test_only_invalid_cases_are_marked_and_with_their_own_code(code: str) -> None:
    rule = RULES[code]
    assert all(not MARK.search(text) for case in rule.VALID for text in case.files.values())
    for case in rule.INVALID:
        assert {mark[1] for text in case.files.values() for mark in MARK.finditer(text)} == {code}


def test_the_codes_and_names_of_the_rules_stay() -> None:
    assert {rule.code: rule.name for rule in all_rules()} == CODES


@pytest.mark.parametrize("code", RULES)
def test_a_rule_has_a_summary_and_names_its_consequence(code: str) -> None:
    rule = RULES[code]
    assert rule.summary.endswith(".")
    assert len(rule.summary) < 120
    assert CONSEQUENCES[code] in " ".join(rule.documentation.split())


@pytest.mark.parametrize(
    ("rule", "case"), [param for param in every_case() if param.values[1] in param.values[0].INVALID]
)
def test_a_finding_of_wrong_numbers_names_a_launch_configuration_in_which_they_are_wrong(
    rule: Rule, case: Case, tmp_path: Path
) -> None:
    found = [finding for finding in judged(rule, case, tmp_path).findings if finding.rule == rule.code]
    assert found
    for finding in found:
        if finding.severity is Severity.ERROR:
            assert re.search(r"`--\w", f"{finding.message} {finding.witness}"), finding.message


@pytest.mark.parametrize("case", RULES["MOE408"].INVALID, ids=lambda case: case.name)
def test_the_norm_that_takes_a_partial_sum_is_pointed_at_from_its_first_column(case: Case, tmp_path: Path) -> None:
    for finding in judged(RULES["MOE408"], case, tmp_path).findings:
        line = Path(finding.path).read_text().splitlines()[finding.span.line - 1]
        told = line[finding.span.column - 1 : finding.span.end_column - 1]
        assert told in {"self.forward(x, residual)", "norm.forward(x, residual)", "self.norm(x, residual)"}
