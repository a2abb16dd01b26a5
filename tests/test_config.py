"""Configuration: where it is read from, what beats what, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import moe_lint
from tests.trees import COMPLETE, write_tree


def rules(*args: str) -> list[str]:
    result = moe_lint("--format", "json", *args)
    return [finding["rule"] for finding in json.loads(result.stdout)["findings"]]


def settings(*args: str) -> dict[str, list[tuple[object, str]]]:
    document = json.loads(moe_lint("config", "--format", "json", *args).stdout)
    return {key: [(s["value"], s["origin"]) for s in found] for key, found in document["settings"].items()}


OFF = {"moe-lint.toml": 'ignore = ["MOE001"]\n', "pyproject.toml": '[tool.moe-lint]\nignore = ["MOE001"]\n'}
OFF["setup.cfg"] = "[moe-lint]\nignore = MOE001\n"


@pytest.mark.parametrize("name", list(OFF))
def test_each_file_configures_the_tree_below_it(forgetful: Path, name: str) -> None:
    assert rules("engine") == ["MOE001"]
    (forgetful / name).write_text(OFF[name])
    assert rules("engine") == []
    assert rules("engine/models/x.py") == []
    assert settings("engine")["ignore"] == [(["MOE001"], name)]


def test_within_a_folder_moe_lint_toml_comes_first_then_pyproject_then_setup_cfg(forgetful: Path) -> None:
    for name in reversed(OFF):
        (forgetful / name).write_text(OFF[name])
        assert settings("engine")["ignore"] == [(["MOE001"], name)]


def test_the_nearest_folder_wins_whole_files_not_keys(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text('select = ["MOE002"]\n')
    (forgetful / "engine" / "setup.cfg").write_text("[moe-lint]\nignore = MOE901\n")
    found = settings("engine/models")
    assert found["ignore"] == [(["MOE901"], "engine/setup.cfg")]
    assert found["select"] == [([], "default")]


def test_a_shared_file_without_a_section_is_passed_over(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text('ignore = ["MOE001"]\n')
    (forgetful / "engine" / "pyproject.toml").write_text('[project]\nname = "moe-lint"\n[tool.ruff]\n')
    (forgetful / "engine" / "setup.cfg").write_text("[options]\npackages =\n    moe_lint\n")
    assert rules("engine") == []


def test_a_broken_pyproject_without_a_section_is_not_ours_to_judge(forgetful: Path) -> None:
    (forgetful / "pyproject.toml").write_text("[project\n")
    assert rules("engine") == ["MOE001"]


def test_isolated_reads_no_file(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text("nonsense")
    assert rules("--isolated", "engine") == ["MOE001"]


def test_a_named_file_is_read_and_no_other(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text("nonsense")
    (forgetful / "other.toml").write_text('ignore = ["hand-written-guard"]\n')
    assert rules("--config", "other.toml", "engine") == []
    (forgetful / "more.toml").write_text('[tool.moe-lint]\nignore = ["MOE0"]\n')
    assert rules("--config", "more.toml", "engine") == []


def test_the_command_line_beats_the_file(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text('select = ["MOE002"]\nunsafe-fixes = true\nrespect-gitignore = false\n')
    assert rules("engine") == []
    assert rules("--select", "MOE001", "engine") == ["MOE001"]
    found = settings("--select", "MOE001,MOE002", "--no-unsafe-fixes", "--respect-gitignore", "engine")
    assert found["select"] == [(["MOE001", "MOE002"], "--select")]
    assert found["unsafe-fixes"] == [(False, "--no-unsafe-fixes")]
    assert found["respect-gitignore"] == [(True, "--respect-gitignore")]


def test_what_extends_is_added_to_the_files_values(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text('extend-exclude = ["a"]\nextend-select = ["MOE003"]\n')
    found = settings("--extend-exclude", "b", "engine")
    assert found["extend-exclude"] == [(["a"], "moe-lint.toml"), (["b"], "--extend-exclude")]


def test_safe_only_on_the_command_line_beats_unsafe_fixes_in_the_file(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text("unsafe-fixes = true\n")
    assert moe_lint("--fix", "--safe-only", "engine").exit_code == 1
    assert moe_lint("--fix", "engine").exit_code == 0


def test_rules_are_chosen_by_code_name_prefix_and_all(forgetful: Path) -> None:
    assert rules("--select", "MOE0", "engine") == rules("--select", "hand-written-guard", "engine") == ["MOE001"]
    assert rules("--select", "ALL", "--ignore", "moe0", "engine") == []
    write_tree(forgetful, "x = tensor_model_parallel_all_reduce(x)\n", absorber=False)
    assert rules("engine") == []
    assert rules("--extend-select", "MOE003", "engine") == ["MOE003"]


# --- paths


@pytest.mark.parametrize("pattern", ["models", "/engine/models/", "engine/**/x.py", "x.py", "*"])
def test_rules_ignored_by_path_are_not_reported_there(forgetful: Path, pattern: str) -> None:
    (forgetful / "moe-lint.toml").write_text(f'[per-path-ignores]\n"{pattern}" = ["MOE001"]\n')
    assert rules("engine") == []
    assert rules("engine/models/x.py") == []


def test_a_pattern_that_stands_twice_in_setup_cfg_has_all_its_rules(forgetful: Path) -> None:
    (forgetful / "setup.cfg").write_text("[moe-lint]\nper-path-ignores =\n  models: MOE001\n  models: MOE101\n")
    assert '"models" = ["MOE001", "MOE101"]' in moe_lint("config", "engine").stdout


@pytest.mark.parametrize(
    "text", ['tool = {moe-lint = {ignore = ["MOE001"]}}', ' [ tool ]\nmoe-lint.ignore = ["MOE001"]']
)
def test_a_section_is_found_however_toml_lets_it_be_written(forgetful: Path, text: str) -> None:
    (forgetful / "pyproject.toml").write_text(text)
    assert 'ignore = ["MOE001"]' in moe_lint("config", "engine").stdout


def test_rules_are_ignored_below_matching_paths_only(forgetful: Path) -> None:
    (forgetful / "setup.cfg").write_text(
        "[moe-lint]\nper-path-ignores =\n    layers: ALL\n    models/y.py: MOE001, MOE002\n"
    )
    assert rules("engine") == ["MOE001"]
    assert rules("--per-path-ignores", "engine/models:MOE1,hand-written-guard", "engine") == []


def test_the_helper_is_read_from_a_file_whose_findings_are_ignored(forgetful: Path) -> None:
    found = json.loads(moe_lint("--format", "json", "--per-path-ignores", "layers:ALL", "engine").stdout)
    assert found["notes"] == []
    assert [f["related"][0]["path"] for f in found["findings"]] == ["engine/layers/moe/utils.py"]


def test_what_is_excluded_is_no_part_of_the_tree(forgetful: Path) -> None:
    assert moe_lint("--extend-exclude", "models", "engine").exit_code == 0
    (forgetful / "moe-lint.toml").write_text('extend-exclude = ["/engine/models"]\n')
    assert rules("engine") == []
    assert rules("--exclude", "nothing", "engine") == []
    assert rules("--isolated", "engine") == ["MOE001"]


def test_patterns_in_a_file_are_relative_to_it_and_those_of_options_to_the_working_directory(
    forgetful: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (forgetful / "engine" / "moe-lint.toml").write_text('extend-exclude = ["/models/x.py"]\n')
    assert rules("engine") == []
    monkeypatch.chdir(forgetful / "engine" / "models")
    assert moe_lint("--isolated", "--exclude", "/x.py", "..").exit_code == 0
    assert rules("--isolated", "--exclude", "/models/x.py", "..") == ["MOE001"]


def test_a_file_named_by_name_is_judged_unless_exclusion_is_forced(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text('extend-exclude = ["models"]\n')
    assert rules("engine/models/x.py") == ["MOE001"]
    forced = moe_lint("--force-exclude", "--format", "json", "engine/models/x.py")
    assert (forced.exit_code, json.loads(forced.stdout)["summary"]["files"]) == (0, 0)


def test_a_profile_in_a_file_is_relative_to_it(forgetful: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (forgetful / "own.toml").write_text('extends = "sglang"\nname = "own"\n')
    (forgetful / "moe-lint.toml").write_text('profile = "./own.toml"\n')
    monkeypatch.chdir(forgetful / "engine")
    assert rules("models") == ["MOE001"]
    (forgetful / "own.toml").unlink()
    assert "own.toml: cannot read the profile" in moe_lint("models").stderr


def test_the_matrix_and_init_read_the_configuration_too(forgetful: Path) -> None:
    (forgetful / "moe-lint.toml").write_text('profile = "nope"\n')
    for command in ("matrix", "init"):
        result = moe_lint(command, "engine")
        assert result.exit_code == 2
        assert result.stderr.startswith("moe-lint: error: moe-lint.toml: profile: unknown profile 'nope': bundled are")


# --- what it shows


def test_the_text_is_toml_that_gives_the_same_settings_again(forgetful: Path) -> None:
    (forgetful / "pyproject.toml").write_text(
        '[tool.moe-lint]\nignore = ["MOE1"]\nunsafe-fixes = true\n'
        '[tool.moe-lint.per-path-ignores]\n"a/\\"b" = ["ALL"]\n'
    )
    shown = moe_lint("config", "engine").stdout
    assert shown.startswith("# configuration file: pyproject.toml\n")
    assert 'ignore = ["MOE1"]' in shown
    assert next(line for line in shown.splitlines() if line.startswith("unsafe-fixes")).endswith("# pyproject.toml")
    assert next(line for line in shown.splitlines() if line.startswith("profile")).endswith("# default")
    before = settings("engine")
    (forgetful / "pyproject.toml").unlink()
    (forgetful / "moe-lint.toml").write_text(shown)
    after = settings("engine")
    assert {key: [v for v, _ in found] for key, found in after.items()} == {
        key: [v for v, _ in found] for key, found in before.items()
    }


def test_without_a_file_the_defaults_are_shown(forgetful: Path) -> None:
    assert "# configuration file: none" in moe_lint("config").stdout
    assert {origin for found in settings().values() for _, origin in found} == {"default"}


# --- what is refused


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("moe-lint.toml", 'ignored = ["MOE001"]', "moe-lint.toml: unknown key 'ignored'; did you mean 'ignore'?"),
        ("moe-lint.toml", "extend_exclude = []", "unknown key 'extend_exclude'; did you mean 'extend-exclude'?"),
        ("moe-lint.toml", "[per-file-ignores]", "unknown key 'per-file-ignores'; did you mean 'per-path-ignores'?"),
        ("moe-lint.toml", "xyz = 1", "unknown key 'xyz'; the keys are profile, select,"),
        ("moe-lint.toml", 'ignore = "MOE001"', "ignore must be a list of strings, not 'MOE001'"),
        ("moe-lint.toml", "ignore = [1]", "ignore must be a list of strings, not a list with 1 in it"),
        ("moe-lint.toml", 'unsafe-fixes = "yes"', "unsafe-fixes must be true or false, not 'yes'"),
        ("moe-lint.toml", "unsafe-fixes = 1", "unsafe-fixes must be true or false, not 1"),
        ("moe-lint.toml", "profile = true", "profile must be a string, not True"),
        ("moe-lint.toml", 'profile = ""', "profile must be a string, not an empty string"),
        ("moe-lint.toml", "baseline = []", "baseline must be a string, not []"),
        ("moe-lint.toml", 'per-path-ignores = ["a"]', "per-path-ignores must be a table of patterns"),
        ("moe-lint.toml", '[per-path-ignores]\na = "MOE001"', "per-path-ignores must be a table of patterns"),
        ("moe-lint.toml", 'ignore = ["MOE01"]\nselect = ["MOE0011"]', "select: unknown rule 'MOE0011'; did you mean"),
        ("moe-lint.toml", '[per-path-ignores]\na = ["X"]', "moe-lint.toml: per-path-ignores: unknown rule 'X'"),
        ("moe-lint.toml", 'extend-exclude = ["!"]', "moe-lint.toml: extend-exclude: Invalid git pattern"),
        ("moe-lint.toml", "[tool.moe-lint]", "moe-lint.toml: unknown key 'tool'"),
        ("moe-lint.toml", "ignore = [", "moe-lint.toml: not valid TOML:"),
        ("moe-lint.toml", b"\xff\xfe", "moe-lint.toml: not valid UTF-8"),
        ("moe-lint.toml", 'ignore = [""]', "ignore must be a list of strings, not a list with '' in it"),
        ("moe-lint.toml", "safe-only = true\nunsafe-fixes = true", "moe-lint.toml: safe-only and unsafe-fixes exclude"),
        ("moe-lint.toml", 'profile = "a\\u0000.toml"', "moe-lint.toml: profile must be a string, not 'a\\x00.toml'"),
        ("moe-lint.toml", '[per-path-ignores]\n"" = ["ALL"]', "per-path-ignores must be a table of patterns"),
        ("moe-lint.toml", f"select = {'[' * 6000}{']' * 6000}", "moe-lint.toml: nested too deeply to be read"),
        ("pyproject.toml", "[tool.moe-lint\n", "pyproject.toml: not valid TOML:"),
        ("pyproject.toml", "[tool]\nmoe-lint = 1", "pyproject.toml: tool.moe-lint must be a table"),
        ("pyproject.toml", "[tool.moe_lint]", "unknown section [tool.moe_lint]; did you mean [tool.moe-lint]?"),
        (
            "pyproject.toml",
            "[tool.moe-lint]\nselct = []",
            "unknown key 'selct'; did you mean 'select'?",
        ),
        ("setup.cfg", "[tool:moe-lint]", "setup.cfg: unknown section [tool:moe-lint]; did you mean [moe-lint]?"),
        ("setup.cfg", "[moe_lint]", "setup.cfg: unknown section [moe_lint]; did you mean [moe-lint]?"),
        ("setup.cfg", "[ moe-lint ]", "setup.cfg: unknown section [ moe-lint ]; did you mean [moe-lint]?"),
        ("setup.cfg", "[moe-lint]\nper-path-ignores = :", "must have one `pattern: RULE, RULE` on each line"),
        ("setup.cfg", "[moe-lint]\nselct = MOE001", "setup.cfg: unknown key 'selct'; did you mean 'select'?"),
        ("setup.cfg", "[moe-lint]\nunsafe-fixes = maybe", "unsafe-fixes must be true or false, not 'maybe'"),
        ("setup.cfg", "[moe-lint]\nper-path-ignores = MOE001", "must have one `pattern: RULE, RULE` on each line"),
        ("setup.cfg", "[moe-lint]\nprofile =", "profile must be a string, not an empty string"),
        ("setup.cfg", "[moe-lint]\n[moe-lint]", "setup.cfg: not valid:"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_two(forgetful: Path, name: str, text: str | bytes, told: str) -> None:
    (forgetful / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = moe_lint("engine")
    assert result.exit_code == 2
    assert told in result.stderr
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)
    assert moe_lint("config", "engine").stderr == result.stderr


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--config", "nowhere.toml"], "nowhere.toml: cannot be read: No such file or directory"),
        (["--config", "engine"], "engine: cannot be read: Is a directory"),
        (["--config", "pyproject.toml"], "pyproject.toml: has no [tool.moe-lint]"),
        (["--config", "pyproject.toml", "--isolated"], "--isolated reads no configuration, --config names one"),
        (["--select", "MOE2x"], "--select: unknown rule 'MOE2x'"),
        (["--extend-select", "hand-writen-guard"], "did you mean 'hand-written-guard'?"),
        (["--exclude", "!"], "--exclude: Invalid git pattern"),
        (["--per-path-ignores", "a:NOPE"], "--per-path-ignores: unknown rule 'NOPE'"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_two(forgetful: Path, args: list[str], told: str) -> None:
    (forgetful / "pyproject.toml").write_text("[project]\n")
    result = moe_lint(*args, "engine")
    assert result.exit_code == 2
    assert told in result.stderr
    assert (result.stdout, len(result.stderr.splitlines())) == ("", 1)


def test_an_ill_formed_table_option_is_refused(forgetful: Path) -> None:
    result = moe_lint("--per-path-ignores", "MOE001", "engine")
    assert (result.exit_code, "'MOE001' is not PATTERN:CODE" in result.stderr) == (2, True)


def test_paths_that_lead_to_different_files_are_refused(forgetful: Path) -> None:
    write_tree(forgetful / "other", COMPLETE)
    (forgetful / "engine" / "moe-lint.toml").write_text("")
    result = moe_lint("engine", "other")
    assert result.exit_code == 2
    assert "engine is configured by engine/moe-lint.toml, other by no file: run them one by one" in result.stderr
    assert moe_lint("--isolated", "engine", "other").exit_code == 1
