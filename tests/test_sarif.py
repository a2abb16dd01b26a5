"""SARIF against the schema of the standard, and what viewers and code hosts do with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.runs import EXPECTED, document, moe_lint

SCHEMA = Path(__file__).parent / "schemas" / "sarif-schema-2.1.0.json"
PUBLISHED = "c3b4bb2d6093897483348925aaa73af03b3e3f4bd4ca38cef26dcb4212a2682e"


def errors(sarif: object) -> list[str]:
    schema = json.loads(SCHEMA.read_bytes())
    validator = jsonschema.validators.validator_for(schema)(schema, format_checker=jsonschema.FormatChecker())
    return [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(sarif)]


def results(*args: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document("sarif", *args)["runs"][0]["results"]
    return found


def suppress(tree: Path) -> None:
    path = tree / "engine/models/unguarded.py"
    text = path.read_text()
    path.write_text(text.replace("        if self.tp", "        # moe-lint: ignore[MOE002] seen\n        if self.tp"))


def test_the_schema_is_the_published_one() -> None:
    assert hashlib.sha256(SCHEMA.read_bytes()).hexdigest() == PUBLISHED


def test_a_log_with_findings_fixes_and_suppressions_is_valid(tree: Path) -> None:
    suppress(tree)
    sarif = document("sarif", "engine")
    assert errors(sarif) == []
    assert [bool(r.get("fixes")) for r in sarif["runs"][0]["results"]] == [True] * 4 + [False, True]


def test_a_clean_log_is_valid(tree: Path) -> None:
    assert errors(document("sarif", "engine/models/right.py")) == []


def test_a_log_of_a_tree_that_could_not_be_read_is_valid_and_says_so(tree: Path) -> None:
    (tree / "engine/models/pair.py").write_text("def f(: tensor_model_parallel_all_reduce(experts)\n")
    sarif = document("sarif", "engine")
    assert errors(sarif) == []
    invocation = sarif["runs"][0]["invocations"][0]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["descriptor"] == {"id": "syntax-error"}


def test_the_validator_refuses_what_the_standard_does_not_know(tree: Path) -> None:
    sarif = document("sarif", "engine")
    sarif["runs"][0]["results"][0]["colour"] = "red"
    del sarif["runs"][0]["results"][1]["message"]
    assert len(errors(sarif)) == 2


def test_a_result_names_its_rule_place_function_and_the_helpers_place(tree: Path) -> None:
    sarif = document("sarif", "engine")
    result = sarif["runs"][0]["results"][0]
    rule = sarif["runs"][0]["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert (rule["id"], rule["name"]) == (result["ruleId"], "hand-written-guard") == ("MOE001", "hand-written-guard")
    assert "Instead of" in rule["help"]["text"]
    place = result["locations"][0]
    assert place["physicalLocation"] == {
        "artifactLocation": {"uri": "engine/models/fusion_only.py", "uriBaseId": "SRCROOT"},
        "region": {"startLine": 20, "startColumn": 35, "endLine": 20, "endColumn": 88},
    }
    assert place["logicalLocations"] == [{"fullyQualifiedName": "FusionOnlyMoE.forward", "kind": "function"}]
    related = result["relatedLocations"][0]["physicalLocation"]
    assert (related["artifactLocation"]["uri"], related["region"]) == ("engine/layers/moe/utils.py", {"startLine": 38})


def test_fingerprints_survive_line_moves_and_tell_all_findings_apart(tree: Path) -> None:
    def marks() -> list[str]:
        return [r["partialFingerprints"]["moeLint/v1"] for r in results("engine")]

    before = marks()
    for name in {row[0] for row in EXPECTED}:
        path = tree / "engine/models" / name
        path.write_text("# one more line\n\n" + path.read_text())
    assert marks() == before
    assert len(set(before)) == len(EXPECTED)


def test_a_suppressed_result_carries_its_reason_and_the_others_say_that_they_have_none(tree: Path) -> None:
    suppress(tree)
    found = {Path(r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]).name: r for r in results("engine")}
    assert found["unguarded.py"]["suppressions"] == [
        {"kind": "inSource", "status": "accepted", "justification": "seen"}
    ]
    assert found["pair.py"]["suppressions"] == []


def test_a_result_that_the_baseline_lists_is_suppressed_from_outside(tree: Path) -> None:
    moe_lint("--baseline", "known.json", "--write-baseline", "engine/models/unguarded.py")
    sarif = document("sarif", "--baseline", "known.json", "engine")
    assert errors(sarif) == []
    kinds = {r["ruleId"]: [s["kind"] for s in r["suppressions"]] for r in sarif["runs"][0]["results"]}
    assert kinds == {"MOE001": [], "MOE101": [], "MOE002": ["external"], "MOE004": []}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_applying_the_fix_of_a_result_gives_what_the_command_writes(tree: Path, ending: str) -> None:
    path = tree / "engine/models/fusion_only.py"
    text = path.read_text().replace("\n", ending)
    path.write_bytes(text.encode())
    (result,) = results(str(path.relative_to(tree)))
    (change,) = result["fixes"][0]["artifactChanges"]
    for one in sorted(change["replacements"], key=lambda r: -r["deletedRegion"]["startLine"]):
        region = one["deletedRegion"]
        text = (
            text[: offset(text, region, "start")] + one["insertedContent"]["text"] + text[offset(text, region, "end") :]
        )
    assert moe_lint("--fix", "engine/models/fusion_only.py").exit_code == 0
    assert path.read_bytes().decode() == text


def offset(text: str, region: dict[str, int], edge: str) -> int:
    """The offset of a region's edge, as section 3.30 of the standard counts."""
    lines = text.split("\n")
    return sum(len(line) + 1 for line in lines[: region[f"{edge}Line"] - 1]) + region[f"{edge}Column"] - 1


def test_a_fix_that_cannot_be_proved_is_no_fix(tree: Path) -> None:
    path = tree / "engine/models/fusion_only.py"
    path.write_text(path.read_text().replace("            final_hidden", "            more = 1; final_hidden"))
    found = [r for r in results("engine") if "fusion_only" in json.dumps(r["locations"])]
    assert [(r["ruleId"], "fixes" in r) for r in found] == [("MOE001", False)]


def test_a_path_is_escaped_as_a_uri(tree: Path) -> None:
    odd = tree / "engine/models/a b#c%d\u00e9.py"
    (tree / "engine/models/fusion_only.py").rename(odd)
    found = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in results("engine")]
    assert "engine/models/a%20b%23c%25d%C3%A9.py" in found
