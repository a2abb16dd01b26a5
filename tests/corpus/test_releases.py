"""What moe-lint says about real releases, against expectations written by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.initialise import plan_init
from moe_lint.model import MatrixRow, Report
from moe_lint.profile import load_profile
from moe_lint.rewritten import write_all
from tests.corpus.releases import findings, judged, release

SGLANG = load_profile("sglang")


def key(path: str, line: int) -> tuple[str, int]:
    return path[path.rindex("sglang/") :], line


def expected(version: str) -> list[tuple[tuple[str, int], str, str, str]]:
    text = (Path(__file__).parent / "expected" / f"{version}.tsv").read_text()
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return [((path, int(line)), axis, post, due) for path, line, axis, post, due in rows]


@pytest.mark.parametrize("version", ["0.5.10.post1", "0.5.20"])
def test_a_run_by_default_finds_what_the_other_tests_take_for_it(version: str) -> None:
    report = run(Options((str(release(version) / "sglang"),), SGLANG))
    assert report.findings == findings(version)
    assert report.rows == tuple(replace(row, law=None) for row in judged(version).rows)


@pytest.mark.parametrize("version", ["0.5.10.post1", "0.5.11"])
def test_every_site_is_found_with_its_axis_and_none_is_made_up(version: str) -> None:
    report = judged(version)
    rows = {key(row.path, row.span.line): row for row in report.rows}
    for place, axis, post, _ in expected(version):
        assert rows[place].post_experts is (post == "yes"), place
        if post == "yes":
            assert rows[place].axis == axis, place


@pytest.mark.parametrize("version", ["0.5.10.post1", "0.5.11"])
def test_every_due_finding_is_reported_and_no_right_site_is(version: str) -> None:
    places = {key(finding.path, finding.span.line) for finding in findings(version)}
    due = {place for place, *_, verdict in expected(version) if verdict == "yes"}
    right = {place for place, *_, verdict in expected(version) if verdict == "no"}
    assert due - places == set()
    assert right & places == set()


def test_a_guard_that_goes_through_the_helper_is_called_equal() -> None:
    for version in ("0.5.11", "0.5.20"):
        helper = [row for row in judged(version).rows if row.route == "helper" and row.relation is not None]
        assert len(helper) > 20
        models = [row for row in helper if "/models/" in row.path]
        different = [row for row in models if row.relation != "equal"]
        assert [(row.path, row.span.line, row.relation) for row in different] == []


def sites_at_helper(report: Report) -> dict[tuple[str, str, str], MatrixRow]:
    return {
        (row.path.rsplit("/", 1)[-1].replace("mimo_v2_flash", "mimo_v2"), row.function, row.axis): row
        for row in report.rows
        if row.route == "helper"
    }


def arguments(row: MatrixRow) -> frozenset[str]:
    call = row.guard[row.guard.index("should_skip_post_experts_all_reduce(") :]
    inner = call[call.index("(") + 1 : call.index(")")]
    return frozenset(part.strip() for part in inner.split(",") if part.strip())


def test_init_and_fix_replay_the_sweep_of_the_central_helper(tmp_path: Path) -> None:
    before = release("0.5.10.post1")
    shutil.copytree(before / "sglang", tmp_path / "sglang")
    tree = str(tmp_path / "sglang")
    plan = plan_init(tree, SGLANG)
    assert plan is not None
    write_all(plan.files)
    options = Options((tree,), SGLANG, known={})
    result = fixing.fix(options, run(options), fixing.ALLOWED["default"])
    assert result.not_proven == ()
    write_all(result.fixed)
    for one in result.fixed:
        compile(one.after, one.path, "exec")
    report = run(options)
    # the sweep was about guards; what is wrong with the layers around them it left as it was
    assert [(f.rule, f.path.rsplit("/", 1)[-1]) for f in report.findings] == [
        ("MOE408", "layernorm.py"),
        ("MOE301", "bailing_moe_linear.py"),
        ("MOE302", "bailing_moe_nextn.py"),
    ]
    assert {f.fix for f in report.findings} == {None}
    assert fixing.fix(options, report, fixing.ALLOWED["default"]).fixed == ()

    ours = sites_at_helper(report)
    theirs = sites_at_helper(judged("0.5.11"))
    known = {(row.path.rsplit("/", 1)[-1].replace("mimo_v2_flash", "mimo_v2"), row.function) for row in report.rows}
    replayed = {place for place in theirs if place[:2] in known}
    assert len(replayed) >= 18
    assert replayed - ours.keys() == set()
    for place in replayed:
        assert arguments(ours[place]) == arguments(theirs[place]), place
    # sites that the sweep by hand missed
    assert ("gpt_oss.py", "forward_normal", "TP") in ours
    assert ("deepseek_v2.py", "forward_cpu", "TP") in ours
