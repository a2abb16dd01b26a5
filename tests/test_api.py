"""The Python interface: what the command line finds, as values, and light until it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import moe_lint
from tests.trees import FORGETFUL, write_tree


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tree(tmp_path, FORGETFUL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_returns_what_the_command_line_reports(tree: Path) -> None:
    report = moe_lint.check("engine")
    (finding,) = report.findings
    assert isinstance(report, moe_lint.Report)
    assert isinstance(finding, moe_lint.Finding)
    assert (finding.rule, finding.path, finding.severity, report.exit_code) == (
        "MOE001",
        "engine/models/x.py",
        moe_lint.Severity.ERROR,
        1,
    )


@pytest.mark.parametrize("paths", ["engine", Path("engine"), ["engine"], (Path("engine/models/x.py"),)])
def test_paths_are_text_or_path_objects_one_or_many(tree: Path, paths: object) -> None:
    assert len(moe_lint.check(paths).findings) == 1  # type: ignore[arg-type]


def test_no_path_is_an_empty_report(tree: Path) -> None:
    report = moe_lint.check([])
    assert (report.findings, report.files, report.exit_code) == ((), 0, 0)


def test_arguments_are_those_of_the_command_line(tree: Path) -> None:
    assert moe_lint.check("engine", ignore=["MOE001"]).findings == ()
    assert moe_lint.check("engine", select=["MOE1"]).findings == ()
    assert moe_lint.check("engine", extend_exclude=["models"]).findings == ()
    assert moe_lint.check("engine", per_path_ignores={"models": ["ALL"]}).findings == ()
    assert moe_lint.check("engine", per_path_ignores={"models": "MOE001"}).findings == ()
    (tree / "own.toml").write_text('extends = "sglang"\n')
    assert len(moe_lint.check("engine", profile=tree / "own.toml").findings) == 1


def test_the_configuration_holds_unless_isolated(tree: Path) -> None:
    (tree / "moe-lint.toml").write_text('ignore = ["MOE001"]\n')
    assert moe_lint.check("engine").findings == ()
    assert len(moe_lint.check("engine", isolated=True).findings) == 1
    assert len(moe_lint.check("engine", ignore=[]).findings) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"paths": "nowhere"}, "nowhere: no such file or directory"),
        ({"select": ["NOPE"]}, "select: unknown rule 'NOPE'"),
        ({"profile": "nope"}, "unknown profile 'nope'"),
        ({"baseline": "none.json"}, "none.json: the baseline cannot be read"),
    ],
)
def test_a_request_that_cannot_be_carried_out_raises(tree: Path, arguments: dict[str, object], told: str) -> None:
    with pytest.raises(moe_lint.UsageError, match=told):
        moe_lint.check(**{"paths": "engine", **arguments})  # type: ignore[arg-type]


def test_a_broken_file_is_a_problem_in_the_report(tree: Path) -> None:
    (tree / "engine/models/y.py").write_text("def f(: tensor_model_parallel_all_reduce(experts)")
    report = moe_lint.check("engine")
    assert [(problem.path, problem.line) for problem in report.problems] == [("engine/models/y.py", 1)]
    assert report.exit_code == 2


def test_importing_the_package_is_light_and_knows_its_names() -> None:
    code = (
        "import sys, moe_lint; heavy = {'ast', 'click', 'dataclasses', 'libcst', 'rich', 'tokenize', 'moe_lint.model'};"
        "print(sorted(heavy & set(sys.modules)));"
        "print(all(hasattr(moe_lint, name) for name in moe_lint.__all__), set(moe_lint.__all__) <= set(dir(moe_lint)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == ["[]", "True True"]
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = moe_lint.nope


def test_a_user_can_check_types_against_it(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "import moe_lint\n\nreport: moe_lint.Report = moe_lint.check('x')\nreveal_type(report.findings[0].span.line)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "--cache-dir", str(tmp_path), "use.py"]
    environment = {**os.environ, "MYPYPATH": str(Path(__file__).parents[1])}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert 'Revealed type is "builtins.int"' in shown.stdout or 'Revealed type is "int"' in shown.stdout
    assert "error" not in shown.stdout
