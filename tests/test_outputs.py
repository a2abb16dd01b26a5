"""Where reports go, and the formats that other programs read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import junitparser
import pytest
from rich.cells import cell_len

from moe_lint.reporters import FORMATS
from tests.runs import EXPECTED, document, moe_lint
from tests.trees import write_tree

UTILS = "engine/layers/moe/utils.py"


def test_text_and_machine_reports_come_out_of_one_run(tree: Path) -> None:
    alone = moe_lint("engine")
    both = moe_lint("--output", "sarif:out.sarif", "-o", "json:out.json", "engine")
    assert (both.stdout, both.exit_code) == (alone.stdout, 1)
    assert json.loads(Path("out.sarif").read_text())["version"] == "2.1.0"
    assert json.loads(Path("out.json").read_text()) == document("json", "engine")


def test_the_text_in_a_file_is_the_text_without_colour(tree: Path) -> None:
    moe_lint("-o", "text:out.txt", "engine")
    assert Path("out.txt").read_text() == moe_lint("engine").stdout


def test_after_fixing_a_report_tells_what_is_left(tree: Path) -> None:
    assert moe_lint("--fix", "-o", "json:out.json", "engine").exit_code == 0
    assert json.loads(Path("out.json").read_text())["findings"] == []


def test_beside_a_diff_a_report_tells_what_is_there(tree: Path) -> None:
    result = moe_lint("--diff", "-o", "json:out.json", "engine")
    assert result.stdout.startswith("--- a/engine/models/")
    assert len(json.loads(Path("out.json").read_text())["findings"]) == len(EXPECTED)


def test_where_there_are_no_colours_findings_are_shown_without_rich(tree: Path) -> None:
    run = "import sys; from moe_lint.cli import main; main(['engine'], standalone_mode=False)"
    code = f"try:\n    {run}\nfinally:\n    print('rich' in sys.modules)"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert plain.stdout.splitlines()[0].startswith("error[MOE001]")
    assert plain.stdout.splitlines()[-1] == "False"


def test_findings_are_the_same_with_colours_and_without(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree / "engine/models/unguarded.py"
    path.write_text(path.read_text().replace("    ", "\t").replace("\t\t\tfinal", "\t\t\t'\u4e2d\ta'; final"))
    plain = moe_lint("engine").stdout
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    coloured = moe_lint("engine").stdout
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


def test_the_matrix_tells_lines_as_numbers(tree: Path) -> None:
    path = tree / "engine/models/unguarded.py"
    path.write_text("\n" * 81 + path.read_text())
    assert "unguarded.py:100: doubled with" in moe_lint("matrix", "engine").stdout


def test_the_matrix_goes_to_files_too(tree: Path) -> None:
    result = moe_lint("matrix", "-o", "json:m.json", "engine")
    assert "relation" in result.stdout
    assert json.loads(Path("m.json").read_text()) == json.loads(moe_lint("matrix", "--format", "json", "engine").stdout)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["-o", "srif", "engine"], "unknown output format 'srif'; did you mean 'sarif'?"),
        (["--format", "xml", "engine"], "unknown output format 'xml'; there are text, concise, json"),
        (["matrix", "--format", "sarif", "engine"], "unknown output format 'sarif'; there are text, json"),
        (["-o", "sarif:", "engine"], "--output sarif:: no file after the colon"),
        (["-o", "sarif:gone/x", "engine"], "--output: gone/x: there is no folder"),
        (["-o", "sarif:engine", "engine"], "--output: engine: is a folder"),
        (["-o", "sarif:x", "-o", "json:./x", "engine"], "sarif and json both go to ./x"),
        (["-o", "sarif", "-o", "json", "engine"], "sarif and json both go to standard output; give one of them a file"),
        (["--format", "json", "-o", "text", "engine"], "json and text both go to standard output"),
        (["--diff", "--format", "json", "engine"], "--diff and json both go to standard output"),
        (["--statistics", "--format", "json", "engine"], "--statistics and json both go to standard output; give json"),
        (["-o", "json:engine/models/pair.py", "engine"], "pair.py: would overwrite what is read"),
        (["-o", "json:x", "--baseline", "x", "engine"], "--output: x: would overwrite what is read"),
        (["-o", "json:own.toml", "--profile", "./own.toml", "engine"], "own.toml: would overwrite what is"),
        (["verify", "engine", "engine", "-o", "json:engine/models/pair.py"], "pair.py: would overwrite"),
        (["matrix", "-o", "json:own.toml", "--config", "own.toml", "engine"], "own.toml: would overwrite"),
        (["--quiet", "--verbose", "engine"], "--quiet and --verbose exclude each other"),
        (["--no-such-option", "engine"], "No such option"),
        (["matrix"], "Missing argument"),
        (["--select"], "requires an argument"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_two(tree: Path, args: list[str], told: str) -> None:
    (tree / "own.toml").write_text("")
    before = sorted(tree.rglob("*"))
    result = moe_lint("--fix", *args) if args[0] not in ("matrix", "verify", "--diff") else moe_lint(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert sorted(tree.rglob("*")) == before


def test_a_folder_without_write_permission_is_named_before_the_run(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = moe_lint("--fix", "-o", "json:out.json", "engine")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "moe-lint: error: --output: out.json: cannot be written: the folder is read-only\n"


def test_a_report_that_cannot_be_written_is_one_line_and_the_old_one_stays(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    Path("out.json").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    result = moe_lint("--no-cache", "-o", "json:out.json", "engine")
    assert result.exit_code == 2
    assert result.stderr == "moe-lint: error: --output: out.json: cannot be written: No space left on device\n"
    assert sorted(p.name for p in tree.iterdir()) == ["engine", "out.json"]
    assert Path("out.json").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("output", ["text", "json"])
def test_standard_output_that_is_full_is_one_line_and_exit_two(tree: Path, output: str) -> None:
    command = [sys.executable, "-m", "moe_lint", "--format", output, "engine"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "moe-lint: error: standard output: No space left on device\n")


def test_a_report_goes_to_a_pipe_that_has_a_name(tree: Path) -> None:
    command = [sys.executable, "-m", "moe_lint", "--quiet", "-o", "json:/dev/stderr", "engine/models/right.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert json.loads(done.stderr)["summary"]["findings"] == 0


def test_a_defect_is_exit_two_not_a_finding(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("seven")

    monkeypatch.setattr("moe_lint.cli.check.run", broken)
    result = moe_lint("engine")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "moe-lint: error: internal error: ZeroDivisionError: seven; please report it with the lines above"
    )


# --- how much is told


def test_concise_is_a_line_for_each_finding_and_a_summary(tree: Path) -> None:
    lines = moe_lint("--format", "concise", "engine").stdout.splitlines()
    assert len(lines) == len(EXPECTED) + 1
    assert lines[4] == (
        "engine/models/unguarded.py:19:35: MOE002 [*] all-reduce after the experts ignores every skip reason, but an "
        "absorber surrounds `UnguardedMoE`"
    )
    assert lines[-1].startswith("6 findings (6 fixable): ")


def test_a_report_without_lines_is_an_empty_file(tree: Path) -> None:
    assert moe_lint("-o", "concise:none.txt", "engine/models/right.py").exit_code == 0
    assert Path("none.txt").read_bytes() == b""


def test_quiet_shows_findings_and_nothing_else(tree: Path) -> None:
    assert moe_lint("-q", "engine/models/right.py").output == ""
    assert len(moe_lint("-q", "--format", "concise", "engine").output.splitlines()) == len(EXPECTED)
    assert "findings (" not in moe_lint("-q", "engine").stdout
    assert moe_lint("-q", "--fix", "engine").output == ""
    assert moe_lint("-q", "engine").output == ""


def test_verbose_says_why_a_reduction_was_not_compared(tree: Path) -> None:
    path = tree / "engine/models/right.py"
    path.write_text(path.read_text() + "\n\ndef norm(x):\n    return tensor_model_parallel_all_reduce(x)\n")
    why = (
        f"{path.relative_to(tree)}:41: `tensor_model_parallel_all_reduce` is not compared with the helper: "
        "it does not sum the output of experts"
    )
    assert why in moe_lint("--verbose", "engine").stdout.replace("note: ", "")
    assert why in moe_lint("--verbose", "--format", "json", "engine").stderr.replace("note: ", "")
    assert why not in moe_lint("engine").stdout


def tangled(count: int) -> str:
    """Early returns whose conditions hang together: each speaks for the reduction in one and against it in others."""
    numbers = range(count)
    tests = [f"{'not ' * (i % 2)}a{i % 7} and {'not ' * (i % 3 == 0)}a{i * 5 % 23} and a{i * 11 % 29}" for i in numbers]
    return "".join(f"        if {test}:\n            return a0\n" for test in tests)


def test_a_guard_with_too_many_conditions_is_told_in_every_output_and_never_judged(tmp_path: Path) -> None:
    tree = write_tree(tmp_path)
    path = tree / "models/x.py"
    experts = "        x = self.experts(x)\n"
    path.write_text(path.read_text().replace(experts, experts + tangled(400)))
    why = "has a guard of too many conditions for a truth table; not compared with the helper"
    for args in ((), ("--format", "concise"), ("--statistics",)):
        result = moe_lint(*args, str(tree))
        assert (result.exit_code, result.stdout.count(why)) == (0, 1)
        assert moe_lint("-q", *args, str(tree)).output == ""
    assert moe_lint("-v", "--format", "json", str(tree)).stderr.count(why) == 1
    (skipped,) = json.loads(moe_lint("--format", "json", str(tree)).stdout)["skipped"]
    assert (skipped["reason"], why in skipped["message"]) == ("too-many-atoms", True)
    before = path.read_text()
    assert moe_lint("--fix", "--unsafe-fixes", str(tree)).exit_code == 0
    assert path.read_text() == before


def test_verbose_says_why_a_file_was_not_read(tree: Path) -> None:
    for name in ("skipped.py", "build/a.py", "build/deep/b.py", "models/kept.py"):
        (tree / "engine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "engine" / name).write_text("")
    (tree / "engine/.gitignore").write_text("skipped.py\n")
    (tree / ".git").mkdir()
    told = [line for line in moe_lint("-v", "engine").stdout.splitlines() if "not read" in line]
    assert told == [
        "note: engine/skipped.py: not read: ignored by git",
        "note: engine/build/: not read: excluded",
    ]


def test_findings_at_one_place_share_a_frame(tree: Path) -> None:
    text = moe_lint("engine/models/pair.py").stdout
    assert text.count("--> ") == 2
    assert text.count("pair.py:19:35") == 1
    assert text.index("error[MOE001]") < text.index("error[MOE101]") < text.index("pair.py:19:35")
    assert text.count("= wrong: with `use_reduce_scatter=True`") == 1
    assert text.count("= help: ") == 3
    assert "21 |         if (\n22 |             self.tp_size > 1\n" in text


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        ("y = '\x1b[31m\x9b'; ", "y = '\\x1b[31m\\x9b'; "),
        ("y = '\U0001f600\u4e2d'; ", "y = '\U0001f600\u4e2d'; "),
        ("", ""),
    ],
    ids=["escapes", "wide letters", "tabs"],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_frame_shows_code_without_controlling_the_terminal_and_marks_the_place(
    tree: Path, before: str, shown: str, newline: str
) -> None:
    path = tree / "engine/models/unguarded.py"
    text = path.read_text().replace("    ", "\t").replace("\t\t\tfinal", f"\t\t\t{before}final")
    path.write_bytes(text.replace("\n", newline).encode())
    assert moe_lint("-o", "text:out.txt", "engine").exit_code == 1
    lines = Path("out.txt").read_bytes().decode().split("\n")
    number = next(n for n, line in enumerate(lines) if f"{shown}final_hidden_states = tensor_model" in line)
    marks, code = lines[number + 1], lines[number]
    assert "\r" not in code
    assert cell_len(marks.partition("^")[0]) == cell_len(code.partition("tensor_model")[0])


def test_statistics_count_each_rule_the_most_frequent_first(tree: Path) -> None:
    lines = moe_lint("--statistics", "engine").stdout.splitlines()
    assert [line.split() for line in lines[:-1]] == [
        ["3", "MOE001", "[3", "fixable]", "hand-written-guard"],
        ["1", "MOE002", "[1", "fixable]", "unguarded-reduction"],
        ["1", "MOE004", "[1", "fixable]", "wrong-axis"],
        ["1", "MOE101", "[1", "fixable]", "axis-drift"],
    ]
    assert lines[-1].startswith("6 findings")


def test_exit_zero_forgives_findings_and_nothing_else(tree: Path) -> None:
    assert moe_lint("--exit-zero", "engine").exit_code == 0
    (tree / "engine/models/pair.py").write_text("def f(: tensor_model_parallel_all_reduce(experts)\n")
    assert moe_lint("--exit-zero", "engine").exit_code == 2


# --- formats


def test_every_report_can_be_read_whatever_a_file_is_called(tree: Path) -> None:
    models = os.fsencode(tree / "engine/models")
    names = [b"a\x01b\x0b\x1b[31m.py", b"bad\xff.py", "\u2028 ]]><x>&\"'.py".encode()]
    for old, new in zip((b"fusion_only.py", b"unguarded.py", b"wrong_axis.py"), names, strict=True):
        os.rename(os.path.join(models, old), os.path.join(models, new))
    files = {name: f"out.{name}" for name in FORMATS}
    assert moe_lint(*(f"--output={name}:{file}" for name, file in files.items()), "engine").exit_code == 1
    for name in ("json", "sarif", "gitlab"):
        assert json.loads(Path(files[name]).read_text(encoding="utf-8"))
    assert junitparser.JUnitXml.fromfile(files["junit"]).failures == len(EXPECTED)
    assert "bad\\udcff.py" in Path(files["html"]).read_text(encoding="utf-8")
    assert Path(files["concise"]).read_bytes().count(b"\n") == len(EXPECTED)


def test_github_annotations_escape_as_the_actions_toolkit_does(tree: Path) -> None:
    (tree / "engine/models/fusion_only.py").rename(tree / "engine/models/a,b:c%d.py")
    lines = moe_lint("--format", "github", "engine").stdout.splitlines()
    assert len(lines) == len(EXPECTED)
    assert lines[0].startswith(
        "::error file=engine/models/a%2Cb%3Ac%25d.py,line=20,col=35,endColumn=88,title=MOE001 hand-written-guard::"
        "hand-written guard bypasses `should_skip_post_experts_all_reduce`: it still reduces for"
    )
    assert lines[0].count("%0A") == 2  # what is wrong, in which state, what to do
    assert lines[2].startswith("::error file=engine/models/pair.py")
    assert lines[3].startswith("::warning file=engine/models/pair.py")


def test_github_annotations_tell_what_was_not_judged(tree: Path) -> None:
    (tree / "engine/models/pair.py").write_text("def f(: tensor_model_parallel_all_reduce(experts)\n")
    told = "::error file=engine/models/pair.py,line=1,title=not judged (syntax-error)::"
    assert told in moe_lint("--format", "github", "engine").stdout


def test_gitlab_issues_have_the_required_fields_and_own_fingerprints(tree: Path) -> None:
    issues = document("gitlab", "engine")
    assert [(i["location"]["path"], i["check_name"], i["severity"]) for i in issues] == [
        (f"engine/models/{name}", rule, "minor" if (name, line) == ("pair.py", 28) else "critical")
        for name, line, rule in EXPECTED
    ]
    assert issues[0]["location"]["positions"] == {
        "begin": {"line": 20, "column": 35},
        "end": {"line": 20, "column": 88},
    }
    assert all(issue["description"] for issue in issues)
    assert len({issue["fingerprint"] for issue in issues}) == len(EXPECTED)


def test_what_the_baseline_lists_is_no_issue_and_a_skipped_case(tree: Path) -> None:
    before = document("gitlab", "engine")
    moe_lint("--baseline", "known.json", "--write-baseline", "engine/models/pair.py")
    left = document("gitlab", "--baseline", "known.json", "engine")
    assert left == [issue for issue in before if "pair.py" not in issue["location"]["path"]]
    xml = junit("--baseline", "known.json", "engine")
    assert (xml.failures, xml.skipped) == (3, 3)


def junit(*args: str) -> junitparser.JUnitXml:
    return junitparser.JUnitXml.fromstring(moe_lint("--format", "junit", *args).stdout.encode())


def test_junit_counts_are_those_that_another_reader_counts(tree: Path) -> None:
    xml = junit("engine")
    said = (xml.tests, xml.failures, xml.errors, xml.skipped)
    xml.update_statistics()
    assert said == (xml.tests, xml.failures, xml.errors, xml.skipped) == (9, 6, 0, 0)


def test_junit_has_a_case_for_each_reduction_and_no_line_in_a_name(tree: Path) -> None:
    cases = {case.name: case for suite in junit("engine") for case in suite}
    assert cases["tensor_model_parallel_all_reduce in RightMoE.forward"].is_passed
    failed = cases["MOE001 hand-written-guard in FusionOnlyMoE.forward"]
    assert [r.type for r in failed.result] == ["MOE001"]
    assert "this all-reduce still runs" in failed.result[0].text
    twins = [name for name in cases if name.startswith("MOE001 hand-written-guard in PairMoE.forward")]
    assert [name.removeprefix("MOE001 hand-written-guard in PairMoE.forward") for name in twins] == ["", " (2)"]


def test_junit_marks_suppressed_findings_and_broken_files(tree: Path) -> None:
    path = tree / "engine/models/unguarded.py"
    reason = "seen \x1b<&>"
    path.write_text(
        path.read_text().replace(
            "        if self.tp", f"        # moe-lint: ignore[MOE002] {reason}\n        if self.tp"
        )
    )
    xml = junit("engine")
    assert (xml.failures, xml.skipped) == (5, 1)
    path.write_text("def f(: tensor_model_parallel_all_reduce(experts)\n")
    assert (junit("engine").failures, junit("engine").errors) == (5, 1)
