"""The command line on the bundled pretend tree: output, exit codes, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_lint.cli import COMMANDS
from tests.runs import EXPECTED, findings, moe_lint


def test_check_is_the_default_command(tree: Path) -> None:
    assert moe_lint("engine").stdout == moe_lint("check", "engine").stdout
    assert findings("engine") == EXPECTED


def test_findings_exit_with_one_and_a_clean_tree_with_zero(tree: Path) -> None:
    assert moe_lint("engine").exit_code == 1
    assert moe_lint("engine/models/right.py").exit_code == 0


def test_a_single_file_is_judged_by_the_helper_of_its_package(tree: Path) -> None:
    assert findings("engine/models/pair.py") == [row for row in EXPECTED if row[0] == "pair.py"]


def test_without_arguments_the_help_is_shown_and_nothing_is_called_judged() -> None:
    result = moe_lint()
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == moe_lint("--help").stdout


def test_the_help_shows_what_each_command_does_in_a_whole_sentence() -> None:
    listed = moe_lint("--help").stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


@pytest.mark.parametrize("where", ["moe_lint.cli.import_module", "moe_lint.cli.check.run"], ids=["start", "run"])
def test_an_interrupt_at_any_time_is_no_finding(tree: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    result = moe_lint("engine")
    assert (result.exit_code, result.output) == (130, "")


def test_no_path_is_a_clean_run() -> None:
    assert moe_lint("check").exit_code == 0


def test_the_text_shows_frame_witness_remedy_and_the_helpers_place(tree: Path) -> None:
    text = moe_lint("engine/models/fusion_only.py").stdout
    assert "error[MOE001] hand-written-guard" in text
    assert "19 |         if self.tp_size > 1 and not should_allreduce_fusion:" in text
    assert "^^^^" in text
    example = "`--tp 2 --dp 2 --enable-dp-attention` in a batch padded to the longest rank"
    assert f"with `use_reduce_scatter=True` (for example {example}) this all-reduce still runs" in text
    assert "help: guard it with `not should_skip_post_experts_all_reduce(is_tp_path=True" in text
    assert "see: engine/layers/moe/utils.py:38" in text
    assert "\x1b[" not in text


def test_the_json_has_the_fixed_contract(tree: Path) -> None:
    document = json.loads(moe_lint("--format", "json", "engine").stdout)
    assert document["version"] == 1
    assert {"version", "findings", "skipped", "summary"} <= document.keys()
    keys = {"rule", "name", "path", "line", "column", "end_line", "end_column", "severity", "message"}
    assert keys | {"function", "class", "relation", "witness", "fix"} <= document["findings"][0].keys()
    assert document["findings"][0]["fix"]["safety"] == "corrective"


def test_the_matrix_lists_every_site_with_its_relation(tree: Path) -> None:
    sites = json.loads(moe_lint("matrix", "--format", "json", "engine").stdout)["sites"]
    found = {(Path(s["path"]).name, s["axis"]): (s["route"], s["relation"], s["absorber"]) for s in sites}
    assert found["right.py", "TP"] == ("helper", "equal", True)
    assert found["no_absorber.py", "TP"] == ("none", "weaker", False)
    assert found["pair.py", "EP"] == ("inline", "weaker", True)
    assert moe_lint("matrix", "engine").exit_code == 0


def test_fixing_leaves_nothing_and_a_second_run_changes_nothing(tree: Path) -> None:
    before = {p: p.read_bytes() for p in tree.rglob("*.py")}
    assert moe_lint("--fix", "engine").exit_code == 0
    fixed = {p: p.read_bytes() for p in tree.rglob("*.py")}
    assert {p.name for p in fixed if fixed[p] != before[p]} == {row[0] for row in EXPECTED}
    assert findings("engine") == []
    assert moe_lint("--fix", "engine").exit_code == 0
    assert {p: p.read_bytes() for p in tree.rglob("*.py")} == fixed


def test_a_diff_changes_nothing_and_exits_by_what_is_left(tree: Path) -> None:
    before = {p: p.read_bytes() for p in tree.rglob("*.py")}
    result = moe_lint("--diff", "engine")
    assert result.exit_code == 1
    assert "+        if self.ep_size > 1 and not should_skip_post_experts_all_reduce(" in result.stdout
    assert {p: p.read_bytes() for p in tree.rglob("*.py")} == before


def test_safe_only_leaves_what_changes_behaviour(tree: Path) -> None:
    assert moe_lint("--fix", "--safe-only", "engine").exit_code == 1
    assert ("fusion_only.py", 20, "MOE001") in findings("engine")


@pytest.mark.parametrize("mode", ["--fix", "--diff"])
def test_what_is_left_out_is_counted_by_reason(tree: Path, mode: str) -> None:
    told = moe_lint(mode, "--safe-only", "engine").stderr.splitlines()
    assert "moe-lint: 5 fixes change behaviour: not made with --safe-only" in told
    assert "moe-lint: 1 fix waits for the other half of an EP/TP pair, which is left as it is" in told


def test_a_pair_is_fixed_as_a_pair(tree: Path) -> None:
    moe_lint("--fix", "--safe-only", "engine")  # the TP half alone would be safe
    assert "not should_skip" not in (tree / "engine/models/pair.py").read_text()


def without_helper(tree: Path) -> None:
    utils = tree / "engine/layers/moe/utils.py"
    text = utils.read_text()
    utils.write_text(text[: text.index("def should_skip_post_experts")])
    export = tree / "engine/layers/moe/__init__.py"
    export.write_text("".join(line for line in export.read_text().splitlines(True) if "should_skip" not in line))
    for name in ("right", "wrong_axis"):
        (tree / f"engine/models/{name}.py").unlink()


def test_a_helper_that_is_not_there_is_not_imported(tree: Path) -> None:
    without_helper(tree)
    before = {p: p.read_bytes() for p in tree.rglob("*.py")}
    result = moe_lint("--fix", "engine")
    assert result.exit_code == 1
    assert "no fix: the tree has no `should_skip_post_experts_all_reduce` yet: `moe-lint init` adds it" in result.stdout
    assert {p: p.read_bytes() for p in tree.rglob("*.py")} == before


def test_init_gives_a_tree_its_helper_and_the_fix_uses_it(tree: Path) -> None:
    without_helper(tree)
    assert "moe-lint init" in moe_lint("engine").stdout
    assert moe_lint("init", "engine").exit_code == 0
    assert "should_skip_post_experts_all_reduce" in (tree / "engine/layers/moe/__init__.py").read_text()
    assert moe_lint("--fix", "engine").exit_code == 0
    again = moe_lint("init", "engine")
    assert (again.exit_code, "nothing to do" in again.stdout) == (0, True)


def test_rules_are_listed_and_explained() -> None:
    listing = moe_lint("rule").stdout
    assert "MOE003  unguarded-without-absorber" in listing
    assert "off by default" in listing
    assert "Instead of" in moe_lint("rule", "hand-written-guard").stdout
    assert moe_lint("rule", "MOE999").exit_code == 2


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["nowhere"], "nowhere: no such file or directory"),
        (["--select", "NOPE", "engine"], "unknown rule 'NOPE'"),
        (["--profile", "nope", "engine"], "--profile: unknown profile 'nope'"),
        (["--profile", "./sglang", "engine"], "./sglang: cannot read the profile: No such file or directory"),
        (["--profile", "bad.toml", "engine"], "bad.toml: unknown key 'helpr'; did you mean 'helper'?"),
        (["empty"], "empty: no Python file below this folder"),
        (["--safe-only", "--unsafe-fixes", "engine"], "exclude each other"),
        ([""], "'': no such file or directory"),
        (["pipe.py"], "pipe.py: neither a file nor a folder"),
        (["a\nb.py"], "a\\nb.py: no such file or directory"),
        (["--select", "", "engine"], "Invalid value for '--select': it names no rule"),
        (["--ignore", ",", "engine"], "Invalid value for '--ignore': it names no rule"),
        (["--cache-dir", "", "engine"], "Invalid value for '--cache-dir': it names no folder"),
        (["--profile", "klingon.toml", "engine"], "klingon.toml: extends: unknown profile 'klingon'"),
        (["config", "nowhere"], "nowhere: no such file or directory"),
        (["completion"], "Missing argument"),
        (["chekc", "engine"], "chekc: no such file or directory; did you mean the command 'check'?"),
        (["--isolated", "init", "engine"], "init: no such file or directory; a command comes first: moe-lint init …"),
        (["--config", "nope.toml", "engine"], "nope.toml: cannot be read: No such file or directory"),
        (["init", "nowhere"], "nowhere: no such file or directory"),
        (["init", "engine/models/pair.py"], "engine/models/pair.py: init needs the folder of a tree"),
        (["--select", "MOE1", "--ignore", "MOE", "engine"], "no rule is left: every rule that is selected is ignored"),
        *((["--" + name, "", "engine"], "it is empty") for name in ("baseline", "config", "profile")),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_two(tree: Path, args: list[str], told: str) -> None:
    (tree / "empty").mkdir()
    os.mkfifo(tree / "pipe.py")
    (tree / "klingon.toml").write_text('extends = "klingon"\n')
    (tree / "bad.toml").write_text('extends = "sglang"\n[helpr]\nname = "x"\n')
    result = moe_lint(*args)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("models/pair.py", b"def f(: tensor_model_parallel_all_reduce(experts)\n", "pair.py:1: error: syntax error"),
        ("models/bytes.py", b"\xff tensor_model_parallel_all_reduce\n", "bytes.py:1: error: not readable as text"),
    ],
)
def test_a_broken_file_is_named_nothing_is_written_and_the_rest_is_judged(
    tree: Path, name: str, data: bytes, told: str
) -> None:
    (tree / "engine" / name).write_bytes(data)
    before = {p: p.read_bytes() for p in tree.rglob("*.py")}
    result = moe_lint("--fix", "engine")
    assert result.exit_code == 2
    assert told in result.stderr
    assert "unguarded.py" in result.stdout
    assert {p: p.read_bytes() for p in tree.rglob("*.py")} == before


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("    for _ in ():\n        pass\n", "`for _ in ():` is neither `if`, `return` nor an assignment"),
        ("    if a:\n        logger.info(1)\n" * 20, "the body branches too often for a boolean function"),
        ("    logger.info(1)\n" * 30, "the body is too long for a boolean function"),
        (
            f"    if {'a if b else ' * 150}a:\n        return True\n",
            "a condition is nested too deeply for a boolean func",
        ),
    ],
    ids=["a-loop", "branches", "long", "deep"],
)
def test_a_helper_that_is_no_boolean_function_is_said_aloud(tree: Path, body: str, why: str) -> None:
    utils = tree / "engine/layers/moe/utils.py"
    utils.write_text(utils.read_text().replace("    return is_tp_path and", f"{body}    return is_tp_path and"))
    result = moe_lint("engine")
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if "is not a boolean function" in line]
    assert line.startswith("engine/layers/moe/utils.py:")
    assert f"is not a boolean function: {why}" in line


def test_a_fork_with_other_names_needs_a_profile_and_no_python(tree: Path) -> None:
    for path in tree.rglob("*.py"):
        text = path.read_text().replace("should_skip_post_experts_all_reduce", "someone_else_sums")
        path.write_text(text.replace("tensor_model_parallel_all_reduce", "sum_over_tensor_ranks"))
    (tree / "fork.toml").write_text(
        'extends = "sglang"\n[helper]\nname = "someone_else_sums"\n[collectives]\n'
        'sum_over_tensor_ranks = "TP"\nmoe_sum_over_tensor_ranks = "TP"\n'
    )
    assert findings("--profile", "fork.toml", "engine") == EXPECTED


def test_a_suppressed_finding_is_counted_and_an_unused_comment_is_reported(tree: Path) -> None:
    path = tree / "engine/models/unguarded.py"
    path.write_text(
        path.read_text().replace("        if self.tp", "        # moe-lint: ignore[MOE002] seen\n        if self.tp")
    )
    assert [row for row in findings("engine") if row[0] == "unguarded.py"] == []
    right = tree / "engine/models/right.py"
    right.write_text(right.read_text() + "\n\nX = 1  # moe-lint: ignore[MOE001] nothing here\n")
    assert ("right.py", 40, "MOE901") in findings("engine")


def test_the_command_line_imports_nothing_heavy() -> None:
    modules = "moe_lint.cli.check, moe_lint.cli.matrix, moe_lint.cli.rule"
    code = f"import sys, {modules}; print(sorted({{'torch', 'libcst', 'rich', 'flashinfer'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_rewrite_runs_as_a_libcst_command(tree: Path) -> None:
    command = [sys.executable, "-m", "libcst.tool", "codemod", "--no-format", "-x", "codemods.commands.RouteGuards"]
    subprocess.run([*command, "engine/models/fusion_only.py"], check=True, capture_output=True, cwd=tree)
    assert "not should_skip_post_experts_all_reduce(" in (tree / "engine/models/fusion_only.py").read_text()


@pytest.mark.parametrize(
    "args", [["engine"], ["matrix", "engine"], ["--format", "json", "engine"], ["rule"], ["--help"]]
)
def test_a_closed_or_full_standard_output_is_no_traceback(tree: Path, args: list[str]) -> None:
    command = [sys.executable, "-m", "moe_lint", *args]
    open_ = subprocess.run(command, capture_output=True, check=False).returncode
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (open_, "")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "moe-lint: error: standard output: No space left on device\n"


def test_a_name_with_control_characters_does_not_break_lines(tree: Path) -> None:
    (tree / "engine/models/pair.py").rename(tree / "engine/models/a\nb\x1b[31m.py")
    shown = moe_lint("--format", "concise", "engine").stdout
    assert "engine/models/a\\nb\\x1b[31m.py:19:35: MOE001" in shown
    assert "engine/models/a\\nb\\x1b[31m.py:19:35 in" in moe_lint("engine").stdout
