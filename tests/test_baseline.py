"""Baselines: on an old tree only new findings fail, and entries that are gone are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import moe_lint
from tests.trees import COMPLETE, FORGETFUL, ROUTED, model

FILE = "known.json"
ENTRY = (
    '{"version": 1, "scheme": "moeLint/v1", '
    '"findings": [{"fingerprint": "x", "rule": "MOE001", "path": "PATH", "function": "f"}]}'
)


def write() -> None:
    assert moe_lint("--baseline", FILE, "--write-baseline", "engine").exit_code == 0


def report(*args: str) -> tuple[int, list[str], int, list[str]]:
    """(exit code, paths of new findings, known findings, paths of stale entries)"""
    result = moe_lint("--baseline", FILE, "--format", "json", *(args or ("engine",)))
    document = json.loads(result.stdout)
    stale = [entry["path"] for entry in document["baseline"]["stale"]]
    return result.exit_code, [f["path"] for f in document["findings"]], document["baseline"]["known"], stale


def test_what_is_written_down_is_not_reported_again(forgetful: Path) -> None:
    assert moe_lint("engine").exit_code == 1
    write()
    assert report() == (0, [], 1, [])
    assert "No new findings (1 in the baseline)" in moe_lint("--baseline", FILE, "engine").stdout


def test_only_new_findings_fail(forgetful: Path) -> None:
    write()
    (forgetful / "engine/models/y.py").write_text(model(FORGETFUL))
    assert report() == (1, ["engine/models/y.py"], 1, [])


def test_moved_lines_and_reformatted_guards_are_still_known(forgetful: Path) -> None:
    write()
    path = forgetful / "engine/models/x.py"
    folded = "if (self.tp_size > 1\n    and not use_reduce_scatter\n    and not should_allreduce_fusion):\n"
    path.write_text("# a comment\n\n\n" + model(folded + "    x = tensor_model_parallel_all_reduce(x)\n"))
    assert report() == (0, [], 1, [])


def test_another_guard_is_a_new_finding_and_the_old_entry_is_stale(forgetful: Path) -> None:
    write()
    (forgetful / "engine/models/x.py").write_text(model(COMPLETE))
    assert report() == (1, ["engine/models/x.py"], 0, ["engine/models/x.py"])


def test_a_second_site_like_the_first_is_new(forgetful: Path) -> None:
    write()
    (forgetful / "engine/models/x.py").write_text(model(f"{FORGETFUL}x = self.experts(x)\n{FORGETFUL}"))
    assert report() == (1, ["engine/models/x.py"], 1, [])


def test_entries_that_are_gone_are_told_and_fail_nothing(forgetful: Path) -> None:
    write()
    (forgetful / "engine/models/x.py").write_text(model(ROUTED))
    assert report() == (0, [], 0, ["engine/models/x.py"])
    told = moe_lint("--baseline", FILE, "engine").stdout
    assert "stale baseline entry: MOE001 in engine/models/x.py (`XSparseMoeBlock.forward`) is gone" in told


def test_entries_of_a_deleted_file_are_stale(forgetful: Path) -> None:
    write()
    (forgetful / "engine/models/x.py").unlink()
    assert report() == (0, [], 0, ["engine/models/x.py"])


def test_entries_that_the_run_did_not_judge_are_not_called_stale(forgetful: Path) -> None:
    (forgetful / "engine/models/y.py").write_text(model(FORGETFUL))
    write()
    assert report("engine/models/x.py") == (0, [], 1, [])
    assert report("--ignore", "MOE001", "engine") == (0, [], 0, [])
    assert report("--extend-exclude", "y.py", "engine") == (0, [], 1, [])
    (forgetful / "engine/models/y.py").write_text("def f(: tensor_model_parallel_all_reduce(experts)")
    assert report()[2:] == (1, [])


def test_a_finding_that_a_comment_silences_answers_for_its_entry(forgetful: Path) -> None:
    write()
    silenced = FORGETFUL.replace("all_reduce(x)\n", "all_reduce(x)  # moe-lint: ignore[MOE001] seen\n")
    (forgetful / "engine/models/x.py").write_text(model(silenced))
    assert report() == (0, [], 0, [])


def test_paths_are_relative_to_the_baseline_wherever_the_run_starts(
    forgetful: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    assert json.loads((forgetful / FILE).read_text())["findings"][0]["path"] == "engine/models/x.py"
    monkeypatch.chdir(forgetful / "engine" / "models")
    assert moe_lint("--baseline", f"../../{FILE}", "x.py").exit_code == 0


def test_the_configuration_can_name_it_and_paths_there_are_relative_to_the_file(
    forgetful: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (forgetful / "moe-lint.toml").write_text(f'baseline = "{FILE}"\n')
    assert moe_lint("--write-baseline", "engine").exit_code == 0
    monkeypatch.chdir(forgetful / "engine")
    assert moe_lint("models").exit_code == 0


def test_writing_one_ignores_the_one_that_is_there(forgetful: Path) -> None:
    write()
    first = (forgetful / FILE).read_text()
    write()
    assert (forgetful / FILE).read_text() == first
    (forgetful / FILE).write_text("not even JSON")
    write()
    assert (forgetful / FILE).read_text() == first


def test_fixing_leaves_known_findings_alone(forgetful: Path) -> None:
    write()
    before = (forgetful / "engine/models/x.py").read_text()
    (forgetful / "engine/models/y.py").write_text(model(FORGETFUL))
    assert moe_lint("--baseline", FILE, "--fix", "engine").exit_code == 0
    assert (forgetful / "engine/models/x.py").read_text() == before
    assert "should_skip_post_experts_all_reduce(" in (forgetful / "engine/models/y.py").read_text()


@pytest.mark.parametrize("output", ["text", "concise"])
def test_a_stale_entry_is_told_in_one_line_whatever_it_holds(forgetful: Path, output: str) -> None:
    (forgetful / FILE).write_text(ENTRY.replace("PATH", "engine/gone\\n\\u001b[31m.py"))
    told = moe_lint("--baseline", FILE, "--format", output, "engine").stdout
    assert "note: stale baseline entry: MOE001 in engine/gone\\n\\x1b[31m.py (`f`) is gone" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "known.json: the baseline cannot be read: No such file or directory; write it with --write-baseline"),
        ("{", "known.json: not a baseline: no valid JSON"),
        ("\ud800".encode("utf-8", "surrogatepass"), "known.json: not a baseline: no valid JSON"),
        ("[]", "known.json: not a baseline of moe-lint"),
        ('{"runs": []}', "known.json: not a baseline of moe-lint"),
        (
            '{"version": 2, "scheme": "x", "findings": []}',
            "a baseline of version 2 ('x'), this moe-lint reads",
        ),
        ('{"version": 1, "scheme": "moeLint/v0", "findings": []}', "a baseline of version 1 ('moeLint/v0')"),
        ('{"version": 1, "scheme": "moeLint/v1", "findings": {}}', "`findings` is no list"),
        ('{"version": 1, "scheme": "moeLint/v1", "findings": [{"rule": 1}]}', "entry 1 lacks one of fingerprint, rule"),
        (
            ENTRY.replace("PATH", "a\\u0000b.py"),
            "known.json: not a baseline of moe-lint: entry 1 names a path that cannot be",
        ),
        (
            ENTRY.replace("PATH", "\\ud800.py"),
            "known.json: not a baseline of moe-lint: entry 1 names a path that cannot be",
        ),
    ],
)
def test_a_baseline_that_cannot_be_used_is_one_line_and_exit_two(
    forgetful: Path, text: str | bytes | None, told: str
) -> None:
    if text is not None:
        (forgetful / FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = moe_lint("--baseline", FILE, "engine")
    assert result.exit_code == 2
    assert told in result.stderr
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--write-baseline"], "--write-baseline needs to know where: give --baseline FILE too"),
        (["--write-baseline", "--baseline", "no/folder.json"], "no/folder.json: the baseline cannot be written"),
        (["--write-baseline", "--baseline", "engine"], "engine: the baseline cannot be written"),
        (
            ["--write-baseline", "--baseline", FILE, "--format", "json"],
            "takes all findings and makes no report",
        ),
        (["--write-baseline", "--baseline", FILE, "--fix"], "--write-baseline and --fix do not go together"),
        (
            ["--write-baseline", "--baseline", "engine/models/x.py"],
            "--baseline: engine/models/x.py: would overwrite what is read",
        ),
    ],
)
def test_a_baseline_that_cannot_be_written_is_one_line_and_exit_two(
    forgetful: Path, args: list[str], told: str
) -> None:
    before = sorted(forgetful.rglob("*"))
    result = moe_lint(*args, "engine")
    assert result.exit_code == 2
    assert told in result.stderr
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert sorted(forgetful.rglob("*")) == before


def test_nothing_is_written_down_when_something_could_not_be_judged(forgetful: Path) -> None:
    (forgetful / "engine/models/y.py").write_text("def f(: tensor_model_parallel_all_reduce(experts)")
    result = moe_lint("--baseline", FILE, "--write-baseline", "engine")
    assert result.exit_code == 2
    assert "no baseline was written: something could not be judged" in result.stderr
    assert not (forgetful / FILE).exists()
