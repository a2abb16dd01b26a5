"""Shell completion: what is offered, and that a real bash offers it."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import moe_lint


def with_moe_lint() -> dict[str, str]:
    """An environment in which the program is found."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TERM": "dumb"}


def offered(*words: str) -> list[str]:
    """The completions of the last word."""
    environment = {
        **os.environ,
        "_MOE_LINT_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("moe-lint", *words)),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-c", "from moe_lint.cli import main; main(prog_name='moe-lint')"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ma"], {"matrix"}),
        (["--fi"], {"--fix"}),
        (["check", "--write-b"], {"--write-baseline"}),
        (["--fix", "--saf"], {"--safe-only"}),
        (["--select", "MOE00"], {"MOE001", "MOE002"}),
        (["--select", "MOE001,MOE10"], {"MOE001,MOE101", "MOE001,MOE103"}),
        (["rule", "MOE90"], {"MOE901", "MOE903"}),
        (["--profile", "sg"], {"sglang"}),
        (["--format", "sa"], {"sarif"}),
        (["matrix", "--format", "js"], {"json"}),
        (["completion", "f"], {"fish"}),
    ],
)
def test_commands_options_rules_profiles_and_formats_are_offered(words: list[str], expected: set[str]) -> None:
    assert expected <= set(offered(*words))
    assert all(item.startswith(words[-1]) for item in offered(*words))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(shell: str) -> None:
    result = moe_lint("completion", shell)
    assert result.exit_code == 0
    assert f"_MOE_LINT_COMPLETE={shell}_complete" in result.stdout
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=result.stdout, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_another_shell_is_one_line_and_exit_two() -> None:
    result = moe_lint("completion", "csh")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_fills_in_the_word(tmp_path: Path) -> None:
    asked = {
        "ma": "matrix",
        "--sta": "--statistics",
        "check --exit": "--exit-zero",
        "matrix -o h": "html",
        "--select MOE001,MOE10": "MOE001,MOE101 MOE001,MOE102 MOE001,MOE103 MOE001,MOE104",
        "rule MOE90": "MOE901 MOE902 MOE903",
        "--add": "--add-ignores",
        "--format nonsense --sta": "--statistics",
    }
    lines = [f'ask moe-lint {words}; echo "${{COMPREPLY[*]}}"' for words in asked]
    script = f"""
        {moe_lint("completion", "bash").stdout}
        ask() {{ COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _moe_lint_completion moe-lint; }}
        {chr(10).join(lines)}
    """
    command = ["bash", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=with_moe_lint(), cwd=tmp_path, check=False)
    assert done.stderr == ""
    assert dict(zip(asked, done.stdout.splitlines(), strict=True)) == asked


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_offers_the_words(tmp_path: Path) -> None:
    asked = {
        "moe-lint ma": "matrix",
        "moe-lint check --exit": "--exit-zero",
        "moe-lint rule MOE90": "MOE901 MOE902 MOE903",
        "moe-lint matrix -o h": "html",
        "moe-lint --profile sg": "sglang",
        "moe-lint nothing/her": "nothing/here.py",
    }
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing/here.py").write_text("")
    script = moe_lint("completion", "fish").stdout
    for line, words in asked.items():
        command = ["fish", "--no-config", "-c", f"{script}\ncomplete -C '{line}'"]
        done = subprocess.run(command, capture_output=True, text=True, env=with_moe_lint(), cwd=tmp_path, check=True)
        assert " ".join(offer.partition("\t")[0] for offer in done.stdout.splitlines()) == words


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_fills_in_the_word(tmp_path: Path) -> None:
    asked = {
        "moe-lint ma": "moe-lint matrix ",
        "moe-lint check --exit": "moe-lint check --exit-zero ",
        "moe-lint rule MOE404": "moe-lint rule MOE404 ",
        "moe-lint -o h": "moe-lint -o html ",
    }
    (tmp_path / "script").write_text(moe_lint("completion", "zsh").stdout)
    setup = """autoload -U compinit; compinit -u -D; source ./script; zle -N tell; bindkey "^X" tell
        tell() { print -r -- "$BUFFER" >> told; zle kill-buffer }
        precmd() { print >> ready }\n"""
    mine, its = pty.openpty()
    shell = subprocess.Popen(["zsh", "-f"], stdin=its, stdout=its, stderr=its, env=with_moe_lint(), cwd=tmp_path)
    try:
        os.write(mine, setup.encode())
        wait_for(tmp_path / "ready", 1)
        for number, words in enumerate(asked, 1):
            os.write(mine, f"{words}\t\x18".encode())
            wait_for(tmp_path / "told", number)
    finally:
        shell.kill()
        shell.wait()
    assert (tmp_path / "told").read_text().splitlines() == list(asked.values())


def wait_for(path: Path, lines: int) -> None:
    """Until a file has so many lines, or so long that it will not."""
    for _ in range(200):
        if path.exists() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.1)
    raise AssertionError(f"{path.name} has not got {lines} lines")
