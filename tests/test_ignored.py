"""What git ignores and what the user excludes is no part of a tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moe_lint.discover import python_files
from moe_lint.ignored import DEFAULT_EXCLUDE, DEFAULT_FILES, FileFilter, Patterns, is_left_out


def grow(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")


def names_in(root: Path, files: FileFilter = DEFAULT_FILES) -> list[str]:
    return [path.relative_to(root).as_posix() for path in python_files(root, files)]


def excluding(folder: Path, *lines: str) -> FileFilter:
    return FileFilter((Patterns("", DEFAULT_EXCLUDE), Patterns(str(folder), lines)))


# --- gitignore


@pytest.mark.parametrize(
    ("ignore", "kept"),
    [
        ("gen/\n", ["a.py", "pkg/b.py", "pkg/gen.py"]),
        ("gen*\n", ["a.py", "pkg/b.py"]),
        ("/gen\n", ["a.py", "pkg/b.py", "pkg/gen.py", "pkg/gen/d.py"]),
        ("*.py\n!a.py\n", ["a.py"]),
        ("# gen/\n\n   \n", ["a.py", "gen/c.py", "pkg/b.py", "pkg/gen.py", "pkg/gen/d.py"]),
        ("pkg/**/d.py\n", ["a.py", "gen/c.py", "pkg/b.py", "pkg/gen.py"]),
        ("*.log\nCargo.lock\nlib64/\n", ["a.py", "gen/c.py", "pkg/b.py", "pkg/gen.py", "pkg/gen/d.py"]),
    ],
)
def test_what_git_ignores_is_left_out(tmp_path: Path, ignore: str, kept: list[str]) -> None:
    grow(tmp_path, "a.py", "gen/c.py", "pkg/b.py", "pkg/gen.py", "pkg/gen/d.py")
    (tmp_path / ".gitignore").write_text(ignore)
    assert names_in(tmp_path) == kept
    assert len(names_in(tmp_path, FileFilter(gitignore=False))) == 5


def test_the_same_files_as_git_itself(tmp_path: Path) -> None:
    grow(tmp_path, "a.py", "gen/c.py", "pkg/b.py", "pkg/gen.py", "pkg/gen/d.py", "pkg/sub/x_pb2.py", "pkg/sub/keep.py")
    (tmp_path / ".gitignore").write_text("/gen\n*_pb2.py\n")
    (tmp_path / "pkg" / ".gitignore").write_text("gen\nsub/*\n!sub/keep.py\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".git" / "info" / "exclude").write_text("a.py\n")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.py"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert sorted(names_in(tmp_path)) == sorted(listed.stdout.split()) == ["pkg/b.py", "pkg/gen.py", "pkg/sub/keep.py"]


def test_a_nearer_gitignore_has_the_last_word(tmp_path: Path) -> None:
    grow(tmp_path, "x_pb2.py", "pkg/x_pb2.py")
    (tmp_path / ".gitignore").write_text("*_pb2.py\n")
    (tmp_path / "pkg" / ".gitignore").write_text("!x_pb2.py\n")
    assert names_in(tmp_path) == ["pkg/x_pb2.py"]


@pytest.mark.parametrize("marker", [".git", "pyproject.toml"])
def test_a_gitignore_above_counts_up_to_the_top_of_the_work_tree_or_project(tmp_path: Path, marker: str) -> None:
    grow(tmp_path, "repo/python/a.py", "repo/python/b.py", f"repo/{marker}/x" if marker == ".git" else f"repo/{marker}")
    (tmp_path / ".gitignore").write_text("a.py\n")
    (tmp_path / "repo" / ".gitignore").write_text("b.py\n")
    assert names_in(tmp_path / "repo" / "python") == ["a.py"]


def test_a_folder_that_is_ignored_is_read_when_it_is_the_one_named(tmp_path: Path) -> None:
    grow(tmp_path, "pyproject.toml", "gen/a.py", "gen/b_pb2.py")
    (tmp_path / ".gitignore").write_text("gen/\n")
    assert names_in(tmp_path / "gen") == ["a.py", "b_pb2.py"]


def test_a_gitignore_that_is_no_text_does_not_stop_the_run(tmp_path: Path) -> None:
    grow(tmp_path, "a.py")
    (tmp_path / ".gitignore").write_bytes(b"\xff\xfe\n")
    assert names_in(tmp_path) == ["a.py"]


# --- exclude


def test_excluded_patterns_are_relative_to_their_folder(tmp_path: Path) -> None:
    grow(tmp_path, "a.py", "third_party/b.py", "pkg/third_party/c.py", "pkg/test_d.py", "pkg/e.py")
    assert names_in(tmp_path, excluding(tmp_path, "/third_party", "test_*.py")) == [
        "a.py",
        "pkg/e.py",
        "pkg/third_party/c.py",
    ]
    assert names_in(tmp_path, excluding(tmp_path, "third_party")) == ["a.py", "pkg/e.py", "pkg/test_d.py"]
    assert len(names_in(tmp_path, excluding(tmp_path / "elsewhere", "third_party", "*.py"))) == 5


def test_a_folder_above_that_has_an_excluded_name_excludes_nothing(tmp_path: Path) -> None:
    grow(tmp_path, "build/repo/a.py", "build/repo/build/b.py")
    assert names_in(tmp_path / "build" / "repo") == ["a.py"]


def test_exclude_replaces_the_defaults_and_hidden_folders_stay_out(tmp_path: Path) -> None:
    grow(tmp_path, "build/a.py", ".hidden/b.py", "c.py")
    assert names_in(tmp_path, FileFilter((Patterns(str(tmp_path), ("c.py",)),))) == ["build/a.py"]


def test_a_gitignore_cannot_take_back_what_the_user_excludes(tmp_path: Path) -> None:
    grow(tmp_path, "a.py", "b.py")
    (tmp_path / ".gitignore").write_text("!a.py\n")
    assert names_in(tmp_path, excluding(tmp_path, "a.*")) == ["b.py"]


# --- files by name


def test_a_file_is_left_out_with_a_folder_above_it(tmp_path: Path) -> None:
    grow(tmp_path, "pyproject.toml", "gen/sub/a.py", "build/b.py", "pkg/c.py")
    (tmp_path / ".gitignore").write_text("gen/\n")
    left_out = [
        name for name in ("gen/sub/a.py", "build/b.py", "pkg/c.py") if is_left_out(str(tmp_path / name), FileFilter())
    ]
    assert left_out == ["gen/sub/a.py", "build/b.py"]
    assert is_left_out(str(tmp_path / "pkg/c.py"), excluding(tmp_path, "pkg/*.py"))
    assert not is_left_out(str(tmp_path / "gen/sub/a.py"), FileFilter(gitignore=False))


def test_a_tree_without_patterns_loads_no_library(tmp_path: Path) -> None:
    grow(tmp_path, "a.py")
    names = f"*python_file_names({str(tmp_path)!r})"
    code = f"import sys; from moe_lint.discover import *; print({names}, 'pathspec' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(tmp_path / "a.py"), "False"]
