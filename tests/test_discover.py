"""Which files are looked at, and which tree they are judged by."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint.discover import python_files, tree_of


def grow(root: Path, *names: str, text: str = "") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names_in(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in python_files(root)]


# --- files


def test_python_files_are_found_at_every_depth_files_before_folders(tmp_path: Path) -> None:
    grow(tmp_path, "b.py", "a/z.py", "a/b/c.py", "z.py", "a/a.py")
    assert names_in(tmp_path) == ["b.py", "z.py", "a/a.py", "a/z.py", "a/b/c.py"]


def test_other_files_are_left_out(tmp_path: Path) -> None:
    grow(tmp_path, "a.py", "a.pyi", "a.pyc", "a.txt", "py", "a.py.bak", "a.ipynb")
    assert names_in(tmp_path) == ["a.py"]


@pytest.mark.parametrize(
    "folder",
    ["__pycache__", "node_modules", "venv", ".venv", "site-packages", "build", "dist", ".git", ".tox", ".hidden"],
)
def test_hidden_folders_environments_and_caches_are_left_out(tmp_path: Path, folder: str) -> None:
    grow(tmp_path, "a.py", f"{folder}/b.py", f"pkg/{folder}/deep/c.py", "pkg/d.py")
    assert names_in(tmp_path) == ["a.py", "pkg/d.py"]


def test_a_left_out_folder_is_read_when_it_is_the_one_named(tmp_path: Path) -> None:
    grow(tmp_path, "build/a.py")
    assert names_in(tmp_path / "build") == ["a.py"]


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    grow(tmp_path, "a.py/b.py")
    assert names_in(tmp_path) == ["a.py/b.py"]


def test_linked_folders_are_not_followed_and_linked_files_are(tmp_path: Path) -> None:
    grow(tmp_path, "tree/a.py", "outside/b.py")
    (tmp_path / "tree" / "loop").symlink_to(tmp_path / "tree", target_is_directory=True)
    (tmp_path / "tree" / "other").symlink_to(tmp_path / "outside", target_is_directory=True)
    (tmp_path / "tree" / "b.py").symlink_to(tmp_path / "outside" / "b.py")
    assert names_in(tmp_path / "tree") == ["a.py", "b.py"]


def test_a_dangling_link_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert names_in(tmp_path) == []


def test_an_empty_folder_has_no_files(tmp_path: Path) -> None:
    assert names_in(tmp_path) == []


# --- trees


def test_a_file_is_judged_by_the_package_that_it_imports_from(tmp_path: Path) -> None:
    grow(tmp_path, "python/engine/models/block.py", text="from engine.layers import skip\n")
    grow(tmp_path, "pyproject.toml")
    assert tree_of(tmp_path / "python/engine/models/block.py") == tmp_path / "python/engine"


def test_a_plain_import_names_the_package_too(tmp_path: Path) -> None:
    grow(tmp_path, "engine/models/block.py", text="import os\nimport engine.layers\n")
    assert tree_of(tmp_path / "engine/models/block.py") == tmp_path / "engine"


def test_the_outermost_folder_of_that_name_is_the_package(tmp_path: Path) -> None:
    grow(tmp_path, "engine/python/engine/block.py", text="from engine.layers import skip\n")
    assert tree_of(tmp_path / "engine/python/engine/block.py") == tmp_path / "engine"


def test_relative_and_indented_imports_name_no_package(tmp_path: Path) -> None:
    text = "from .models import x\ndef f():\n    from models import y\n"
    grow(tmp_path, "setup.cfg")
    grow(tmp_path, "models/block.py", text=text)
    assert tree_of(tmp_path / "models/block.py") == tmp_path


def test_a_folder_is_judged_by_the_package_that_its_files_import_from(tmp_path: Path) -> None:
    grow(tmp_path, "engine/models/block.py", text="from engine.layers import skip\n")
    assert tree_of(tmp_path / "engine/models") == tmp_path / "engine"


def test_a_folder_above_its_package_is_the_tree_itself(tmp_path: Path) -> None:
    grow(tmp_path, "python/engine/models/block.py", text="from engine.layers import skip\n")
    grow(tmp_path, "pyproject.toml")
    assert tree_of(tmp_path / "python") == tmp_path / "python"


@pytest.mark.parametrize("marker", ["pyproject.toml", "setup.cfg", "setup.py", ".git/HEAD"])
def test_a_file_that_imports_no_enclosing_package_is_judged_by_its_project(tmp_path: Path, marker: str) -> None:
    grow(tmp_path, marker)
    grow(tmp_path, "a/b/block.py", text="import torch\n")
    assert tree_of(tmp_path / "a/b/block.py") == tmp_path


def test_the_nearest_project_counts(tmp_path: Path) -> None:
    grow(tmp_path, "setup.py", "a/setup.py")
    grow(tmp_path, "a/b/block.py", text="import torch\n")
    assert tree_of(tmp_path / "a/b/block.py") == tmp_path / "a"


def test_a_relative_path_gives_an_absolute_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "engine/models/block.py", text="from engine.layers import skip\n")
    monkeypatch.chdir(tmp_path / "engine/models")
    assert tree_of(Path("block.py")) == tmp_path / "engine"
    assert tree_of(Path(".")) == tmp_path / "engine"


def test_files_that_are_not_text_do_not_stop_the_search(tmp_path: Path) -> None:
    grow(tmp_path, "engine/models/block.py", text="from engine.layers import skip\n")
    (tmp_path / "engine/models/a.py").write_bytes(b"\xff\xfe\x00from x")
    assert tree_of(tmp_path / "engine/models") == tmp_path / "engine"


@pytest.mark.parametrize("path", ["acme/llm/models/block.py", "acme/llm/models"])
def test_relative_imports_reach_the_package_where_no_project_is_seen(tmp_path: Path, path: str) -> None:
    grow(tmp_path, "acme/__init__.py")
    grow(tmp_path, "acme/llm/models/block.py", text="import torch\n\nfrom ..layers import skip\n")
    assert tree_of(tmp_path / path) == tmp_path / "acme"


def test_relative_imports_below_a_folder_make_it_no_part_of_another(tmp_path: Path) -> None:
    grow(tmp_path, "python/acme/__init__.py", "python/acme/models/__init__.py", "python/__init__.py")
    grow(tmp_path, "python/acme/models/block.py", text="from ..layers import skip\n")
    grow(tmp_path, "python/setup.py", text="import os\n")
    assert tree_of(tmp_path / "python") == tmp_path / "python"
