"""The GitHub action, the GitLab job and the pre-commit hooks, as the repository ships and documents them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.runs import EXPECTED, moe_lint

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
STEPS: dict[str, dict[str, Any]] = {step["name"]: step for step in ACTION["runs"]["steps"]}
MOE_LINT = Path(sys.executable).with_name("moe-lint")


def documented(key: str) -> Any:
    """The YAML example of `docs/ci.md` that has a key."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/ci.md").read_text(), re.DOTALL)
    return next(found for found in map(yaml.safe_load, blocks) if key in found)


# --- GitHub


def step(name: str, outputs: dict[str, str], action: Path = ROOT, **inputs: str) -> tuple[int, str]:
    """Run a step's script as a runner does; what it sets, for steps or for the job, is added to ``outputs``."""
    defaults = {name: spec["default"] for name, spec in ACTION["inputs"].items()}
    given = defaults | {name.replace("_", "-"): value for name, value in inputs.items()}

    def value(match: re.Match[str]) -> str:
        kind, _, rest = match[1].partition(".")
        return given[rest] if kind == "inputs" else outputs.get(rest.rsplit(".", 1)[-1], "")

    one = STEPS[name]
    env = {key: re.sub(r"\$\{\{ ([\w.-]+) \}\}", value, text) for key, text in one.get("env", {}).items()}
    told = Path("outputs.txt")
    told.write_text("")
    runner = {"MOE_LINT": str(MOE_LINT), "RUNNER_TEMP": str(Path.cwd()), "GITHUB_ACTION_PATH": str(action)}
    runner |= {"GITHUB_OUTPUT": str(told), "GITHUB_ENV": str(told)}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", one["run"]],
        env=os.environ | runner | env,
        capture_output=True,
        text=True,
    )
    outputs |= dict(line.split("=", 1) for line in told.read_text().splitlines())
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"paths": "engine"}, "1"),
        ({"paths": "engine/models/right.py engine/models/no_absorber.py"}, "0"),
        ({"paths": "engine", "args": "--select MOE103 --quiet"}, "0"),
        ({"paths": "engine/models/right.py\nengine/models/pair.py\n"}, "1"),
        ({"paths": "engine", "args": "--select\nMOE103\n"}, "0"),
        ({"paths": ""}, "0"),
        ({"paths": "engine", "args": "--select NOPE"}, "2"),
        ({"paths": "nowhere; touch broken"}, "2"),
    ],
)
def test_the_action_judges_reports_and_fails_at_the_end(tree: Path, inputs: dict[str, str], code: str) -> None:
    outputs: dict[str, str] = {}
    assert step("Judge", outputs, **inputs)[0] == 0
    assert outputs["exit-code"] == code
    assert ("sarif-file" in outputs) is (code != "2" and inputs["paths"] != "")
    if "sarif-file" in outputs:
        assert Path(outputs["sarif-file"]) == tree / "moe-lint.sarif"
        assert json.loads(Path(outputs["sarif-file"]).read_text())["version"] == "2.1.0"
    assert step("Fail when something is left", outputs) == (int(code), "")
    assert not Path("broken").exists()


@pytest.mark.integration
def test_the_action_installs_moe_lint_beside_the_jobs_environment(tree: Path) -> None:
    outputs = {"python-path": sys.executable}
    assert step("Install moe-lint, beside the job's own environment", outputs, source(tree))[0] == 0
    assert outputs["MOE_LINT"] == str(tree / "moe-lint/bin/moe-lint")
    assert subprocess.run([outputs["MOE_LINT"], "--quiet", "engine"], capture_output=True).returncode == 1
    assert not list((tree / "moe-lint").rglob("torch"))


def test_the_action_annotates_from_the_log_when_asked(tree: Path) -> None:
    assert "::error" not in step("Judge", {}, paths="engine")[1]
    log = step("Judge", {}, paths="engine", annotations="true")[1]
    assert log.count("\n::error ") + log.count("\n::warning ") == len(EXPECTED)


def test_a_step_uses_inputs_through_its_environment_only() -> None:
    assert [name for name, one in STEPS.items() if "${{" in one.get("run", "")] == []


# --- GitLab


def test_the_documented_gitlab_job_writes_the_reports_that_it_hands_over(tree: Path) -> None:
    job = documented("moe-lint")["moe-lint"]
    command = next(line for line in job["script"] if line.startswith("moe-lint "))
    (tree / "engine").rename("python")
    assert moe_lint(*shlex.split(command)[1:]).exit_code == 1
    for name in job["artifacts"]["reports"].values():
        assert Path(name).stat().st_size > 0


# --- pre-commit


def test_a_hook_judges_the_files_that_it_is_given(tree: Path) -> None:
    for hook, code in zip(HOOKS, (1, 0), strict=True):
        program, *args = shlex.split(hook["entry"])
        assert program == "moe-lint"
        assert moe_lint(*args, "engine/models/pair.py", "engine/models/right.py").exit_code == code
        assert moe_lint(*args).exit_code == 0  # a commit without Python files
    assert "not should_skip" in Path("engine/models/pair.py").read_text()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ("vendor.github-actions", ACTION),
        ("vendor.github-workflows", documented("jobs")),
        ("vendor.gitlab-ci", documented("moe-lint")),
    ],
    ids=["action", "workflow", "gitlab"],
)
def test_other_programs_accept_the_files(tmp_path: Path, schema: str, text: dict[Any, Any]) -> None:
    file = tmp_path / "tried.json"
    # in YAML 1.1, the key `on` reads as true
    file.write_text(json.dumps({"on" if key is True else key: value for key, value in text.items()}))
    command = [str(MOE_LINT.with_name("check-jsonschema")), "--builtin-schema", schema, str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def git(*args: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def source(folder: Path) -> Path:
    """A clone of this repository, with what decides about an installation as it is now, committed or not."""
    clone = folder / "source"
    git("clone", "--quiet", str(ROOT), str(clone))
    for name in (".pre-commit-hooks.yaml", "setup.cfg"):
        shutil.copy(ROOT / name, clone / name)
    git("-C", str(clone), "commit", "--quiet", "--allow-empty", "-am", "now")
    return clone


@pytest.mark.integration
@pytest.mark.parametrize("hook", [hook["id"] for hook in HOOKS])
def test_pre_commit_tries_each_hook(tree: Path, hook: str) -> None:
    git("init", "--quiet")
    git("add", "engine")
    command = [str(MOE_LINT.with_name("pre-commit")), "try-repo", str(source(tree)), hook, "--all-files"]
    env = os.environ | {"PRE_COMMIT_HOME": str(tree / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    assert ("6 findings (6 fixable)" in done.stdout) is (hook == "moe-lint")
    assert (git("diff", "--name-only") != "") is (hook == "moe-lint-fix")


@pytest.mark.integration
def test_pre_commit_installs_the_hooks_without_torch_and_fixes_a_tree(tree: Path) -> None:
    home = tree / "home"
    env = os.environ | {"PRE_COMMIT_HOME": str(home)}

    def pre_commit(*args: str) -> tuple[int, str]:
        command = [str(MOE_LINT.with_name("pre-commit")), *args]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        return done.returncode, done.stdout + done.stderr

    repository = source(tree)
    rev = git("-C", str(repository), "rev-parse", "HEAD").strip()
    hooks = "".join(f"      - id: {hook['id']}\n" for hook in reversed(HOOKS))
    Path(".pre-commit-config.yaml").write_text(f"repos:\n  - repo: {repository}\n    rev: {rev}\n    hooks:\n{hooks}")
    git("init", "--quiet")
    git("add", "engine", ".pre-commit-config.yaml")
    code, told = pre_commit("run", "--all-files")
    assert code == 1
    assert re.findall(r"\.(Passed|Failed)", told) == ["Failed", "Passed"]
    assert "files were modified by this hook" in told
    assert pre_commit("run", "--all-files")[0] == 0
    packages = {
        path.name.partition("-")[0].lower() for path in home.glob("repo*/py_env*/lib/*/site-packages/*.dist-info")
    }
    assert {"moe_lint", "click", "libcst", "rich"} <= packages
    assert not packages & {"torch", "numpy", "flashinfer_python"}
    size = sum(path.stat().st_size for path in home.glob("repo*/py_env*/**/*") if path.is_file()) / 2**20
    assert size < 80, f"the environment takes {size:.0f} MiB"
