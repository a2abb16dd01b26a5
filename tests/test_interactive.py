"""`--interactive`, in a terminal of its own: one question for each place, with its diff."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from moe_lint.cli import main
from tests.trees import FORGETFUL, HELPER_NAME, ROUTED, model, write_tree

PAIR = (
    "if self.ep_size > 1 and not use_reduce_scatter:\n    x = moe_expert_parallel_all_reduce(x)\n"
    "if self.tp_size > 1 and not use_reduce_scatter:\n    x = tensor_model_parallel_all_reduce(x)\n"
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three models that forget reasons."""
    root = write_tree(tmp_path, FORGETFUL)
    for name in ("y", "z"):
        (root / f"models/{name}.py").write_text(model(FORGETFUL))
    return tmp_path


def converse(tree: Path, typed: str, *args: str) -> tuple[int, str]:
    """(exit code, what the terminal showed) of a run whose user types this."""
    outer, inner = pty.openpty()
    command = [sys.executable, "-m", "moe_lint", "--interactive", *args, "engine"]
    with subprocess.Popen(command, cwd=tree, stdin=inner, stdout=inner, stderr=inner, close_fds=True) as process:
        os.close(inner)
        os.write(outer, typed.encode())
        shown = b""
        while select.select([outer], [], [], 30)[0]:
            try:
                part = os.read(outer, 4096)
            except OSError:  # the other side is closed
                break
            shown += part
        else:
            process.kill()  # it waits for an answer that nobody gives
        code = process.wait()
    os.close(outer)
    return code, shown.decode().replace("\r\n", "\n")


def fixed(tree: Path) -> list[str]:
    return [path.stem for path in sorted((tree / "engine/models").glob("*.py")) if HELPER_NAME in path.read_text()]


@pytest.mark.parametrize(
    ("typed", "taken", "code"),
    [
        ("y\ny\ny\n", ["x", "y", "z"], 0),
        ("n\ny\nn\n", ["y"], 1),
        ("a\n", ["x", "y", "z"], 0),
        ("n\na\n", ["y", "z"], 1),
        ("y\nq\n", ["x"], 1),
        ("q\n", [], 1),
        ("\nwhat\nYES\nn\nn\n", ["x"], 1),
    ],
)
def test_each_place_is_taken_or_left(tree: Path, typed: str, taken: list[str], code: int) -> None:
    assert converse(tree, typed)[0] == code
    assert fixed(tree) == taken


def test_code_that_would_control_the_terminal_is_escaped(tree: Path) -> None:
    path = tree / "engine/models/x.py"
    text = path.read_text()
    path.write_text(text.replace("        if self.tp_size", "        # \x1b[2J clear\x0c it\n        if self.tp_size"))
    assert path.read_text() != text
    _, shown = converse(tree, "q\n")
    assert "# \\x1b[2J clear\\x0c it" in shown


def test_a_question_shows_the_finding_the_diff_and_what_changes(tree: Path) -> None:
    _, shown = converse(tree, "n\nn\nn\n")
    assert "engine/models/x.py:25: MOE001 hand-written guard bypasses" in shown
    assert "fix (corrective): stops reducing for" in shown
    assert "--- a/engine/models/x.py" in shown
    assert "Make this change (1 of 3)? [y]es, [n]o, [a]ll that follow, [q]uit" in shown


def test_a_pair_is_one_question(tree: Path) -> None:
    for name in ("y", "z"):
        (tree / f"engine/models/{name}.py").write_text(model(ROUTED))
    (tree / "engine/models/x.py").write_text(model(PAIR))
    code, shown = converse(tree, "y\n")
    assert (code, "(1 of 1)" in shown) == (0, True)
    assert (tree / "engine/models/x.py").read_text().count("not should_skip") == 2


def test_one_of_two_places_in_a_function_can_be_left(tree: Path) -> None:
    path = tree / "engine/models/x.py"
    path.write_text(model(FORGETFUL + FORGETFUL))
    assert converse(tree, "n\ny\nq\n")[0] == 1
    assert path.read_text().count("not should_skip") == 1


def test_an_end_of_input_writes_nothing(tree: Path) -> None:
    code, shown = converse(tree, "y\n\x04")
    assert (code, "interrupted; nothing was written" in shown) == (2, True)
    assert fixed(tree) == []


def test_a_clean_tree_asks_nothing(tree: Path) -> None:
    converse(tree, "a\n")
    code, shown = converse(tree, "")
    assert (code, "Make this change" in shown) == (0, False)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ([], "--interactive asks questions: it needs a terminal"),
        (["--diff"], "it does not go with --diff"),
        (["--format", "json"], "--interactive and json both go to standard output"),
        (["--add-ignores"], "--add-ignores and --fix do not go together"),
    ],
)
def test_where_nobody_can_answer_it_is_refused(tree: Path, args: list[str], told: str) -> None:
    result = CliRunner().invoke(main, ["--interactive", *args, str(tree / "engine")])
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert told in result.stderr
    assert fixed(tree) == []
